"""Interrupt remapping: formats, the table, source validation, the entry cache, faults (VT-d section 5.1)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vtd.conftest import DEVICE, OTHER, Rig
from viommu_actors.spec.vtd import Command, FaultReason, Fsts, InterruptEntryInvalidate, InterruptFaultRecord, Reg
from viommu_actors.spec.vtd_interrupts import DeliveryMode, Interrupt, InterruptEntry, InterruptRequest
from viommu_actors.vtd import Blocked, Compatible, Remapped

TABLE = 0x60_0000
#: 16 entries.
SIZE = 3


class IrRig(Rig):
    def __init__(self, eime: bool = False, table: int = TABLE, size: int = SIZE, **options: Any) -> None:
        super().__init__(intremap=True, **options)
        self.unit.write(Reg.IRTA, 8, table | eime << 11 | size)
        self.command(Command.SIRTP)
        self.command(Command.IRE)

    def entry(self, index: int, **fields: Any) -> None:
        self.words(TABLE + index * 16, InterruptEntry(**{"present": True} | fields).encode())

    def msi(self, handle: int, data: int = 0, shv: bool = False, requester: int | None = DEVICE) -> Any:
        address, _ = InterruptRequest(handle, subhandle_valid=shv).encode()
        return self.unit.remap_interrupt(requester, address, data)

    def interrupt_record(self) -> InterruptFaultRecord | None:
        high = self.unit.read(Reg.FRCD + 8, 8)
        return InterruptFaultRecord.decode(self.unit.read(Reg.FRCD, 8), high) if high >> 63 else None


def remapped(entry: int, vector: int, destination: int = 0, **fields: Any) -> Remapped:
    values = {"logical": False, "redirection_hint": False, "delivery_mode": 0, "level": False} | fields
    return Remapped(Interrupt(destination=destination, vector=vector, **values), entry)


def test_an_entry_says_what_is_delivered() -> None:
    rig = IrRig()
    rig.entry(
        5,
        vector=0xED,
        destination=0x0700,
        logical=True,
        redirection_hint=True,
        level=True,
        delivery_mode=DeliveryMode.LOWEST_PRIORITY,
    )
    expected = remapped(5, 0xED, 7, logical=True, redirection_hint=True, level=True, delivery_mode=1)
    assert rig.msi(5) == expected
    address, data = expected.interrupt.message()
    assert (address, data) == (0xFEE0700C, 0xC1ED)
    assert Interrupt.of_message(address, data) == expected.interrupt


@pytest.mark.parametrize(("eime", "destination"), [(False, 0x34), (True, 0x1234)])
def test_x2apic_destinations_need_extended_interrupt_mode(eime: bool, destination: int) -> None:
    rig = IrRig(eime=eime, eim=True)
    field = 0x1234 if eime else 0x3400
    rig.entry(0, vector=0x31, destination=field)
    assert rig.msi(0) == remapped(0, 0x31, destination)
    message = remapped(0, 0x31, destination).interrupt.message()
    assert Interrupt.of_message(*message).destination == destination


def test_index_without_and_with_subhandle() -> None:
    rig = IrRig()
    for index in range(16):
        rig.entry(index, vector=0x40 + index)
    assert rig.msi(4, data=0xABCD0003) == remapped(4, 0x44)
    assert rig.msi(4, data=3, shv=True) == remapped(7, 0x47)
    assert rig.msi(0xFFFF, data=3, shv=True) == remapped(2, 0x42)
    assert rig.msi(4, data=0x1_0003, shv=True) == Blocked(FaultReason.IR_REQUEST_RESERVED)


def test_without_remapping_every_message_passes_unchanged() -> None:
    rig = Rig(intremap=False)
    assert rig.command(Command.IRE) == 0
    assert rig.unit.remap_interrupt(DEVICE, 0xFEE00018, 0x55) == Compatible(0xFEE00018, 0x55)
    live = IrRig()
    live.entry(0, vector=0x33)
    assert live.msi(0) == remapped(0, 0x33)
    live.command(Command.IRE, False)
    assert live.msi(0) == Compatible(0xFEE00010, 0)


@pytest.mark.parametrize(
    ("eime", "cfi", "reason"),
    [
        (False, False, FaultReason.IR_COMPATIBILITY_BLOCKED),
        (False, True, None),
        (True, False, FaultReason.IR_COMPATIBILITY_BLOCKED),
        (True, True, FaultReason.IR_COMPATIBILITY_BLOCKED),
    ],
)
def test_compatibility_format(eime: bool, cfi: bool, reason: FaultReason | None) -> None:
    rig = IrRig(eime=eime, eim=True)
    rig.command(Command.CFI, cfi)
    outcome = rig.unit.remap_interrupt(DEVICE, 0xFEE01000, 0x55)
    assert outcome == (Compatible(0xFEE01000, 0x55) if reason is None else Blocked(reason))
    assert rig.interrupt_record() == (None if reason is None else (DEVICE, reason, 0))


def test_qemu_lets_the_compatibility_format_pass() -> None:
    rig = IrRig(quirks="qemu")
    assert rig.unit.remap_interrupt(DEVICE, 0xFEE01004, 0x8155) == Compatible(0xFEE01004, 0x8155)
    assert Compatible(0xFEE01004, 0x8155).interrupt == Interrupt(1, True, False, 1, 0x55, True)


@pytest.mark.parametrize(
    ("fields", "requester", "passes"),
    [
        ({"validation": 0, "source": OTHER}, DEVICE, True),
        ({"validation": 1, "source": DEVICE}, DEVICE, True),
        ({"validation": 1, "source": OTHER}, DEVICE, False),
        ({"validation": 1, "source": DEVICE, "qualifier": 0}, DEVICE + 4, False),
        ({"validation": 1, "source": DEVICE, "qualifier": 1}, DEVICE + 4, True),
        ({"validation": 1, "source": DEVICE, "qualifier": 1}, DEVICE + 2, False),
        ({"validation": 1, "source": DEVICE, "qualifier": 2}, DEVICE + 6, True),
        ({"validation": 1, "source": DEVICE, "qualifier": 2}, DEVICE + 1, False),
        ({"validation": 1, "source": DEVICE, "qualifier": 3}, DEVICE + 7, True),
        ({"validation": 2, "source": 0x0103}, 0x0200, True),
        ({"validation": 2, "source": 0x0103}, 0x0008, False),
        ({"validation": 2, "source": 0x0103}, 0x0400, False),
        ({"validation": 3, "source": DEVICE}, DEVICE, False),
    ],
)
def test_verify_sid(fields: dict[str, int], requester: int, passes: bool) -> None:
    rig = IrRig()
    rig.entry(1, vector=0x40, **fields)
    outcome = rig.msi(1, requester=requester)
    assert outcome == (remapped(1, 0x40) if passes else Blocked(FaultReason.IR_SOURCE_ID))
    assert rig.interrupt_record() == (None if passes else (requester, FaultReason.IR_SOURCE_ID, 1))


def test_qemu_swaps_start_and_end_of_a_bus_range() -> None:
    rig = IrRig(quirks="qemu")
    rig.entry(1, vector=0x40, validation=2, source=0x0301)
    assert rig.msi(1, requester=0x0200) == remapped(1, 0x40)


def test_no_devid_dropped() -> None:
    """OpenVMM's: who has no id passes only where none is checked; in QEMU, everywhere."""
    rig = IrRig()
    rig.entry(1, vector=0x40, validation=1, source=OTHER)
    rig.entry(2, vector=0x41)
    assert rig.msi(1, requester=None) == Blocked(FaultReason.IR_SOURCE_ID)
    assert rig.msi(2, requester=None) == remapped(2, 0x41)
    qemu = IrRig(quirks="qemu")
    qemu.entry(1, vector=0x40, validation=1, source=OTHER)
    assert qemu.msi(1, requester=None) == remapped(1, 0x40)


