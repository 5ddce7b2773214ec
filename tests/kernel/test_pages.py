"""The page allocator, and the free ranges beneath it, against models."""

from __future__ import annotations

from errno import ENOMEM

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from viommu_actors.kernel.pages import PAGE, PageAllocator
from viommu_actors.kernel.ranges import FreeRanges
from viommu_actors.memory import PhysicalMemory, Slot

HIGH = 0x10_0000_0000
FRAMES = 24


def allocator() -> tuple[PageAllocator, PhysicalMemory]:
    """24 dirty frames high and 8 low."""
    memory = PhysicalMemory(
        [
            Slot("low", 0, memoryview(bytearray(b"\xa5" * 8 * PAGE))),
            Slot("high", HIGH, memoryview(bytearray(b"\xa5" * FRAMES * PAGE))),
        ]
    )
    return PageAllocator(memory, [(0, 8 * PAGE), (HIGH, FRAMES * PAGE)]), memory


def test_highest_first_zeroed_and_reused_last_in_first_out() -> None:
    pages, memory = allocator()
    top = HIGH + (FRAMES - 1) * PAGE
    first, second = pages.alloc(), pages.alloc()
    assert (first, second) == (top, top - PAGE)
    assert not any(memory.read(first, PAGE))
    memory.write(first, b"dirty")
    pages.free(second)
    pages.free(first)
    assert pages.alloc() == first and pages.alloc() == second
    assert not any(memory.read(first, PAGE))


def test_alignment_limits_and_exhaustion() -> None:
    pages, _ = allocator()
    assert pages.alloc(8, align=8) % (8 * PAGE) == 0
    assert pages.alloc(limit=8 * PAGE) == 7 * PAGE
    assert pages.alloc(3, limit=8 * PAGE) == 4 * PAGE
    taken = []
    with pytest.raises(OSError) as error:
        while True:
            taken.append(pages.alloc())
    assert error.value.errno == ENOMEM
    for paddr in taken:
        pages.free(paddr)
    assert pages.alloc(16, align=8)


def test_ranges_that_are_not_whole_pages() -> None:
    memory = PhysicalMemory([Slot("low", 0, memoryview(bytearray(4 * PAGE)))])
    pages = PageAllocator(memory, [(1, 2 * PAGE), (3 * PAGE + 5, 100)])
    assert pages.free_pages == 1 and pages.alloc() == PAGE


@pytest.mark.parametrize(("paddr", "count"), [(HIGH, 1), (HIGH + (FRAMES - 1) * PAGE, 2), (0, 1)])
def test_only_what_was_allocated_can_be_freed(paddr: int, count: int) -> None:
    pages, _ = allocator()
    pages.free(pages.alloc())
    pages.alloc()
    with pytest.raises(ValueError, match="were not allocated so"):
        pages.free(paddr, count)


class Pages(RuleBasedStateMachine):
    """No page is handed out twice, and none is ever lost."""

    def __init__(self) -> None:
        super().__init__()
        self.pages, self.memory = allocator()
        self.held: dict[int, int] = {}

    @rule(count=st.integers(1, 5), align=st.sampled_from([1, 2, 4]), limit=st.sampled_from([8 * PAGE, 1 << 64]))
    def alloc(self, count: int, align: int, limit: int) -> None:
        try:
            paddr = self.pages.alloc(count, align, limit)
        except OSError:
            return
        assert paddr % (align * PAGE) == 0 and paddr + count * PAGE <= limit
        assert all(paddr + count * PAGE <= other or other + size * PAGE <= paddr for other, size in self.held.items())
        assert not any(self.memory.read(paddr, count * PAGE))
        self.memory.write(paddr, b"\xff" * count * PAGE)
        self.held[paddr] = count

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        paddr = data.draw(st.sampled_from(sorted(self.held)))
        self.pages.free(paddr, self.held.pop(paddr))

    @invariant()
    def nothing_lost(self) -> None:
        assert self.pages.free_pages + sum(self.held.values()) == FRAMES + 8


TestPages = Pages.TestCase
TestPages.settings = settings(max_examples=40, deadline=None)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_free_ranges_are_a_set(data: st.DataObject) -> None:
    ranges, model = FreeRanges(), set[int]()
    for _ in range(data.draw(st.integers(1, 25))):
        start, count = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 8))
        action = data.draw(st.sampled_from(["give", "remove", "highest", "lowest"]))
        block = set(range(start, start + count))
        if action == "give":
            if block & model:
                with pytest.raises(ValueError):
                    ranges.give(start, count)
            else:
                ranges.give(start, count)
                model |= block
        elif action == "remove":
            ranges.remove(start, start + count)
            model -= block
        else:
            align, limit = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.integers(0, 50))
            fits = [s for s in range(0, 50, align) if set(range(s, s + count)) <= model]
            if action == "highest":
                fits = [s for s in fits if s + count <= limit]
                assert ranges.take_highest(count, align, limit) == (max(fits) if fits else None)
            else:
                assert ranges.take_lowest(count, align) == (min(fits) if fits else None)
            if fits:
                start = max(fits) if action == "highest" else min(fits)
                model -= set(range(start, start + count))
        assert {n for low, high in ranges.ranges for n in range(low, high)} == model
        assert ranges.total == len(model)
        flat = [edge for pair in ranges.ranges for edge in pair]
        assert flat == sorted(set(flat))
