"""Claim C12 with real processes: forged interrupts, and the two ways of the honest ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import CONFIGS, SMALL, launch, write
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import CommandFailed, Supervisor
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve

pytestmark = pytest.mark.topology

PROTECTED = CONFIGS / "interrupts-protected.toml"


def _verdicts(config: Path, tmp_path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    finished = launch(config, tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr + finished.stdout[-2000:]
    for row in finished.results["io"]:
        assert row["verified"] and row["interrupts"] > 0 and row["interrupts_forwarded"] == 0
    return {(row["attack"], row["target"]): row for row in finished.results["verdicts"]}


def test_c12_with_remapping_every_forged_interrupt_is_blocked_with_its_reason(tmp_path: Path) -> None:
    verdicts = _verdicts(PROTECTED, tmp_path)
    reasons = {}
    for key, row in verdicts.items():
        evidence = row["evidence"]
        assert row["observed"] == "blocked" and row["setting"] == "ir"
        assert evidence["canary_before"] == evidence["canary_after"] and evidence["control"]
        assert evidence["refused"] == evidence["attempts"] > 0
        assert evidence["fault"]["source"] == "01:00.0"
        reasons[key] = evidence["fault"]["reason"] or evidence["fault"]["text"]
    assert reasons == {
        ("A22", "host's interrupts"): "0x25",
        ("A23", "another device's interrupts"): "0x26",
        ("A24", "an entry beyond the table"): "0x21",
        ("A24", "an entry that is not present"): "0x22",
        ("A25", "host's interrupts"): "interrupt range",
    }


def test_c12_without_remapping_any_vector_is_delivered(tmp_path: Path) -> None:
    verdicts = _verdicts(CONFIGS / "interrupts-unprotected.toml", tmp_path)
    assert {key: row["observed"] for key, row in verdicts.items()} == {
        ("A22", "host's interrupts"): "delivered",
        ("A25", "host's interrupts"): "blocked",
    }
    evidence = verdicts["A22", "host's interrupts"]["evidence"]
    assert evidence["canary_before"].startswith("0 interrupts") and evidence["canary_after"].startswith("8 interrupts")


def test_an_entry_that_validates_no_source_takes_the_message_of_any_device(tmp_path: Path) -> None:
    text = PROTECTED.read_text().replace('cmdline = "intel_iommu=on"', 'cmdline = "intel_iommu=on intremap=nosid"')
    verdicts = _verdicts(write(tmp_path, text), tmp_path)
    assert verdicts["A23", "another device's interrupts"]["observed"] == "delivered"
    assert {row["observed"] for key, row in verdicts.items() if key[0] != "A23"} == {"blocked"}


def test_both_devices_of_the_host_itself(tmp_path: Path) -> None:
    text = PROTECTED.read_text().partition("[[vm]]")[0]
    verdicts = _verdicts(write(tmp_path, text), tmp_path)
    assert {row["observed"] for row in verdicts.values()} == {"blocked"} and len(verdicts) == 5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[vm.viommu]", "[vm.viommu]\nintremap = false"),
        ('device = "nic0"\n', 'device = "nic0"\nedit = [{ hide = "msix" }]\n'),
        ("[vm.viommu]", ""),
    ],
    ids=["the guest does not remap", "MSI instead of MSI-X", "no vIOMMU"],
)
def test_honest_interrupts_arrive_by_irqfd(tmp_path: Path, old: str, new: str) -> None:
    text = SMALL.replace(old, new).replace('rogue = ["A2"]', "")
    finished = launch(write(tmp_path, text), tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr
    [row] = finished.results["io"]
    assert row["verified"] and row["interrupts"] == row["operations"] / 2 and row["interrupts_forwarded"] == 0


def test_extended_interrupt_mode(tmp_path: Path) -> None:
    text = SMALL.replace("[vm.viommu]", "[vm.viommu]\neim = true").replace("=on", "=on x2apic")
    finished = launch(write(tmp_path, text), tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr
    assert "DMAR-IR: Enabled IRQ remapping in x2apic mode" in finished.log("vm0.guest")


def test_without_irqfd_each_interrupt_goes_through_the_hypervisor_and_is_counted(tmp_path: Path) -> None:
    text = SMALL.replace('memory = "16M"', 'memory = "16M"\nirqfd = false')
    finished = launch(write(tmp_path, text), tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr
    [row] = finished.results["io"]
    assert row["interrupts_forwarded"] == row["interrupts"] == row["operations"] / 2
    assert row["traps"] == 2 * row["operations"], "an interrupt is no exit of the guest"


@pytest.mark.long
def test_a_blocked_interrupt_of_the_guest_is_recorded_by_its_viommu_which_tells_it(tmp_path: Path) -> None:
    """The guest takes the entries of a device away that still uses them: fault 0x22, by the vIOMMU's own interrupt."""
    text = SMALL.replace('"nic"', '"edu"').replace('rogue = ["A2"]', "")
    topology = resolve(parse(text))
    folder, plan = RunFolder(topology, tmp_path / "run"), make_plan(topology)
    with Supervisor(plan, folder) as supervisor:
        Scenario(topology, plan, supervisor, lambda _: None).run()
        command = supervisor.command
        assert command("vm0.guest", "interrupt_latency", bdf="00:03.0", count=1)
        command("vm0.guest", "forget_interrupts", bdf="00:03.0")
        with pytest.raises(CommandFailed, match="no answer"):
            command("vm0.guest", "interrupt_latency", bdf="00:03.0", count=1)
        # Before anybody asks for the records: the vIOMMU's fault event has had the kernel read them.
        assert "[INTR-REMAP] Request device [00:03.0]" in (tmp_path / "run" / "vm0.guest.log").read_text()
        records = command("vm0.guest", "faults")["records"]
        assert [(record["source"], record["reason"]) for record in records] == [("00:03.0", 0x22)]
        assert command("vm0.hypervisor", "counters")["interrupts_forwarded"] == 1
        assert supervisor.reconcile() == []
    folder.close()
