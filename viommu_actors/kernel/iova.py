"""IOVA allocator after Linux's drivers/iommu/iova.c: top-down, first below 4 GiB, with LIFO caches for small sizes.

So a freed address is the next to be used: a stale mapping shows in the next buffer.
"""

from __future__ import annotations

from collections.abc import Iterable
from errno import ENOSPC

from viommu_actors.kernel.ranges import FreeRanges

_SHIFT = 12
#: Sizes of 2^0..2^5 pages are cached (IOVA_RANGE_CACHE_MAX_SIZE).
_CACHED_ORDERS = 6
#: What a CPU's two magazines and the depot hold of one size: (2 + 32) magazines of 127 (IOVA_MAG_SIZE).
_CACHE_LIMIT = 34 * 127
_LIMIT_32 = 1 << 32


class IovaAllocator:
    """I/O virtual addresses of one domain. Page 0 is never used."""

    def __init__(self, width: int, reserved: Iterable[tuple[int, int]] = ()) -> None:
        """Addresses of `width` bits without the `reserved` [first, end) byte ranges."""
        self._free = FreeRanges()
        self._free.give(1, (1 << width - _SHIFT) - 1)
        for first, end in reserved:
            self._free.remove(first >> _SHIFT, -(-end >> _SHIFT))
        self._caches: list[list[int]] = [[] for _ in range(_CACHED_ORDERS)]
        self._mask_end = 1 << width
        self._limit = min(self._mask_end, _LIMIT_32)
        #: Ranges that are handed out.
        self.live = 0

    def set_mask(self, bits: int) -> None:
        """A device of the domain reaches addresses of `bits` bits only."""
        self._flush_caches()
        self._mask_end = min(self._mask_end, 1 << bits)
        self._limit = min(self._mask_end, _LIMIT_32)

    def alloc(self, pages: int) -> int:
        """A size-aligned address for `pages` pages. Raises OSError(ENOSPC) where there is none."""
        order = (pages - 1).bit_length()
        if order < _CACHED_ORDERS:
            cache = self._caches[order]
            if cache:
                self.live += 1
                return cache.pop()
            pages = 1 << order
        found = self._search(pages, 1 << order)
        self.live += 1
        return found

    def free(self, iova: int, pages: int) -> None:
        """Takes back what `alloc(pages)` gave."""
        self.live -= 1
        order = (pages - 1).bit_length()
        if order < _CACHED_ORDERS:
            cache = self._caches[order]
            if len(cache) < _CACHE_LIMIT:
                cache.append(iova)
                return
            pages = 1 << order
        self._free.give(iova >> _SHIFT, pages)

    def _search(self, pages: int, align: int) -> int:
        frame = self._free.take_highest(pages, align, self._limit >> _SHIFT)
        if frame is None:
            self._flush_caches()
            frame = self._free.take_highest(pages, align, self._limit >> _SHIFT)
        if frame is None and self._limit < self._mask_end:
            # Linux: once the space below 4 GiB is used up, a device stays with its full mask.
            self._limit = self._mask_end
            frame = self._free.take_highest(pages, align, self._limit >> _SHIFT)
        if frame is None:
            raise OSError(ENOSPC, f"no I/O virtual addresses left for {pages} pages")
        return frame << _SHIFT

    def _flush_caches(self) -> None:
        for order, cache in enumerate(self._caches):
            for iova in cache:
                self._free.give(iova >> _SHIFT, 1 << order)
            cache.clear()
