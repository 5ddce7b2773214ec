"""Translation through a unit: OpenVMM's and QEMU's cases by name, and what surrounds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vtd.conftest import Rig
from viommu_actors.spec.vtd import Access, Command, FaultReason, Reg, Status, TranslationType
from viommu_actors.vtd.tables import Context, TableFault

DEVICE = 0x0018


def test_translate_disabled_is_identity(rig: Any) -> None:
    machine = rig()
    assert machine.read(0x12345678) == (0x12345678, None)
    assert not machine.unit.translation_enabled
    assert machine.unit.counters == {"untranslated": 1, "translations": 1}


def test_translate_4_level_4k(rig: Any) -> None:
    machine = rig()
    machine.map(machine.context(DEVICE), 0x7F_1234_5000, 0x300000)
    machine.start()
    assert machine.read(0x7F_1234_5000) == (0x300000, None)
    assert machine.write(0x7F_1234_5ABC) == (0x300ABC, None)


def test_translate_3_level(rig: Any) -> None:
    machine = rig()
    machine.map(machine.context(DEVICE, width=39), 0x7F_1234_5000, 0x300000, width=39)
    machine.start()
    assert machine.read(0x7F_1234_5010) == (0x300010, None)
    assert machine.read(1 << 39).reason == FaultReason.ADDRESS_BEYOND_WIDTH


@pytest.mark.parametrize(("level", "size"), [(2, 1 << 21), (3, 1 << 30)])
def test_translate_large_page(rig: Any, level: int, size: int) -> None:
    machine = rig()
    machine.map(machine.context(DEVICE), 5 * size, 9 * size, level=level)
    machine.start()
    assert machine.read(5 * size + 0x1234) == (9 * size + 0x1234, None)
    assert machine.read(6 * size - 8) == (10 * size - 8, None)
    assert machine.unit.counters["iotlb_misses"] == 1


def test_translate_passthrough(rig: Any) -> None:
    machine = rig()
    machine.context(DEVICE, tt=TranslationType.PASS_THROUGH)
    machine.start()
    assert machine.write(0x7F_0000_1234) == (0x7F_0000_1234, None)
    assert machine.write(1 << 48).reason == FaultReason.ADDRESS_BEYOND_WIDTH
    assert machine.unit.context(DEVICE).pass_through


@pytest.mark.parametrize(
    ("tt", "options", "allowed"),
    [
        (0, {}, True),
        (1, {}, False),
        (1, {"device_iotlb": True}, True),
        (2, {}, True),
        (2, {"pass_through": False}, False),
        (3, {"device_iotlb": True}, False),
    ],
)
def test_translation_types(rig: Any, tt: int, options: dict[str, bool], allowed: bool) -> None:
    machine = rig(**options)
    machine.map(machine.context(DEVICE, tt=tt), 0x5000, 0x5000)
    machine.start()
    assert machine.read(0x5000).reason == (None if allowed else FaultReason.CONTEXT_INVALID)


def test_translate_root_not_present(rig: Any) -> None:
    machine = rig()
    machine.start()
    assert machine.read(0x5000) == (0x5000, FaultReason.ROOT_NOT_PRESENT)


def test_translate_context_not_present(rig: Any) -> None:
    machine = rig()
    machine.context(DEVICE)
    machine.start()
    assert machine.read(0x5000, source=0x20).reason == FaultReason.CONTEXT_NOT_PRESENT


def test_translate_pte_not_present(rig: Any) -> None:
    """An absent entry is a missing permission."""
    machine = rig()
    machine.context(DEVICE)
    machine.start()
    assert machine.read(0x5000).reason == FaultReason.READ_DENIED
    assert machine.write(0x5000).reason == FaultReason.WRITE_DENIED


def test_translate_write_to_read_only(rig: Any) -> None:
    machine = rig()
    machine.map(machine.context(DEVICE), 0x5000, 0x300000, Access.READ)
    machine.start()
    assert machine.write(0x5000).reason == FaultReason.WRITE_DENIED
    assert machine.read(0x5000) == (0x300000, None)
    assert machine.unit.translate(DEVICE, 0x5000, Access.BOTH).reason == FaultReason.WRITE_DENIED


def test_translate_directory_permission_restricts(rig: Any) -> None:
    machine = rig()
    table = machine.context(DEVICE)
    machine.map(table, 0x5000, 0x300000)
    machine.memory.write_u64(table, machine.memory.read_u64(table) & ~2)
    machine.start()
    assert machine.write(0x5000).reason == FaultReason.WRITE_DENIED
    assert machine.read(0x5000) == (0x300000, None)
    assert machine.write(0x5000).reason == FaultReason.WRITE_DENIED


def test_who_wants_nothing_gets_nothing(rig: Any) -> None:
    """A request without an access is treated as a read, cached or not."""
    machine = rig()
    machine.map(machine.context(DEVICE), 0x5000, 0x300000, Access.WRITE)
    machine.start()
    for _ in range(2):
        assert machine.unit.translate(DEVICE, 0x5000, Access.NONE).reason == FaultReason.READ_DENIED
        machine.write(0x5000)


@pytest.mark.parametrize(
    ("address", "reason"),
    [(0x1000, FaultReason.CONTEXT_INVALID), (0x5000, FaultReason.TABLE_ACCESS)],
)
def test_tables_outside_memory(rig: Any, address: int, reason: FaultReason) -> None:
    machine = rig()
    if reason == FaultReason.CONTEXT_INVALID:
        machine.context(DEVICE, table=0x8000_0000)
    else:
        machine.memory.write_u64(machine.context(DEVICE), 0x8000_0003)
    machine.start()
    assert machine.read(address).reason == reason


def test_root_and_context_table_outside_memory(rig: Any) -> None:
    machine = rig()
    machine.words(machine.root, (0x8000_0001, 0))
    machine.start()
    assert machine.read(0).reason == FaultReason.CONTEXT_TABLE_ACCESS
    machine.unit.write(Reg.RTADDR, 8, 0x8000_0000)
    machine.command(Command.SRTP)
    assert machine.read(0).reason == FaultReason.ROOT_TABLE_ACCESS


@pytest.mark.parametrize(("low", "high"), [(0x2, 0), (0xFFE, 0), (0, 1), (1 << 48, 0)])
def test_reserved_bits_of_a_root_entry(rig: Any, low: int, high: int) -> None:
    machine = rig()
    machine.context(DEVICE)
    machine.words(machine.root, (machine.memory.read_u64(machine.root) | low, high))
    machine.start()
    assert machine.read(0).reason == FaultReason.ROOT_RESERVED


@pytest.mark.parametrize(("low", "high"), [(0x10, 0), (0x800, 0), (1 << 48, 0), (0, 0x80), (0, 1 << 24), (0, 1 << 63)])
def test_reserved_bits_of_a_context_entry(rig: Any, low: int, high: int) -> None:
    machine = rig()
    machine.context(DEVICE)
    at = machine.context_at(DEVICE)
    machine.words(at, (machine.memory.read_u64(at) | low, machine.memory.read_u64(at + 8) | high))
    machine.start()
    assert machine.read(0).reason == FaultReason.CONTEXT_RESERVED


def test_request_in_the_interrupt_range_is_never_translated(rig: Any) -> None:
    """Not by a 4 KiB page, and not by a superpage around it that is cached."""
    machine = rig()
    table = machine.context(DEVICE)
    machine.map(table, 0xFEE0_0000, 0x40_0000, level=2)
    machine.map(table, 0xFED0_0000, 0x50_0000)
    machine.start()
    for _ in range(2):
        assert machine.read(0xFEE0_1000) == (0xFEE0_1000, None)
        assert machine.read(0xFEF0_0000) == (0x50_0000, None)
    assert machine.record() is None


def test_page_in_the_interrupt_range_faults(rig: Any) -> None:
    """All of a superpage, also where it is not in the range (section 3.14)."""
    machine = rig()
    table = machine.context(DEVICE)
    machine.map(table, 0x5000, 0xFEE0_1000)
    machine.map(table, 0x60_0000, 0xFEE0_0000, level=2)
    machine.map(table, 0x6000, 0xFEDF_F000)
    machine.start()
    assert machine.write(0x5000).reason == FaultReason.INTERRUPT_RANGE
    assert machine.write(0x7F_F000).reason == FaultReason.INTERRUPT_RANGE
    assert machine.write(0x6000) == (0xFEDF_F000, None)


def test_domains_share_what_they_share(rig: Any) -> None:
    """Two devices of one domain share cached pages, two domains share none."""
    machine = rig()
    table = machine.context(DEVICE, domain=1)
    machine.map(table, 0x5000, 0x300000)
    machine.context(0x20, domain=1, table=table)
    machine.map(machine.context(0x0100, domain=2), 0x5000, 0x400000)
    machine.start()
    assert machine.read(0x5000) == machine.read(0x5000, source=0x20) == (0x300000, None)
    assert machine.read(0x5000, source=0x0100) == (0x400000, None)
    assert machine.unit.counters["iotlb_misses"] == 2


def test_pass_through_does_not_use_pages_of_its_domain_id(rig: Any) -> None:
    machine = rig()
    machine.map(machine.context(DEVICE, domain=1), 0x5000, 0x300000)
    machine.context(0x20, domain=1, tt=TranslationType.PASS_THROUGH)
    machine.start()
    assert machine.read(0x5000) == (0x300000, None)
    for _ in range(2):
        assert machine.read(0x5000, source=0x20) == (0x5000, None)


def test_narrower_context_of_the_same_domain_is_held_to_its_width(rig: Any) -> None:
    machine = rig()
    machine.map(machine.context(DEVICE, domain=1), 1 << 40, 0x300000)
    machine.context(0x20, domain=1, width=39)
    machine.start()
    assert machine.read(1 << 40) == (0x300000, None)
    machine.read(0, source=0x20)
    assert machine.read(1 << 40, source=0x20).reason == FaultReason.ADDRESS_BEYOND_WIDTH


def test_te_rejected_without_rtps(rig: Any) -> None:
    """OpenVMM rejects it; the specification leaves it open, and here, as in QEMU, it is accepted."""
    machine = rig()
    machine.unit.write(Reg.GCMD, 4, Command.TE)
    assert machine.unit.read(Reg.GSTS, 4) == Status.TES
    assert machine.read(0).reason == FaultReason.ROOT_NOT_PRESENT


def test_unit_without_dma_translation_ignores_te(rig: Any) -> None:
    machine = rig(dma_translation=False)
    assert machine.command(Command.TE) == 0
    assert machine.read(0x5000) == (0x5000, None)


def test_iommu_testdev_legacy_pt_and_trans(rig: Any) -> None:
    """QEMU's iommu-testdev: 0x12345678 written at an IOVA is found at the expected physical address."""
    for tt, target in ((TranslationType.PASS_THROUGH, 0x5000), (TranslationType.MULTI_LEVEL, 0x300000)):
        machine = rig()
        machine.map(machine.context(DEVICE, tt=tt), 0x5000, 0x300000)
        machine.start()
        address, reason = machine.write(0x5000)
        assert reason is None
        machine.memory.write(address, (0x12345678).to_bytes(4, "little"))
        assert machine.memory.read(target, 4) == (0x12345678).to_bytes(4, "little")


