"""Applications in a guest that sleep until their device's interrupt wakes them, as real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import CONFIGS, launch, write

pytestmark = pytest.mark.topology

SHIPPED = CONFIGS / "dpdk-interrupts.toml"
#: The nic at the other end of a cable stays the host's.
PEER = """
[[device]]
name = "nic1"
model = "nic"
peer = "nic0"
"""


def _application_row(config: Path, folder: Path) -> dict[str, Any]:
    finished = launch(config, folder / "run", "--json")
    assert finished.status == 0, finished.stderr + finished.stdout[-2000:]
    results = finished.results
    assert {row["observed"] for row in results["verdicts"]} <= {"blocked"}
    [row] = (row for row in results["io"] if row["driver"] == "vfio")
    assert isinstance(row, dict)
    return row


def test_each_packet_wakes_the_application_and_nothing_traps(tmp_path: Path) -> None:
    row = _application_row(SHIPPED, tmp_path)
    assert (row["operations"], row["verified"], row["mapping"]) == (64, True, "static")
    assert row["interrupts"] == row["wakes"] == 32
    assert row["interrupts_forwarded"] == row["traps"] == row["vfio_maps"] == 0
    # To sleep, and to read the eventfd.
    assert row["per_packet"]["system_calls"] == 2


def test_a_packet_from_the_host_wakes_an_application_in_a_guest(tmp_path: Path) -> None:
    text = SHIPPED.read_text().replace("operations = 64", 'operations = 8\npeer = "nic1"').replace('rogue = ["A2"]', "")
    row = _application_row(write(tmp_path, text + PEER), tmp_path)
    assert (row["operations"], row["verified"]) == (8, True)
    assert row["interrupts"] == row["wakes"] == 8 and row["system_calls"] == 16
    assert row["interrupts_forwarded"] == row["traps"] == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('memory = "32M"', 'memory = "32M"\nirqfd = false'),
        ("[[vm.assign]]", '[[vm.assign]]\nedit = [{ hide = "msix" }]'),
    ],
    ids=["through the hypervisor", "by MSI"],
)
def test_by_other_ways_of_the_interrupt(tmp_path: Path, old: str, new: str) -> None:
    row = _application_row(write(tmp_path, SHIPPED.read_text().replace(old, new)), tmp_path)
    assert row["interrupts"] == row["wakes"] == 32
    assert row["interrupts_forwarded"] == (32 if "irqfd" in new else 0)
