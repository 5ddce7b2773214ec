"""Second-level page tables in memory: 3 or 4 levels, pages of 4 KiB, 2 MiB and 1 GiB.

Like Linux's drivers/iommu/intel/iommu.c: a table goes when an unmapped range covers all that it maps, and its page is
used again only after the invalidation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from errno import EEXIST, EINVAL
from struct import pack, unpack

from viommu_actors.kernel.pages import PageAllocator
from viommu_actors.memory import Memory
from viommu_actors.spec.vtd import (
    ADDRESS_FIELD,
    LEVEL_BITS,
    PAGE_SHIFT,
    PAGE_SIZE,
    PTE_ACCESS,
    PTE_LARGE,
    PTE_SIZE,
    TABLE_ENTRIES,
    level_shift,
)

_INDEX = TABLE_ENTRIES - 1
#: What one table of leaves maps: 2 MiB.
_REGION_SHIFT = PAGE_SHIFT + LEVEL_BITS


class PageTable:
    """One domain's translations. Sizes are in bytes; every address is page aligned."""

    def __init__(
        self,
        memory: Memory,
        pages: PageAllocator,
        counters: Counter[str],
        levels: int,
        largest_leaf: int,
        flush: Callable[[int, int], None],
    ) -> None:
        """`largest_leaf` is the highest level with leaves; `flush(iova, size)` invalidates what hardware cached."""
        self._memory = memory
        self._pages = pages
        self._counters = counters
        self._levels = levels
        self._largest_leaf = largest_leaf
        self._flush = flush
        self.top = pages.alloc()
        self._tables = {self.top}
        # The table of leaves used last: the next page is mostly beside it.
        self._region = -1
        self._leaves = 0

    @property
    def tables(self) -> list[int]:
        """Addresses of the pages that the tables stand in."""
        return sorted(self._tables)

    def map(self, iova: int, paddr: int, size: int, access: int) -> None:
        """Maps with the largest pages that alignment allows.

        Raises OSError with nothing changed: EEXIST where something is mapped already, ENOMEM without tables.
        """
        if size == PAGE_SIZE and iova >> _REGION_SHIFT == self._region:
            memory = self._memory
            slot = self._leaves + (iova >> PAGE_SHIFT & _INDEX) * PTE_SIZE
            if memory.read_u64(slot):
                raise OSError(EEXIST, f"I/O virtual address {iova:#x} is mapped already")
            memory.write_u64(slot, paddr | access)
            self._counters["pte_writes"] += 1
            return
        done = 0
        try:
            while done < size:
                done += self._map_some(iova + done, paddr + done, size - done, access)
        except OSError:
            if done:
                self.unmap(iova, done)
            raise

    def unmap(self, iova: int, size: int) -> int:
        """Clears every leaf in the range, and flushes if there was one; returns how many bytes were mapped.

        Raises OSError(EINVAL), with nothing changed, where an end of the range lies within a large page.
        """
        if size == PAGE_SIZE and iova >> _REGION_SHIFT == self._region:
            memory = self._memory
            slot = self._leaves + (iova >> PAGE_SHIFT & _INDEX) * PTE_SIZE
            if not memory.read_u64(slot):
                return 0
            memory.write_u64(slot, 0)
            self._counters["pte_writes"] += 1
            self._flush(iova, PAGE_SIZE)
            return PAGE_SIZE
        for edge in (iova, iova + size):
            if self._within_large(edge):
                raise OSError(EINVAL, f"{edge:#x} lies within a large page")
        dropped: list[int] = []
        cleared = self._clear(self.top, self._levels, 0, iova, iova + size, dropped)
        if cleared or dropped:
            self._flush(iova, size)
        self._release(dropped)
        return cleared

    def mapped_bytes(self) -> int:
        """What all leaves map together, by a walk of the tables."""
        return self._mapped_below(self.top, self._levels)

    def _mapped_below(self, table: int, level: int) -> int:
        entries = unpack(f"<{TABLE_ENTRIES}Q", self._memory.read(table, PAGE_SIZE))
        found = 0
        for entry in filter(None, entries):
            leaf = level == 1 or entry & PTE_LARGE
            found += 1 << level_shift(level) if leaf else self._mapped_below(entry & ADDRESS_FIELD, level - 1)
        return found

    def destroy(self) -> None:
        """Gives every table back. Nothing may use them any more, nor hold them in a cache."""
        self._release(self.tables)

    def _map_some(self, iova: int, paddr: int, size: int, access: int) -> int:
        """Maps one large page, or small ones up to the end of their table; returns the bytes."""
        level = self._leaf_level(iova, paddr, size)
        table = self.top
        for at in range(self._levels, 1, -1):
            slot = table + (iova >> level_shift(at) & _INDEX) * PTE_SIZE
            entry = self._memory.read_u64(slot)
            if at <= level and not entry:
                self._memory.write_u64(slot, paddr | access | PTE_LARGE)
                self._counters["pte_writes"] += 1
                return 1 << level_shift(at)
            # Where tables stand already, a page goes into them in smaller ones.
            table = self._below(slot, entry, iova)
        self._region, self._leaves = iova >> _REGION_SHIFT, table
        return self._map_run(table, iova, paddr, size, access)

    def _map_run(self, table: int, iova: int, paddr: int, size: int, access: int) -> int:
        index = iova >> PAGE_SHIFT & _INDEX
        count = min(TABLE_ENTRIES - index, size >> PAGE_SHIFT)
        slot = table + index * PTE_SIZE
        if any(self._memory.read(slot, count * PTE_SIZE)):
            raise OSError(EEXIST, f"I/O virtual addresses from {iova:#x} are mapped already")
        first = paddr | access
        entries = range(first, first + (count << PAGE_SHIFT), PAGE_SIZE)
        self._memory.write(slot, pack(f"<{count}Q", *entries))
        self._counters["pte_writes"] += count
        return count << PAGE_SHIFT

    def _leaf_level(self, iova: int, paddr: int, size: int) -> int:
        level = 1
        while level < self._largest_leaf:
            larger = 1 << level_shift(level + 1)
            if (iova | paddr) & larger - 1 or size < larger:
                break
            level += 1
        return level

    def _below(self, slot: int, entry: int, iova: int) -> int:
        """The table that the entry in `slot` leads to, a new one if it is empty."""
        if entry & PTE_LARGE:
            raise OSError(EEXIST, f"I/O virtual address {iova:#x} is mapped already")
        if not entry:
            entry = self._pages.alloc()
            self._tables.add(entry)
            self._memory.write_u64(slot, entry | PTE_ACCESS)
            self._counters["pte_writes"] += 1
        return entry & ADDRESS_FIELD

    def _within_large(self, address: int) -> bool:
        """Whether a large page begins before `address` and ends behind it."""
        if address >> level_shift(self._levels + 1):
            return False
        table = self.top
        for at in range(self._levels, 1, -1):
            entry = self._memory.read_u64(table + (address >> level_shift(at) & _INDEX) * PTE_SIZE)
            if entry & PTE_LARGE:
                return bool(address & (1 << level_shift(at)) - 1)
            if not entry:
                return False
            table = entry & ADDRESS_FIELD
        return False

    def _clear(
        self, table: int, level: int, base: int, first: int, end: int, dropped: list[int], unlinked: bool = False
    ) -> int:
        """Clears [first, end) in the table that maps from `base` on; returns the bytes of the leaves it held.

        Tables that map nothing else are unlinked and put into `dropped`; what an `unlinked` one holds stays as it is.
        """
        shift = level_shift(level)
        low = max(first - base, 0) >> shift
        count = min(-(-(end - base) >> shift), TABLE_ENTRIES) - low
        slot = table + low * PTE_SIZE
        cleared = 0
        for index, entry in enumerate(unpack(f"<{count}Q", self._memory.read(slot, count * PTE_SIZE))):
            if not entry:
                continue
            start = base + (low + index << shift)
            leaf = level == 1 or entry & PTE_LARGE
            whole = first <= start and start + (1 << shift) <= end
            if whole and not unlinked:
                self._memory.write_u64(slot + index * PTE_SIZE, 0)
                self._counters["pte_writes"] += 1
            if leaf:
                cleared += 1 << shift
                continue
            child = entry & ADDRESS_FIELD
            cleared += self._clear(child, level - 1, start, first, end, dropped, whole or unlinked)
            if whole:
                dropped.append(child)
        return cleared

    def _release(self, tables: list[int]) -> None:
        for table in tables:
            self._tables.discard(table)
            self._pages.free(table)
        if self._leaves in tables:
            self._region = -1
