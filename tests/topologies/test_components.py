"""Devices behind a switch and behind a bridge, as real processes: the shipped topologies, and what the ports stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import CONFIGS, launch
from viommu_actors.spec import pci
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve

pytestmark = pytest.mark.topology

ROGUE, VICTIM = 0x0300, 0x0400
SWITCH = """
name = "pair"
[[switch]]
name = "sw0"
acs = {acs}
[[device]]
name = "nic0"
model = "nic"
behind = "sw0"
operations = 4
[[device]]
name = "nic1"
model = "nic"
behind = "sw0"
operations = 4
"""


@pytest.mark.parametrize(
    ("name", "source", "outcomes"),
    [
        ("switch", "03:00.0", {"guest memory": "blocked", "host memory": "blocked"}),
        # The rogue is 02:01.0; what arrives says that it is the bridge's bus.
        ("bridge", "02:00.0", {"guest memory": "corrupted", "host memory": "blocked"}),
    ],
)
def test_the_shipped_topology(name: str, source: str, outcomes: dict[str, str], tmp_path: Path) -> None:
    finished = launch(CONFIGS / f"{name}.toml", tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr + finished.stdout[-2000:]
    results = finished.results
    assert results["ok"] and all(row["verified"] for row in results["io"])
    assert {row["target"]: row["observed"] for row in results["verdicts"]} == outcomes
    faults = [row["evidence"]["fault"] for row in results["verdicts"] if row["observed"] == "blocked"]
    assert {fault["source"] for fault in faults} == {source}
    assert all(row["second_open"] == "EBUSY" for row in results["assignments"])


@contextmanager
def running(acs: bool, folder: Path) -> Iterator[Supervisor]:
    topology = resolve(parse(SWITCH.format(acs=str(acs).lower())))
    kept, plan = RunFolder(topology, folder), make_plan(topology)
    with Supervisor(plan, kept) as supervisor:
        Scenario(topology, plan, supervisor, lambda _: None).run()
        yield supervisor
    kept.close()


@pytest.mark.parametrize("acs", [True, False])
def test_forged_names_and_peers_below_a_switch(acs: bool, tmp_path: Path) -> None:
    with running(acs, tmp_path / "run") as supervisor:
        supervisor.command("host", "faults")
        bar = _bar(supervisor, VICTIM)
        steps = [
            {"do": "write", "address": 0x1000, "data": bytes(4), "requester": VICTIM},
            {"do": "read", "address": bar, "length": 4},
            {"do": "message", "name": "ConfigRequest", "fields": (ROGUE, 1, VICTIM >> 8, 0, pci.COMMAND, bytes(2))},
        ]
        supervisor.command("nic0", "attack", steps=steps)
        assert all(_works(supervisor, bdf) for bdf in (ROGUE, VICTIM))
        port = supervisor.command("host", "ports")["sw0.0"]
        assert port["unsupported"] == 1
        sources = [record["source"] for record in supervisor.command("host", "faults")["records"]]
        if acs:
            assert port["acs"] == 1 and "peer read" not in port
            assert sources == ["03:00.0"], "redirected, and stopped by the IOMMU"
        else:
            assert port["peer read"] == 1 and "acs" not in port
            assert sources == ["04:00.0"], "the forged write faulted in the victim's name"
        assert supervisor.reconcile() == []


def _bar(supervisor: Supervisor, bdf: int) -> int:
    space: bytes = supervisor.command("host", "config_space", bdf=pci.format_bdf(bdf))
    return int.from_bytes(space[pci.BAR0 : pci.BAR0 + 4], "little") & pci.BAR_MEMORY_MASK


def _works(supervisor: Supervisor, bdf: int) -> bool:
    done: dict[str, Any] = supervisor.command("host", "io", bdf=pci.format_bdf(bdf), operations=4)
    return bool(done["verified"])
