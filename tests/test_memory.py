"""Physical memory: every access lies wholly in one slot, or is no access at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from viommu_actors.memory import PhysicalMemory, Slot, Unclaimed

PAGE = 0x1000
LOW, HIGH = 2 * PAGE, 1 << 32


@pytest.fixture
def memory() -> PhysicalMemory:
    """Two pages at 0x2000, one at 4 GiB."""
    return PhysicalMemory(
        [Slot("high", HIGH, memoryview(bytearray(PAGE))), Slot("low", LOW, memoryview(bytearray(2 * PAGE)))]
    )


@pytest.mark.parametrize("base", [LOW, LOW + PAGE, LOW + 2 * PAGE - 16, HIGH, HIGH + PAGE - 16])
def test_words_and_bytes_are_the_same_memory(memory: PhysicalMemory, base: int) -> None:
    memory.write(base, bytes(range(16)))
    low, high = 0x0706050403020100, 0x0F0E0D0C0B0A0908
    assert (memory.read_u64(base), memory.read_u64(base + 8)) == (low, high)
    assert memory.read_pair(base) == (low, high)
    memory.write_u64(base, high)
    assert memory.read(base, 16) == bytes(range(8, 16)) * 2


ACCESSES: dict[str, tuple[int, Callable[[PhysicalMemory, int], Any]]] = {
    "read": (24, lambda memory, address: memory.read(address, 24)),
    "write": (24, lambda memory, address: memory.write(address, bytes(24))),
    "read_u64": (8, lambda memory, address: memory.read_u64(address)),
    "write_u64": (8, lambda memory, address: memory.write_u64(address, 1)),
    "read_pair": (16, lambda memory, address: memory.read_pair(address)),
}


@pytest.mark.parametrize("kind", ACCESSES)
def test_outside_of_a_slot_or_across_its_end_nothing_answers(memory: PhysicalMemory, kind: str) -> None:
    length, access = ACCESSES[kind]
    beyond = [
        0,
        LOW - 8,
        LOW + 2 * PAGE - length + 8,
        LOW + 2 * PAGE,
        HIGH - 8,
        HIGH + PAGE,
        1 << 63,
        (1 << 64) - 8,
        (1 << 64) + LOW,
    ]
    for address in beyond:
        assert not memory.claims(address, length)
        with pytest.raises(Unclaimed) as refused:
            access(memory, address)
        assert (refused.value.address, refused.value.length) == (address, length)
    for base, size in ((LOW, 2 * PAGE), (HIGH, PAGE)):
        assert memory.claims(base, length)
        access(memory, base)
        access(memory, base + size - length)


def test_nothing_answers_where_there_is_no_slot() -> None:
    memory = PhysicalMemory()
    for _, access in ACCESSES.values():
        with pytest.raises(Unclaimed):
            access(memory, 0)


def test_released_memory_is_gone_and_lets_its_owner_close() -> None:
    owner = bytearray(PAGE)
    memory = PhysicalMemory([Slot("low", 0, memoryview(owner))])
    memory.release()
    assert memory.slots == ()
    with pytest.raises(Unclaimed):
        memory.read(0, 1)