ROOT_ENTRIES = ((0x4001, 0), (0x5001, 0), (0x4000, 0), (0x4003, 0), (0x4001, 1), (0x8000_0001, 0))
CONTEXT_ENTRIES = ((0x9001, 0x102), (0x9001, 0x202), (0xA001, 0x102), (0x9000, 0x102), (0x9003, 0x102), (0x9009, 0x102))
CHANGES = st.one_of(
    st.tuples(st.just(0x1000), st.sampled_from(ROOT_ENTRIES)),
    st.tuples(st.sampled_from([0x4000 + 16 * DEVICE, 0x5000 + 16 * DEVICE]), st.sampled_from(CONTEXT_ENTRIES)),
)


@given(st.lists(CHANGES, max_size=20))
def test_who_watches_a_context_sees_every_change_of_it(changes: list[tuple[int, tuple[int, int]]]) -> None:
    def seen(read: Callable[[], Context | None]) -> object:
        try:
            return read()
        except TableFault as fault:
            return fault.reason, fault.fault_disable

    machine = Rig()
    watched = machine.unit.watch(DEVICE)
    assert watched() is None, "translation is off"
    machine.start()
    for address, words in changes:
        machine.words(address, words)
        assert seen(watched) == seen(lambda: machine.unit.context(DEVICE))
