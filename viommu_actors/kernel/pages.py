"""Physical page allocator: highest memory first, a page freed last is the first to be used again."""

from __future__ import annotations

from collections.abc import Iterable
from errno import ENOMEM

from viommu_actors.kernel.ranges import FreeRanges
from viommu_actors.memory import Memory

PAGE_SHIFT = 12
PAGE = 1 << PAGE_SHIFT
#: Physically contiguous, aligned to its size.
HUGEPAGE = 2 << 20
_ZERO = bytes(PAGE)
_NO_LIMIT = 1 << 64


class PageAllocator:
    """Hands out zeroed pages of the RAM it was given; knows what it handed out."""

    def __init__(self, memory: Memory, ram: Iterable[tuple[int, int]]) -> None:
        """`ram` holds (base, size) ranges in bytes; what is not a whole page is left unused."""
        self._memory = memory
        self._free = FreeRanges()
        for base, size in ram:
            first, end = -(-base >> PAGE_SHIFT), base + size >> PAGE_SHIFT
            if end > first:
                self._free.give(first, end - first)
        self._recent: list[int] = []
        self._allocated: dict[int, int] = {}

    @property
    def free_pages(self) -> int:
        return self._free.total + len(self._recent)

    def alloc(self, pages: int = 1, align: int = 1, limit: int = _NO_LIMIT) -> int:
        """Address of `pages` contiguous zeroed pages, all below `limit` bytes, aligned to `align` pages.

        Raises OSError(ENOMEM) where there are none.
        """
        if pages == 1 and align == 1 and self._recent and self._recent[-1] < limit:
            paddr = self._recent.pop()
        else:
            paddr = self._take(pages, align, limit >> PAGE_SHIFT) << PAGE_SHIFT
        self._allocated[paddr] = pages
        self._memory.write(paddr, _ZERO if pages == 1 else bytes(pages << PAGE_SHIFT))
        return paddr

    def reserve(self, pages: int, align: int) -> int:
        """As `alloc`, but for good, and what they hold is left as it is."""
        return self._take(pages, align, _NO_LIMIT >> PAGE_SHIFT) << PAGE_SHIFT

    def free(self, paddr: int, pages: int = 1) -> None:
        """Takes back exactly what `alloc` gave. Raises ValueError for anything else."""
        if self._allocated.get(paddr) != pages:
            raise ValueError(f"{pages} pages at {paddr:#x} were not allocated so")
        del self._allocated[paddr]
        if pages == 1:
            self._recent.append(paddr)
        else:
            self._free.give(paddr >> PAGE_SHIFT, pages)

    def _take(self, pages: int, align: int, limit: int) -> int:
        frame = self._free.take_highest(pages, align, limit)
        if frame is None and self._recent:
            for paddr in self._recent:
                self._free.give(paddr >> PAGE_SHIFT, 1)
            self._recent.clear()
            frame = self._free.take_highest(pages, align, limit)
        if frame is None:
            raise OSError(ENOMEM, f"no {pages} contiguous free pages")
        return frame
