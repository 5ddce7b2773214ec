"""Layouts: what is encoded is decoded again, and fixed points from the specification and from Linux."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from viommu_actors.spec.vtd import (
    Capability,
    Ccmd,
    ContextCacheInvalidate,
    ContextEntry,
    DeviceTlbInvalidate,
    ExtendedCapability,
    FaultReason,
    FaultRecord,
    InterruptEntryInvalidate,
    InvalidationWait,
    IotlbInvalidate,
    IotlbRegister,
    RootEntry,
    context_reserved,
    level_shift,
    levels_of,
    pte,
    requester_id,
    root_reserved,
    width_code,
    width_of,
)

u16 = st.integers(0, 0xFFFF)
pages = st.integers(0, 2**36 - 1).map(lambda number: number << 12)
flag = st.booleans()


@given(st.builds(RootEntry, flag, pages))
def test_root_entry(entry: RootEntry) -> None:
    assert RootEntry.decode(*entry.encode()) == entry
    assert not root_reserved(*entry.encode(), 48)


@given(st.builds(ContextEntry, flag, flag, st.integers(0, 3), pages, st.integers(0, 7), u16))
def test_context_entry(entry: ContextEntry) -> None:
    assert ContextEntry.decode(*entry.encode()) == entry
    assert not context_reserved(*entry.encode(), 48)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_any_context_entry_is_its_fields_and_reserved_bits(low: int, high: int) -> None:
    again = ContextEntry.decode(low, high).encode()
    assert context_reserved(low, high, 64) == (again != (low, high) and again != (low, high & ~(0xF << 3)))


@given(st.builds(ContextCacheInvalidate, st.integers(0, 3), u16, u16, st.integers(0, 3)))
def test_context_cache_descriptor(descriptor: ContextCacheInvalidate) -> None:
    assert ContextCacheInvalidate.decode(*descriptor.encode()) == descriptor
    assert not ContextCacheInvalidate.reserved(*descriptor.encode())


@given(st.builds(IotlbInvalidate, st.integers(0, 3), u16, pages, st.integers(0, 63), flag, flag, flag))
def test_iotlb_descriptor(descriptor: IotlbInvalidate) -> None:
    assert IotlbInvalidate.decode(*descriptor.encode()) == descriptor
    assert not IotlbInvalidate.reserved(*descriptor.encode())


@given(st.builds(DeviceTlbInvalidate, u16, pages, flag, st.integers(0, 31)))
def test_device_tlb_descriptor(descriptor: DeviceTlbInvalidate) -> None:
    assert DeviceTlbInvalidate.decode(*descriptor.encode()) == descriptor
    assert not DeviceTlbInvalidate.reserved(*descriptor.encode())


@given(st.builds(InterruptEntryInvalidate, flag, u16, st.integers(0, 31)))
def test_interrupt_entry_descriptor(descriptor: InterruptEntryInvalidate) -> None:
    assert InterruptEntryInvalidate.decode(*descriptor.encode()) == descriptor
    assert not InterruptEntryInvalidate.reserved(*descriptor.encode())


@given(u16, st.integers(12, 63).flatmap(lambda shift: st.tuples(st.integers(0, (1 << 64 - shift) - 1), st.just(shift))))
def test_device_tlb_ranges(source: int, place: tuple[int, int]) -> None:
    number, shift = place
    # A range of 2^63 bytes or more in the upper half has no form of its own: all bits set is undefined.
    first = number << shift if shift < 63 else 0
    assert DeviceTlbInvalidate.of_range(source, first, shift).range == (first, shift)


def test_the_range_of_everything() -> None:
    assert DeviceTlbInvalidate.of_range(0x18, 0, 64).encode()[1] == 0x7FFF_FFFF_FFFF_F001
    assert DeviceTlbInvalidate.of_range(0x18, 0, 64).range == (0, 64)
    assert DeviceTlbInvalidate(0x18, 0xFFFF_FFFF_FFFF_F000, size=True).range == (0, 64)


@given(
    st.builds(
        InvalidationWait,
        flag,
        flag,
        flag,
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**46 - 1).map(lambda number: number << 2),
    )
)
def test_wait_descriptor(descriptor: InvalidationWait) -> None:
    assert InvalidationWait.decode(*descriptor.encode()) == descriptor
    assert not InvalidationWait.reserved(*descriptor.encode())


@given(st.builds(FaultRecord, u16, st.integers(0, 255), pages, flag, st.integers(0, 2)))
def test_fault_record(record: FaultRecord) -> None:
    assert FaultRecord.decode(*record.encode()) == record


@given(
    st.builds(
        Capability,
        st.sampled_from([4, 8, 16]),
        flag,
        st.sampled_from([(), (39,), (48,), (39, 48)]),
        st.integers(1, 64),
        st.integers(0, 0x3FF).map(lambda number: number << 4),
        st.integers(0, 15),
        flag,
        st.integers(1, 256),
        st.integers(0, 63),
        flag,
        flag,
    )
)
def test_capability(capability: Capability) -> None:
    assert Capability.decode(capability.encode()) == capability


@given(
    st.builds(
        ExtendedCapability,
        flag,
        flag,
        flag,
        flag,
        flag,
        flag,
        flag,
        st.integers(0, 0x3FF).map(lambda number: number << 4),
        st.integers(0, 15),
    )
)
def test_extended_capability(capability: ExtendedCapability) -> None:
    assert ExtendedCapability.decode(capability.encode()) == capability


def test_descriptors_as_linux_builds_them() -> None:
    """qi_flush_iotlb, qi_flush_context and the wait of qi_submit_sync (drivers/iommu/intel/dmar.c)."""
    assert IotlbInvalidate(3, 7, 0x12345000, 4, False, True, True).encode() == (0x7_00F2, 0x12345004)
    assert ContextCacheInvalidate(3, 7, 0x0318, 0).encode() == (0x0318_0007_0031, 0)
    assert InvalidationWait(status_write=True, data=2, address=0x1000).encode() == (0x2_0000_0025, 0x1000)
    assert InterruptEntryInvalidate(True, 5, 0).encode() == (0x5_0000_0014, 0)


def test_register_requests_are_descriptors_in_other_places() -> None:
    assert Ccmd.request(Ccmd.ICC | 3 << 61 | 1 << 32 | 0x318 << 16 | 7) == ContextCacheInvalidate(3, 7, 0x318, 1)
    assert Ccmd.done(Ccmd.ICC | 3 << 61, 3) == 3 << 61 | 3 << 59
    assert IotlbRegister.request(IotlbRegister.IVT | 3 << 60 | 7 << 32, 0x5009) == IotlbInvalidate(3, 7, 0x5000, 9)
    assert IotlbRegister.done(IotlbRegister.IVT | 2 << 60, 1) == 2 << 60 | 1 << 57


def test_numbers() -> None:
    assert requester_id(5, 3, 2) == 0x051A
    assert [level_shift(level) for level in (1, 2, 3, 4)] == [12, 21, 30, 39]
    assert (width_code(39), width_code(48)) == (1, 2)
    assert (width_of(1), width_of(2), levels_of(1), levels_of(2)) == (39, 48, 3, 4)
    assert pte(0x200000, 3, large=True) == 0x200083


def test_fault_texts_and_qualification() -> None:
    """Every reason has a text; those found before the context entry is read are always recorded."""
    assert all(reason.text for reason in FaultReason)
    always = {reason for reason in FaultReason if reason < 0x20 and not reason.qualified}
    assert always == {0x1, 0x8, 0x9, 0xA}
