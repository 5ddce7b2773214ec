"""How scripts are judged where ports check no requester IDs, and what a driver sees of a device that runs one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from viommu_actors.report.results import Verdict
from viommu_actors.spec import pci
from viommu_actors.spec.nic import Reg
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.owner import owner_of
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.scripted import Scripted
from viommu_actors.supervise.stage import Stage
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve

pytestmark = pytest.mark.topology

ROGUE, NEIGHBOUR = "01:00.0", "02:00.0"
PAIR = """
name = "pair"
[host]
memory = "32M"
acs = false
cmdline = "intel_iommu=on {options}"
[[device]]
name = "nic0"
model = "nic"
operations = 4
[[device]]
name = "nic1"
model = "nic"
operations = 4
"""
SWITCH = """
[[switch]]
name = "sw0"
acs = {acs}
"""
HEAD = "from viommu_actors.rogue import Rogue\nclass Mine(Rogue):\n"


@contextmanager
def _staged(folder: Path, text: str) -> Iterator[Stage]:
    """A nic of the host that is to run scripts, beside another."""
    topology = resolve(parse(text))
    kept, plan = RunFolder(topology, folder), make_plan(topology)
    with closing(kept), Supervisor(plan, kept) as supervisor:
        Scenario(topology, plan, supervisor, lambda _: None).run()
        device = topology.device("nic0")
        yield Stage(topology, plan, supervisor, device, owner_of(topology, device))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scripted") / "run"


@pytest.fixture(scope="module")
def stage(folder: Path) -> Iterator[Stage]:
    with _staged(folder, PAIR.format(options="")) as stage:
        yield stage


def _played(stage: Stage, run: str, more: str = "") -> list[Verdict]:
    body = "".join(f"        {line}\n" for line in run.splitlines())
    verdicts, said = Scripted(stage).play(f"{HEAD}    def run(self):\n{body}{more}", "mine.py", 20)
    assert said["error"] == ""
    return verdicts


def _told(verdicts: list[Verdict]) -> dict[tuple[str, str], tuple[str, str]]:
    return {(row.attack, row.target): (row.observed, row.expected) for row in verdicts}


def test_a_write_in_the_name_of_another_gets_at_its_buffer(stage: Stage) -> None:
    page = stage.command("host", "offer_control", bdf=NEIGHBOUR)
    try:
        body = f"with self.spoof('{NEIGHBOUR}'):\n    self.dma_write({page['iova']}, {page['data']!r})"
        verdicts = _played(stage, body)
        assert stage.command("host", "check_control", bdf=NEIGHBOUR), "it is in the neighbour's page"
    finally:
        stage.command("host", "end_control", bdf=NEIGHBOUR)
    assert _told(verdicts) == {("script-write", "another device's buffer"): ("corrupted", "corrupted")}
    assert verdicts[0].setting == "acs-off" and verdicts[0].evidence.reached == verdicts[0].evidence.attempts == 1


def test_what_the_neighbour_may_not_reach_is_refused_in_its_name(stage: Stage) -> None:
    body = f"with self.spoof('{NEIGHBOUR}'):\n    self.dma_write(self.targets.canaries['host memory'][0], b'mine')"
    [verdict] = _played(stage, body)
    assert (verdict.attack, verdict.target, verdict.observed) == ("script-write", "host memory", "blocked")
    fault = verdict.evidence.fault
    assert fault is not None and (fault.kind, fault.source) == ("remapping", NEIGHBOUR)


def test_a_refusal_that_the_unit_has_no_record_of_is_not_proven(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else takes the records before the judge does; none is lost, so that none may be missing."""
    ask = stage.command

    def robbed(actor: str, name: str, **arguments: Any) -> Any:
        if name == "field_evidence":
            assert ask("host", "faults")["records"]
        return ask(actor, name, **arguments)

    monkeypatch.setattr(stage, "command", robbed)
    [verdict] = _played(stage, "self.dma_read(self.targets.canaries['host memory'][0], 8)")
    assert verdict.observed == "unproven" and verdict.evidence.fault is None


def test_a_read_where_interrupts_go_is_judged(stage: Stage) -> None:
    [verdict] = _played(stage, "self.dma_read(self.targets.interrupt[0], 4)")
    assert (verdict.attack, verdict.target) == ("script-read", "host's interrupts")
    assert verdict.observed == verdict.expected == "blocked"
    assert verdict.evidence.fault is not None and verdict.evidence.fault.text == "interrupt range"


def test_a_driver_sees_what_the_hooks_show_and_nothing_of_it_harms_the_others(stage: Stage, folder: Path) -> None:
    hooks = (
        "    lies = 1\n"
        "    def on_mmio_read(self, bar, offset, size):\n"
        f"        if offset == {Reg.MAC_LOW:#x} and self.lies:\n"
        "            self.lies -= 1\n"
        "            return 0xFFFFFFFF\n"
        "    def on_mmio_write(self, bar, offset, size, value):\n"
        "        self.log(f'bar {bar}, {offset:#x}')\n"
        "        return False\n"
    )
    assert _played(stage, "pass", hooks) == []
    command, log = stage.command, folder / "host.log"
    command("host", "rebind", bdf=ROGUE)
    assert log.read_text().count("no controller answers") == 1
    assert f"script: bar 0, {Reg.CONTROL:#x}" in (folder / "nic0.log").read_text()
    assert command("host", "io", bdf=NEIGHBOUR, operations=2)["verified"]
    command("host", "rebind", bdf=ROGUE)
    assert command("host", "io", bdf=ROGUE, operations=2)["verified"], "it lied once"


def test_what_changed_is_judged_whoever_it_was_charged_to(tmp_path: Path) -> None:
    """The neighbour passes its IOMMU: in its name the rogue gets at memory that nobody gave to either."""
    body = f"with self.spoof('{NEIGHBOUR}'):\n    self.dma_write(self.targets.canaries['host memory'][0] + 64, b'mine')"
    with _staged(tmp_path / "run", PAIR.format(options="iommu=pt")) as stage:
        assert _told(_played(stage, body)) == {
            ("script-write", "host memory"): ("corrupted", "corrupted"),
            ("script-write", "another device's buffer"): ("corrupted", "corrupted"),
        }


def _below_a_switch(acs: str) -> str:
    return PAIR.format(options="").replace('model = "nic"', 'model = "nic"\nbehind = "sw0"') + SWITCH.format(acs=acs)


def test_registers_of_a_neighbour_below_a_switch(tmp_path: Path) -> None:
    with _staged(tmp_path / "run", _below_a_switch("false")) as stage:
        bdf = stage.topology.device("nic1").bdf
        space: bytes = stage.command("host", "config_space", bdf=bdf)
        bar = int.from_bytes(space[pci.BAR0 : pci.BAR0 + 4], "little") & pci.BAR_MEMORY_MASK
        verdicts = _played(stage, f"self.dma_read({bar + Reg.MAC_LOW}, 4)")
        assert _told(verdicts) == {("script-read", "another device's registers"): ("leaked", "leaked")}


def test_the_port_that_refused_is_named(tmp_path: Path) -> None:
    with _staged(tmp_path / "run", _below_a_switch("true")) as stage:
        bdf = stage.topology.device("nic1").bdf
        body = f"with self.spoof('{bdf}'):\n    self.dma_write(self.targets.canaries['host memory'][0], b'mine')"
        [verdict] = _played(stage, body)
        fault = verdict.evidence.fault
        assert fault is not None and (fault.kind, fault.unit, fault.source) == ("acs", "switch sw0", bdf)
