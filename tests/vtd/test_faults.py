"""Fault recording: the record, its status, overflow, suppression and the event."""

from __future__ import annotations

from typing import Any

import pytest

from viommu_actors.spec.vtd import EventControl, FaultReason, FaultRecord, Fsts, Reg, TranslationType

DEVICE = 0x0018


def faulty(rig: Any, **options: Any) -> Any:
    machine = rig(**options)
    machine.context(DEVICE)
    machine.context(0x0020)
    machine.start()
    return machine


def status(machine: Any) -> int:
    return int(machine.unit.read(Reg.FSTS, 4))


def test_record(rig: Any) -> None:
    machine = faulty(rig)
    machine.write(0x1234_5678)
    assert machine.record() == FaultRecord(DEVICE, FaultReason.WRITE_DENIED, 0x1234_5000, True)
    assert status(machine) == Fsts.PPF
    machine.clear_faults()
    machine.read(0x5000, source=0x20)
    assert machine.record() == FaultRecord(0x20, FaultReason.READ_DENIED, 0x5000, False)


def test_ppf_dynamic_frcd_hi_rw1c(rig: Any) -> None:
    """PPF follows the F bit, which is cleared by writing one; the record's contents stay."""
    machine = faulty(rig)
    machine.read(0x5000)
    machine.unit.write(Reg.FSTS, 4, Fsts.PPF)
    assert status(machine) == Fsts.PPF
    machine.unit.write(Reg.FRCD + 8, 8, (1 << 63) - 1)
    assert status(machine) == Fsts.PPF
    machine.unit.write(Reg.FRCD + 8, 8, 1 << 63)
    assert status(machine) == 0
    assert machine.unit.read(Reg.FRCD, 8) == 0x5000


def test_same_requester_is_collapsed_another_overflows(rig: Any) -> None:
    machine = faulty(rig)
    machine.read(0x5000)
    machine.write(0x6000)
    assert status(machine) == Fsts.PPF
    machine.write(0x7000, source=0x20)
    assert status(machine) == Fsts.PPF | Fsts.PFO
    assert machine.record().address == 0x5000
    machine.unit.write(Reg.FRCD + 12, 4, 1 << 31)
    machine.write(0x8000, source=0x20)
    assert machine.record() is None, "nothing is recorded while PFO is set"
    machine.unit.write(Reg.FSTS, 4, Fsts.PFO)
    machine.write(0x9000, source=0x20)
    assert machine.record().address == 0x9000
    counters = machine.unit.counters
    assert (counters["faults"], counters["faults_recorded"]) == (5, 2)
    assert (counters["faults_collapsed"], counters["faults_lost"]) == (1, 2)


def test_fpd_suppresses(rig: Any) -> None:
    """Qualified faults of the function leave no record, and are counted."""
    machine = rig()
    machine.context(DEVICE, fpd=True)
    machine.start()
    assert machine.write(0x5000).reason == FaultReason.WRITE_DENIED
    assert machine.record() is None and status(machine) == 0
    assert machine.unit.counters["faults_disabled"] == 1


@pytest.mark.parametrize(("quirks", "recorded"), [("spec", False), ("qemu", True)])
def test_fpd_and_reserved_bits_of_the_context(rig: Any, quirks: str, recorded: bool) -> None:
    """QEMU records reason 0xB all the same."""
    machine = rig(quirks=quirks)
    machine.context(DEVICE, fpd=True)
    at = machine.context_at(DEVICE)
    machine.memory.write_u64(at, machine.memory.read_u64(at) | 0x10)
    machine.start()
    machine.read(0x5000)
    assert (machine.record() is not None) == recorded


@pytest.mark.parametrize(("quirks", "recorded"), [("spec", True), ("qemu", False)])
def test_permission_failure_on_a_cached_page(rig: Any, quirks: str, recorded: bool) -> None:
    """It is blocked either way; QEMU 7.2 does not record it."""
    machine = rig(quirks=quirks)
    machine.map(machine.context(DEVICE), 0x5000, 0x300000, access=1)
    machine.start()
    machine.read(0x5000)
    assert machine.write(0x5000).reason == FaultReason.WRITE_DENIED
    assert (machine.record() is not None) == recorded
    assert machine.unit.counters["faults"] == 1


def arm(machine: Any, masked: bool) -> None:
    machine.unit.write(Reg.FEADDR, 4, 0xFEE0_1000)
    machine.unit.write(Reg.FEDATA, 4, 0x31)
    machine.unit.write(Reg.FECTL, 4, EventControl.IM if masked else 0)


def test_event_is_sent_once_until_it_is_served(rig: Any) -> None:
    machine = faulty(rig)
    arm(machine, masked=False)
    machine.read(0x5000)
    machine.read(0x6000, source=0x20)
    machine.read(0x7000, source=0x20)
    assert machine.interrupts == [(0xFEE0_1000, 0x31)]
    machine.clear_faults()
    machine.read(0x8000)
    assert len(machine.interrupts) == 2
    assert machine.unit.read(Reg.FECTL, 4) == 0


def test_masked_event_waits(rig: Any) -> None:
    machine = faulty(rig)
    arm(machine, masked=True)
    machine.read(0x5000)
    assert machine.interrupts == []
    assert machine.unit.read(Reg.FECTL, 4) == EventControl.IM | EventControl.IP
    machine.unit.write(Reg.FECTL, 4, 0)
    assert machine.interrupts == [(0xFEE0_1000, 0x31)]
    assert machine.unit.read(Reg.FECTL, 4) == 0


@pytest.mark.parametrize("quirks", ["spec", "qemu"])
def test_masked_event_is_forgotten_when_the_fault_was_served(rig: Any, quirks: str) -> None:
    """In QEMU only a write of FSTS has it looked at again."""
    machine = faulty(rig, quirks=quirks)
    arm(machine, masked=True)
    machine.read(0x5000)
    machine.unit.write(Reg.FRCD + 12, 4, 1 << 31)
    pending = EventControl.IP if quirks == "qemu" else 0
    assert machine.unit.read(Reg.FECTL, 4) == EventControl.IM | pending
    machine.unit.write(Reg.FSTS, 4, 0)
    machine.unit.write(Reg.FECTL, 4, 0)
    assert machine.interrupts == []


def test_pass_through_above_the_width(rig: Any) -> None:
    """The specification blocks it; QEMU does not look."""
    for quirks, reason in (("spec", FaultReason.ADDRESS_BEYOND_WIDTH), ("qemu", None)):
        machine = rig(quirks=quirks)
        machine.context(DEVICE, tt=TranslationType.PASS_THROUGH)
        machine.start()
        assert machine.read(1 << 50).reason == reason
