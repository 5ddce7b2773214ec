"""IOMMU domains: what a context entry can point to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from errno import EFAULT, EINVAL
from typing import Protocol

from viommu_actors.kernel.invalidation import Invalidation
from viommu_actors.kernel.page_table import PageTable
from viommu_actors.kernel.pages import PageAllocator
from viommu_actors.memory import Memory
from viommu_actors.spec.vtd import (
    INTERRUPT_FIRST,
    INTERRUPT_LAST,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    Access,
    ContextEntry,
    IotlbGranularity,
    TranslationType,
    levels_of,
    width_code,
)

_BOTH = int(Access.BOTH)
#: flush_device(source, first, shift)
FlushDevice = Callable[[int, int, int], None]


class AnyDomain(Protocol):
    """What a device can be attached to."""

    id: int
    #: Source ids of the devices in it.
    devices: set[int]

    def context_entry(self) -> ContextEntry: ...


class PassThrough:
    """Device addresses are physical addresses (TT = 2)."""

    def __init__(self, number: int, width: int) -> None:
        """`width` is the largest adjusted guest address width that the unit supports (VT-d section 9.3)."""
        self.id = number
        self.devices: set[int] = set()
        self._width = width

    def context_entry(self) -> ContextEntry:
        return ContextEntry(True, False, TranslationType.PASS_THROUGH, 0, width_code(self._width), self.id)


class Domain:
    """An address space of its own in second-level page tables."""

    def __init__(
        self,
        number: int,
        width: int,
        memory: Memory,
        pages: PageAllocator,
        counters: Counter[str],
        invalidation: Invalidation,
        *,
        physical_width: int,
        large_pages: int,
        max_mask: int,
        flush_maps: bool,
        flush_device: FlushDevice,
    ) -> None:
        """`large_pages` as in CAP.SLLPS; `max_mask` is CAP.MAMV, -1 for a unit that cannot invalidate by page;
        `flush_maps` for one that caches what is not present (caching mode). `flush_device(source, first, shift)` makes
        a device-TLB forget 2^shift bytes."""
        self.id = number
        self.devices: set[int] = set()
        #: Those of them that keep translations themselves (ATS).
        self.device_tlbs: set[int] = set()
        self._flush_device = flush_device
        #: Inclusive ranges that never reach the tables: a device's interrupt messages.
        self.reserved = [(INTERRUPT_FIRST, INTERRUPT_LAST)]
        #: Bits of an I/O virtual address.
        self.width = width
        #: Bytes that were ever mapped, and unmapped again.
        self.mapped = self.unmapped = 0
        self._end = 1 << width
        self._physical_end = 1 << physical_width
        self._invalidation = invalidation
        self._max_mask = max_mask
        self._flush_maps = flush_maps
        self._code = width_code(width)
        largest_leaf = 3 if large_pages & 3 == 3 else 2 if large_pages & 1 else 1
        self._table = PageTable(memory, pages, counters, levels_of(self._code), largest_leaf, self._forget)

    def context_entry(self) -> ContextEntry:
        return ContextEntry(True, False, TranslationType.MULTI_LEVEL, self._table.top, self._code, self.id)

    @property
    def tables(self) -> list[int]:
        """Addresses of its page table pages."""
        return self._table.tables

    def map(self, iova: int, paddr: int, size: int, prot: int) -> None:
        """Maps whole pages; `prot` are bits of `Access`.

        Raises OSError with nothing changed: EINVAL for misaligned or empty ranges and for no access, EFAULT beyond
        the address widths, EEXIST where something is mapped already, ENOMEM without memory for tables.
        """
        self._enter(iova, paddr, size, prot)
        if self._flush_maps:
            self._flush(iova, size)

    def map_pieces(self, iova: int, pieces: Sequence[tuple[int, int]], prot: int) -> None:
        """Maps (paddr, size) pieces one behind the other from `iova` on, with one invalidation for all of them.

        Raises OSError as `map` does, with nothing mapped (Linux: iommu_map_sg).
        """
        end = iova
        try:
            for paddr, size in pieces:
                self._enter(end, paddr, size, prot)
                end += size
        except OSError:
            if end > iova:
                self.unmap(iova, end - iova)
            raise
        if self._flush_maps:
            self._flush(iova, end - iova)

    def _enter(self, iova: int, paddr: int, size: int, prot: int) -> None:
        if (iova | paddr | size) & PAGE_MASK or size <= 0 or not 0 < prot <= _BOTH:
            raise OSError(EINVAL, f"no mapping of {size:#x} bytes at {iova:#x} to {paddr:#x} with access {prot}")
        if iova + size > self._end or paddr + size > self._physical_end:
            raise OSError(EFAULT, f"mapping of {size:#x} bytes at {iova:#x} to {paddr:#x} exceeds the address width")
        self._table.map(iova, paddr, size, prot)
        self.mapped += size

    def unmap(self, iova: int, size: int) -> int:
        """Unmaps whatever is mapped in the range; returns its bytes. No access through it completes afterwards.

        Raises OSError(EINVAL) for a misaligned range or one that ends within a large page.
        """
        if (iova | size) & PAGE_MASK or size <= 0 or iova + size > self._end:
            raise OSError(EINVAL, f"no range of {size:#x} bytes at {iova:#x}")
        gone = self._table.unmap(iova, size)
        self.unmapped += gone
        return gone

    @property
    def live(self) -> int:
        """Bytes that the tables map, as they say now."""
        return self._table.mapped_bytes()

    def destroy(self) -> None:
        """Gives the tables back; no device is in the domain any more."""
        self._table.destroy()

    def _forget(self, iova: int, size: int) -> None:
        """What was mapped is gone: from the unit's caches first, so that no device is told of it again (Linux:
        iommu_flush_iotlb_psi, then iommu_flush_dev_iotlb)."""
        self._flush(iova, size)
        if self.device_tlbs:
            shift = PAGE_SHIFT + (iova >> PAGE_SHIFT ^ iova + size - 1 >> PAGE_SHIFT).bit_length()
            # One that does not answer leaves the domain meanwhile.
            for source in sorted(self.device_tlbs):
                self._flush_device(source, iova >> shift << shift, shift)

    def _flush(self, iova: int, size: int) -> None:
        """One invalidation that covers the range (Linux: iommu_flush_iotlb_psi). Without devices nothing is cached."""
        if not self.devices:
            return
        if size == PAGE_SIZE and self._max_mask >= 0:
            self._invalidation.iotlb_pages(self.id, iova, 0)
            return
        mask = (iova >> PAGE_SHIFT ^ iova + size - 1 >> PAGE_SHIFT).bit_length()
        if mask > self._max_mask:
            self._invalidation.iotlb(IotlbGranularity.DOMAIN, self.id)
        else:
            shift = mask + PAGE_SHIFT
            self._invalidation.iotlb_pages(self.id, iova >> shift << shift, mask)
