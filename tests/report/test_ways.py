"""The table of an application's ways to a device: each cell says what was observed, and why."""

from __future__ import annotations

import json

import msgspec

from tests.report.samples import evidence, topology
from viommu_actors.app.pci import UserDriver
from viommu_actors.attacks.catalogue import DmaSetting
from viommu_actors.attacks.evidence import Fault
from viommu_actors.attacks.verdict import Observed
from viommu_actors.report.results import App, AppPort, Counts, Io, Results, Verdict
from viommu_actors.report.text import plain
from viommu_actors.report.ways import Ways

FAULT = Fault(kind="remapping", unit="host iommu", source="01:00.0", address="0x1000", write=False, reason="0x6")


def run(driver: UserDriver, observed: Observed | None, *, refused: str = "", works: bool = True) -> Results:
    """Of one device: refused, or with a verdict where it works."""
    port = AppPort(
        device="nic0", asked=driver, granted=not refused, expected=not refused, errno=refused, reason=refused and "why"
    )
    row = Io(
        device="nic0",
        driver=driver,
        mapping="static",
        operations=0,
        bytes=0,
        verified=works,
        should_work=works,
        failed="" if works else "transmit ring halted",
        fault=None if works else FAULT,
        traps=0,
        vfio_maps=0,
        vfio_unmaps=0,
    )
    verdicts = ()
    if observed is not None:
        verdict = Verdict(
            device="nic0",
            driver=driver,
            attack="A2",
            target="guest memory",
            setting="strict",
            expected="blocked",
            observed=observed,
            evidence=evidence(observed, "01:00.0", True),
        )
        host = msgspec.structs.replace(verdict, target="host memory", observed="blocked")
        verdicts = (verdict, host)
    app = App(name="vm0.testpmd", vm="vm0", iova="PA", ports=(port,), taints=(), setup=Counts())
    io = () if refused else (row,)
    return Results(topology="t", ok=True, processes=(), verdicts=verdicts, io=io, faults=(), apps=(app,))


def outcome(driver: UserDriver, setting: DmaSetting, results: Results) -> str:
    [cell] = Ways([(setting, driver, results)]).cells
    return cell.outcome


def test_a_cell_is_what_was_observed_of_the_guests_memory() -> None:
    assert outcome("vfio", "strict", run("vfio", "blocked")) == "safe"
    assert outcome("uio", "passthrough", run("uio", "corrupted")) == "UNSAFE"
    assert outcome("uio", "passthrough", run("uio", "leaked")) == "UNSAFE"
    assert outcome("vfio", "strict", run("vfio", "unproven")) == "unproven"
    assert outcome("vfio", "strict", run("vfio", None)) == "unproven"
    assert outcome("vfio", "none", run("vfio", None, refused="EINVAL")) == "refused"
    assert outcome("uio", "strict", run("uio", None, works=False)) == "useless"


def test_the_table_has_ways_down_and_settings_across() -> None:
    ways = Ways(
        [
            ("none", "vfio", run("vfio", None, refused="EINVAL")),
            ("strict", "vfio", run("vfio", "blocked")),
            ("none", "uio", run("uio", "corrupted")),
            ("strict", "uio", run("uio", None, works=False)),
        ]
    )
    lines = [plain(each).rstrip() for each in ways.lines()]
    assert lines[1].split() == ["by", "none", "strict"]
    assert lines[3:5] == [
        "VFIO  refused, EINVAL  safe",
        "UIO   UNSAFE           binds; all its DMA faults",
    ]
    assert "    transmit ring halted" in lines and any("host iommu: fault 0x6" in each for each in lines)
    assert lines[-1] == "As expected: 4 combinations."
    assert "| VFIO | refused, EINVAL | safe |" in ways.markdown()


def test_what_is_not_as_expected_is_marked_and_fails() -> None:
    ways = Ways([("strict", "vfio", msgspec.structs.replace(run("vfio", "corrupted"), ok=False))])
    assert not ways.ok and json.loads(ways.as_json())["ok"] is False
    text = "\n".join(plain(each) for each in ways.lines())
    assert "UNSAFE !" in text and text.endswith("NOT as expected: 1 of 1 combinations.")
    assert not Ways([]).ok


def test_what_proved_nothing_or_was_not_run_is_not_as_expected() -> None:
    unproven = Ways([("strict", "vfio", run("vfio", None))])
    assert not unproven.ok and unproven.cells[0].words == "unproven !"
    missing = Ways([("strict", "vfio", run("vfio", "blocked"))], whole=False)
    assert not missing.ok and json.loads(missing.as_json())["ok"] is False
    assert plain(missing.summary()) == "NOT as expected: 0 of 1 combinations; not all of it was run."


def test_the_shipped_topology_has_one_device_of_one_application() -> None:
    resolved = topology("dpdk-matrix")
    assert [port.device for vm in resolved.vms for app in vm.apps for port in app.ports] == ["nic0"]
