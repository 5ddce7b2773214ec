"""Address translation services: what a device is told, and whose translated addresses pass."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vtd.conftest import DEVICE, OTHER, Rig
from viommu_actors.spec.ats import EVERYTHING, TranslationEntry, decode_range, encode_range
from viommu_actors.spec.tlp import AddressType, CompletionStatus
from viommu_actors.spec.vtd import Access, FaultReason, FaultRecord, TranslationType

IOVA, TARGET = 0x1234_5000, 0x7000
NOTHING = TranslationEntry(IOVA, 12, 0)


def machine_of(tt: int = TranslationType.DEVICE_IOTLB, **options: Any) -> tuple[Rig, int]:
    rig = Rig(devices=True, **{"device_iotlb": True} | options)
    table = rig.context(DEVICE, tt=tt)
    rig.map(table, IOVA, TARGET)
    rig.start(queue=True)
    return rig, table


@given(st.integers(12, 63), st.integers(0, (1 << 51) - 1))
def test_ranges(shift: int, page: int) -> None:
    first = page << 12 >> shift << shift
    assert decode_range(encode_range(first, shift)) == (first, shift)


def test_the_largest_range() -> None:
    assert decode_range(encode_range(0, EVERYTHING)) == (0, EVERYTHING)


@given(st.integers(0, 3), st.booleans(), st.booleans(), st.sampled_from([12, 21, 30]), st.integers(0, 99))
def test_entries(access: int, untranslated: bool, snooped: bool, shift: int, number: int) -> None:
    entry = TranslationEntry(number << shift, shift, access, untranslated, snooped)
    assert TranslationEntry.decode(entry.encode()) == entry
    assert len(entry.encode()) == 8


def test_an_entry_is_sent_most_significant_byte_first() -> None:
    assert TranslationEntry(0x1234_5678_9000, 12, 3).encode() == bytes.fromhex("0000123456789003")
    assert TranslationEntry(0x4020_0000, 21, 1).encode() == bytes.fromhex("00000000402ff801")


def test_a_mapped_page_is_told() -> None:
    rig, table = machine_of()
    agent = rig.unit.translation_agent
    assert agent.translate(DEVICE, IOVA, False) == TranslationEntry(TARGET, 12, Access.BOTH)
    assert agent.translate(DEVICE, IOVA, True) == TranslationEntry(TARGET, 12, Access.READ)
    rig.map(table, IOVA, TARGET, Access.WRITE)
    assert agent.translate(DEVICE, IOVA, False) == TranslationEntry(TARGET, 12, Access.WRITE)
    rig.map(table, 0x4000_0000, 0x20_0000, level=2)
    assert agent.translate(DEVICE, 0x4000_3000, False) == TranslationEntry(0x20_0000, 21, Access.BOTH)


def test_what_is_not_mapped_is_no_fault() -> None:
    rig, _ = machine_of(aw_bits=39)
    agent = rig.unit.translation_agent
    answer = agent.translate(DEVICE, IOVA + 0x1000, False)
    assert isinstance(answer, TranslationEntry) and answer.access == 0
    assert agent.translate(DEVICE, 1 << 39, False) == TranslationEntry(1 << 39, 12, 0)
    assert rig.record() is None


def test_a_mapping_that_is_gone_is_not_told_although_the_iotlb_holds_it() -> None:
    rig, table = machine_of()
    assert rig.read(IOVA).address == TARGET
    rig.memory.write_u64(rig.map(table, IOVA, TARGET), 0)
    assert rig.read(IOVA).address == TARGET
    answer = rig.unit.translation_agent.translate(DEVICE, IOVA, False)
    assert isinstance(answer, TranslationEntry) and answer.access == 0


def test_the_interrupt_range_is_for_untranslated_writes() -> None:
    rig, _ = machine_of()
    answer = rig.unit.translation_agent.translate(DEVICE, 0xFEE0_0000, False)
    assert answer == TranslationEntry(0xFEE0_0000, 12, Access.WRITE, untranslated_only=True)


def test_broken_tables_abort() -> None:
    rig, table = machine_of(aw_bits=39)
    rig.memory.write_u64(rig.map(table, IOVA, TARGET), TARGET | 1 << 45 | 3)
    assert rig.unit.translation_agent.translate(DEVICE, IOVA, False) is CompletionStatus.COMPLETER_ABORT
    record = FaultRecord(DEVICE, FaultReason.TABLE_RESERVED, IOVA, False, AddressType.TRANSLATION_REQUEST)
    assert rig.record() == record


@pytest.mark.parametrize("access", [Access.READ, Access.WRITE, Access.BOTH])
def test_a_translated_request_passes_with_any_address(access: Access) -> None:
    rig, _ = machine_of()
    assert rig.unit.translation_agent.admit(DEVICE, 0x10_0000, access) is None
    assert rig.record() is None
    assert rig.unit.counters["translated_requests"] == 1


@pytest.mark.parametrize("tt", [TranslationType.MULTI_LEVEL, TranslationType.PASS_THROUGH])
def test_without_tt_01_both_kinds_are_blocked(tt: TranslationType) -> None:
    rig, _ = machine_of(tt)
    agent = rig.unit.translation_agent
    assert agent.admit(DEVICE, TARGET, Access.WRITE) is FaultReason.TRANSLATION_BLOCKED
    assert rig.record() == FaultRecord(DEVICE, 0xD, TARGET, True, AddressType.TRANSLATED)
    rig.clear_faults()
    assert agent.translate(DEVICE, IOVA, False) is CompletionStatus.UNSUPPORTED_REQUEST
    assert rig.record() == FaultRecord(DEVICE, 0xD, IOVA, False, AddressType.TRANSLATION_REQUEST)


def test_a_device_without_context_entry_is_blocked() -> None:
    rig, _ = machine_of()
    rig.context(OTHER, present=False)
    assert rig.unit.translation_agent.admit(OTHER, TARGET, Access.READ) is FaultReason.CONTEXT_NOT_PRESENT
    assert rig.record() == FaultRecord(OTHER, 2, TARGET, False, AddressType.TRANSLATED)


def test_fault_disable_keeps_the_record_out_and_the_request_too() -> None:
    rig, _ = machine_of()
    rig.context(OTHER, fpd=True)
    assert rig.unit.translation_agent.admit(OTHER, TARGET, Access.READ) is FaultReason.TRANSLATION_BLOCKED
    assert rig.record() is None


def test_the_service_is_there_only_with_translation_on_and_device_tlbs_offered() -> None:
    rig, _ = machine_of()
    assert rig.unit.translation_agent.serves
    rig.command(1 << 31, False)
    assert not rig.unit.translation_agent.serves
    rig, _ = machine_of(TranslationType.MULTI_LEVEL, device_iotlb=False)
    assert not rig.unit.translation_agent.serves