@pytest.mark.parametrize(
    ("low", "high", "reason"),
    [
        (0, 0, FaultReason.IR_NOT_PRESENT),
        (1 | 1 << 12, 0, FaultReason.IR_ENTRY_RESERVED),
        (1 | 1 << 24, 0, FaultReason.IR_ENTRY_RESERVED),
        (1, 1 << 20, FaultReason.IR_ENTRY_RESERVED),
        (1 | 1 << 15, 0, FaultReason.IR_ENTRY_RESERVED),
        (1, 1 << 18 | OTHER, FaultReason.IR_SOURCE_ID),
    ],
)
@pytest.mark.parametrize("fpd", [False, True])
def test_faults_found_in_an_entry(low: int, high: int, reason: FaultReason, fpd: bool) -> None:
    rig = IrRig()
    rig.words(TABLE + 0x30, (low | fpd << 1, high))
    assert rig.msi(3) == Blocked(reason)
    assert rig.interrupt_record() == (None if fpd else (DEVICE, reason, 3))
    assert rig.unit.read(Reg.FSTS, 4) == (0 if fpd else Fsts.PPF)


def test_faults_found_before_an_entry() -> None:
    rig = IrRig()
    assert rig.msi(16) == Blocked(FaultReason.IR_INDEX)
    assert rig.interrupt_record() == (DEVICE, FaultReason.IR_INDEX, 16)
    nowhere = IrRig(table=0x8000_0000)
    assert nowhere.msi(2) == Blocked(FaultReason.IR_TABLE_ACCESS)
    assert nowhere.interrupt_record() == (DEVICE, FaultReason.IR_TABLE_ACCESS, 2)


