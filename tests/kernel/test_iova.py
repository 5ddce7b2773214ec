"""The IOVA allocator: where Linux's gives addresses, and that none is given twice."""

from __future__ import annotations

from errno import ENOSPC

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from viommu_actors.kernel.iova import IovaAllocator

PAGE = 4096
GIB = 1 << 30
MSI = (0xFEE0_0000, 0xFEF0_0000)
WINDOW = (0xC000_0000, 0xFEC0_0000)


def test_top_down_below_4_gib_as_linux() -> None:
    iovas = IovaAllocator(48, [MSI, WINDOW])
    assert [iovas.alloc(1) for _ in range(2)] == [0xFFFF_F000, 0xFFFF_E000]
    assert iovas.alloc(4) == 0xFFFF_8000, "aligned to its size"
    assert iovas.alloc(3) == 0xFFFF_4000, "rounded up to four pages"


def test_last_in_first_out_reuse() -> None:
    iovas = IovaAllocator(48)
    first, second = iovas.alloc(1), iovas.alloc(1)
    iovas.free(first, 1)
    iovas.free(second, 1)
    assert iovas.alloc(1) == second and iovas.alloc(1) == first


def test_reserved_ranges_are_skipped() -> None:
    iovas = IovaAllocator(32, [MSI, WINDOW])
    seen = [iovas.alloc(256) for _ in range(40)]
    for iova in seen:
        for first, end in (MSI, WINDOW):
            assert iova + 256 * PAGE <= first or end <= iova
    assert min(seen) < WINDOW[0]


def test_above_4_gib_only_when_below_is_full() -> None:
    iovas = IovaAllocator(33)
    assert [iovas.alloc(GIB // PAGE) for _ in range(3)] == [3 * GIB, 2 * GIB, GIB]
    high = iovas.alloc(GIB // PAGE)
    assert high == 7 * GIB
    iovas.free(3 * GIB, GIB // PAGE)
    assert iovas.alloc(1) == 7 * GIB - PAGE, "stays with the full mask"
    for expected in (5 * GIB, 4 * GIB, 3 * GIB):
        assert iovas.alloc(GIB // PAGE) == expected
    with pytest.raises(OSError) as error:
        iovas.alloc(GIB // PAGE)
    assert error.value.errno == ENOSPC


def test_cached_addresses_come_back_when_they_are_needed() -> None:
    iovas = IovaAllocator(16)
    taken = []
    with pytest.raises(OSError):
        while True:
            taken.append(iovas.alloc(1))
    assert len(taken) == 15 and 0 not in taken
    for iova in taken:
        iovas.free(iova, 1)
    assert iovas.alloc(8) == 8 * PAGE


def test_a_device_mask() -> None:
    iovas = IovaAllocator(48)
    iovas.free(iovas.alloc(1), 1)
    iovas.set_mask(28)
    assert iovas.alloc(1) == (1 << 28) - PAGE
    iovas.set_mask(32)
    assert iovas.alloc(1) < 1 << 28, "a mask only narrows"


class Iovas(RuleBasedStateMachine):
    """Never overlapping, never reserved, never page 0, always aligned."""

    def __init__(self) -> None:
        super().__init__()
        self.iovas = IovaAllocator(24, [(0x80_0000, 0x80_3000)])
        self.held: dict[int, int] = {}

    @rule(pages=st.one_of(st.integers(1, 8), st.integers(30, 200)))
    def alloc(self, pages: int) -> None:
        try:
            iova = self.iovas.alloc(pages)
        except OSError:
            return
        self.held[iova] = pages

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        iova = data.draw(st.sampled_from(sorted(self.held)))
        self.iovas.free(iova, self.held.pop(iova))

    @invariant()
    def disjoint(self) -> None:
        end = PAGE
        for iova, pages in sorted([*self.held.items(), (0x80_0000, 3)]):
            assert iova >= end
            assert iova == 0x80_0000 or iova % (PAGE << (pages - 1).bit_length()) == 0
            end = iova + pages * PAGE
        assert end <= 1 << 24


TestIovas = Iovas.TestCase
TestIovas.settings = settings(max_examples=50, deadline=None)
