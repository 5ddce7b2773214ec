"""The DMA API: makes memory reachable for a device, and unreachable again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import IntEnum
from errno import EINVAL, EIO
from typing import Protocol

from viommu_actors.kernel.iova import IovaAllocator
from viommu_actors.kernel.pages import PAGE, PageAllocator
from viommu_actors.spec.vtd import Access

_OFFSET = PAGE - 1


class Direction(IntEnum):
    """Who writes a buffer (Linux: enum dma_data_direction)."""

    BIDIRECTIONAL = 0
    TO_DEVICE = 1
    FROM_DEVICE = 2


#: What a device may do with a buffer, by direction. Plain integers: an IntFlag costs microseconds to combine.
_ACCESS = (int(Access.BOTH), int(Access.READ), int(Access.WRITE))


class Dma(Protocol):
    """DMA of one device. Sizes and addresses are in bytes."""

    def set_mask(self, bits: int) -> None:
        """The device drives `bits` address bits only (Linux: dma_set_mask_and_coherent)."""
        ...

    def map(self, paddr: int, size: int, direction: Direction) -> int:
        """Address by which the device reaches the buffer until `unmap`.

        Raises OSError: ENOSPC no addresses left, ENOMEM no page tables, EIO beyond the device's mask.
        """
        ...

    def unmap(self, iova: int, size: int, direction: Direction) -> None:
        """Ends a mapping; afterwards no access through it can complete. Raises ValueError for what is not mapped."""
        ...

    def map_sg(self, segments: Sequence[tuple[int, int]], direction: Direction) -> list[int]:
        """Address of each (paddr, size) segment of a scattered buffer, until `unmap_sg` (Linux: dma_map_sg).

        Raises OSError as `map` does, with nothing mapped, and EINVAL where there is no segment.
        """
        ...

    def unmap_sg(self, iovas: Sequence[int], sizes: Sequence[int], direction: Direction) -> None:
        """Ends what `map_sg` gave, as `unmap` does for one buffer."""
        ...

    def alloc_coherent(self, size: int) -> tuple[int, int]:
        """Zeroed memory for both sides, and its address for the device: (paddr, iova)."""
        ...

    def free_coherent(self, size: int, paddr: int, iova: int) -> None:
        """Gives back what `alloc_coherent(size)` gave."""
        ...


class MappedDomain(Protocol):
    """The part of an IOMMU domain that the DMA API uses."""

    def map(self, iova: int, paddr: int, size: int, prot: int) -> None: ...

    def map_pieces(self, iova: int, pieces: Sequence[tuple[int, int]], prot: int) -> None: ...

    def unmap(self, iova: int, size: int) -> int: ...


class DirectDma:
    """No translation between device and memory: the address is the physical one."""

    def __init__(self, pages: PageAllocator, counters: Counter[str]) -> None:
        self._pages = pages
        self._counters = counters
        self._end = 1 << 64

    def set_mask(self, bits: int) -> None:
        self._end = 1 << bits

    def map(self, paddr: int, size: int, direction: Direction) -> int:
        if paddr + size > self._end:
            raise OSError(EIO, f"buffer at {paddr:#x} is beyond the device's DMA mask")
        self._counters["dma_maps"] += 1
        return paddr

    def unmap(self, iova: int, size: int, direction: Direction) -> None:
        self._counters["dma_unmaps"] += 1

    def map_sg(self, segments: Sequence[tuple[int, int]], direction: Direction) -> list[int]:
        if not segments:
            raise OSError(EINVAL, "a scattered buffer without a segment")
        for paddr, size in segments:
            if paddr + size > self._end:
                raise OSError(EIO, f"segment at {paddr:#x} is beyond the device's DMA mask")
        self._counters["dma_maps"] += 1
        return [paddr for paddr, _ in segments]

    def unmap_sg(self, iovas: Sequence[int], sizes: Sequence[int], direction: Direction) -> None:
        self._counters["dma_unmaps"] += 1

    def alloc_coherent(self, size: int) -> tuple[int, int]:
        paddr = self._pages.alloc(_pages(size), limit=self._end)
        return paddr, paddr

    def free_coherent(self, size: int, paddr: int, iova: int) -> None:
        self._pages.free(paddr, _pages(size))


class TranslatedDma:
    """Mappings in the page tables of the device's domain, one `map` an I/O virtual range."""

    def __init__(
        self, domain: MappedDomain, iovas: IovaAllocator, pages: PageAllocator, counters: Counter[str]
    ) -> None:
        """`iovas` belongs to the domain: devices of one group share both."""
        self._domain = domain
        self._iovas = iovas
        self._pages = pages
        self._counters = counters

    def set_mask(self, bits: int) -> None:
        self._iovas.set_mask(bits)

    def map(self, paddr: int, size: int, direction: Direction) -> int:
        offset = paddr & _OFFSET
        pages = (offset + size + _OFFSET) >> 12
        iova = self._iovas.alloc(pages)
        try:
            self._domain.map(iova, paddr - offset, pages << 12, _ACCESS[direction])
        except OSError:
            self._iovas.free(iova, pages)
            raise
        self._counters["dma_maps"] += 1
        return iova + offset

    def unmap(self, iova: int, size: int, direction: Direction) -> None:
        offset = iova & _OFFSET
        pages = (offset + size + _OFFSET) >> 12
        iova -= offset
        if self._domain.unmap(iova, pages << 12) != pages << 12:
            raise ValueError(f"unmap of {pages} pages at {iova:#x} that were not all mapped")
        self._iovas.free(iova, pages)
        self._counters["dma_unmaps"] += 1

    def map_sg(self, segments: Sequence[tuple[int, int]], direction: Direction) -> list[int]:
        """One range for all segments, a page or more each, and one invalidation (Linux: iommu_dma_map_sg)."""
        if not segments:
            raise OSError(EINVAL, "a scattered buffer without a segment")
        pieces = [(paddr & ~_OFFSET, _pages((paddr & _OFFSET) + size) << 12) for paddr, size in segments]
        pages = sum(size for _, size in pieces) >> 12
        base = self._iovas.alloc(pages)
        try:
            self._domain.map_pieces(base, pieces, _ACCESS[direction])
        except OSError:
            self._iovas.free(base, pages)
            raise
        self._counters["dma_maps"] += 1
        iovas = []
        for (paddr, _), (_, size) in zip(segments, pieces, strict=True):
            iovas.append(base + (paddr & _OFFSET))
            base += size
        return iovas

    def unmap_sg(self, iovas: Sequence[int], sizes: Sequence[int], direction: Direction) -> None:
        """One unmap from the first segment to the end of the last, as they lie one behind the other."""
        self.unmap(iovas[0], iovas[-1] + sizes[-1] - iovas[0], direction)

    def alloc_coherent(self, size: int) -> tuple[int, int]:
        pages = _pages(size)
        paddr = self._pages.alloc(pages)
        try:
            return paddr, self.map(paddr, pages << 12, Direction.BIDIRECTIONAL)
        except OSError:
            self._pages.free(paddr, pages)
            raise

    def free_coherent(self, size: int, paddr: int, iova: int) -> None:
        pages = _pages(size)
        self.unmap(iova, pages << 12, Direction.BIDIRECTIONAL)
        self._pages.free(paddr, pages)


def _pages(size: int) -> int:
    return (size + _OFFSET) >> 12