def test_fault_overflow_and_collapse_are_those_of_dma() -> None:
    rig = IrRig()
    rig.unit.write(Reg.FEADDR, 4, 0xFEE00000)
    rig.unit.write(Reg.FEDATA, 4, 0x31)
    rig.unit.write(Reg.FECTL, 4, 0)
    rig.msi(1)
    rig.msi(2)
    assert (rig.unit.read(Reg.FSTS, 4), rig.interrupts) == (Fsts.PPF, [(0xFEE00000, 0x31)])
    rig.msi(2, requester=OTHER)
    assert rig.unit.read(Reg.FSTS, 4) == Fsts.PPF | Fsts.PFO
    assert rig.interrupt_record() == (DEVICE, FaultReason.IR_NOT_PRESENT, 1)


def test_qemu_drops_without_a_record() -> None:
    rig = IrRig(quirks="qemu")
    assert rig.msi(1) == Blocked(FaultReason.IR_NOT_PRESENT)
    assert rig.unit.read(Reg.FSTS, 4) == 0


def test_entries_are_cached_until_invalidated() -> None:
    rig = IrRig()
    for index in (2, 3, 4):
        rig.entry(index, vector=0x40 + index)
        assert rig.msi(index).interrupt.vector == 0x40 + index
        rig.entry(index, vector=0x50 + index)
    rig.unit.write(Reg.IQA, 8, rig.queue)
    rig.command(Command.QIE)
    assert [rig.msi(index).interrupt.vector for index in (2, 3, 4)] == [0x42, 0x43, 0x44]
    rig.submit_and_wait(InterruptEntryInvalidate(True, 3, 1).encode())
    assert [rig.msi(index).interrupt.vector for index in (2, 3, 4)] == [0x52, 0x53, 0x44]
    rig.submit_and_wait(InterruptEntryInvalidate(False).encode())
    assert rig.msi(4).interrupt.vector == 0x54


def test_what_is_absent_is_not_cached() -> None:
    rig = IrRig(caching_mode=True)
    assert rig.msi(1) == Blocked(FaultReason.IR_NOT_PRESENT)
    rig.entry(1, vector=0x41)
    assert rig.msi(1) == remapped(1, 0x41)


def test_a_new_table_counts_once_latched() -> None:
    rig = IrRig()
    rig.entry(1, vector=0x41)
    assert rig.msi(1) == remapped(1, 0x41)
    rig.words(0x70_0010, InterruptEntry(True, vector=0x61).encode())
    rig.unit.write(Reg.IRTA, 8, 0x70_0000)
    assert rig.msi(1) == remapped(1, 0x41)
    rig.command(Command.SIRTP)
    assert rig.msi(1) == remapped(1, 0x61)
    assert rig.msi(2) == Blocked(FaultReason.IR_INDEX)
    rig.unit.reset()
    assert rig.msi(1) == Compatible(0xFEE00030, 0)


def test_whoever_keeps_routes_hears_of_changed_entries() -> None:
    rig = IrRig()
    heard: list[tuple[int, int]] = []
    unit = type(rig.unit)(rig.config, rig.memory, lambda address, data: None, None, lambda *call: heard.append(call))
    unit.write(Reg.IRTA, 8, TABLE | SIZE)
    heard.clear()
    unit.write(Reg.GCMD, 4, Command.SIRTP)
    unit.write(Reg.GCMD, 4, Command.IRE)
    unit.invalidate_interrupt_entries(False, 0, 0)
    assert heard == [(0, 0x10000)] * 3
    unit.invalidate_interrupt_entries(True, 7, 2)
    unit.invalidate_interrupt_entries(True, 7, 31)
    assert heard[3:] == [(4, 4), (0, 0x10000)]
