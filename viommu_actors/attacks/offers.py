"""The owner's side of attacks on a driver's buffers: memory that a kernel gives to a device in some way.

Each kind is one thing that drivers do, or do wrong. The pages are guarded with fresh random content; whatever was
offered is taken back by `end`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from errno import EADDRINUSE, EADDRNOTAVAIL
from typing import NamedTuple

from viommu_actors.attacks.guard import Guard
from viommu_actors.kernel.dma import Direction, Dma
from viommu_actors.kernel.domain import Domain
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.pages import PAGE
from viommu_actors.spec import pci
from viommu_actors.spec.vtd import ADDRESS_FIELD, PTE_SIZE, TABLE_ENTRIES, level_shift, levels_of

#: A small buffer, as a driver's command or status block is.
_SMALL = 256
_ATTEMPTS = 64
#: Pages of a block in which a faulty device's addresses go astray; a power of two.
BLOCK = 128
Ranges = Collection[tuple[int, int]]


class Offer(NamedTuple):
    """What the device is told: an address of its own, and the guarded physical pages behind it."""

    iova: int
    pages: list[int]


class _Mapping(NamedTuple):
    dma: Dma
    iova: int
    size: int
    direction: Direction

    def undo(self) -> None:
        self.dma.unmap(self.iova, self.size, self.direction)


class Offers:
    """Buffers of one kernel's devices, one offer at a time."""

    def __init__(self, kernel: Kernel, guard: Guard) -> None:
        self._kernel = kernel
        self._guard = guard
        #: what `end` takes back: mappings, entries that were cleared (place, entry), pages (address, count)
        self._live: list[_Mapping] = []
        self._cleared: list[tuple[int, bytes]] = []
        self._pages: list[tuple[int, int]] = []
        self._kinds: dict[str, Callable[[int, Ranges], Offer]] = {
            "read only": lambda bdf, avoid: self._mapped(bdf, Direction.TO_DEVICE, avoid),
            "write only": lambda bdf, avoid: self._mapped(bdf, Direction.FROM_DEVICE, avoid),
            "both ways": lambda bdf, avoid: self._mapped(bdf, Direction.BIDIRECTIONAL, avoid),
            "unmapped": lambda bdf, avoid: self._unmapped(bdf),
            "reused": lambda bdf, avoid: self._reused(bdf),
            "small": lambda bdf, avoid: self._small(bdf),
            "last of a range": lambda bdf, avoid: self._last_of_a_range(bdf),
            "among others": lambda bdf, avoid: self._among_others(bdf),
        }

    def offer(self, bdf: int, kind: str, avoid: Ranges = ()) -> Offer:
        """Gives a buffer to the device. Raises OSError where that cannot be, KeyError for another kind.

        Kinds: "read only", "write only" and "both ways" as DMA directions are, outside of the (IOVA, size) ranges in
        `avoid`; "unmapped": given and taken back; "reused": the same, and its address given out again, read only, for
        another buffer, where addresses are given out; "small": the first 256 bytes of a page; "last of a range": a
        page behind which nothing is mapped, of which the next physical page is guarded; "among others": the first page
        of an aligned block of `BLOCK` pages, of which all others are guarded.
        """
        self.end()
        return self._kinds[kind](bdf, avoid)

    def take_back(self) -> None:
        """Unmaps the buffer that was offered last; it stays guarded, with fresh content."""
        self._live.pop().undo()
        self._guard.guard_afresh([self._pages[-1][0]])

    def clear_entry(self, bdf: int, iova: int) -> None:
        """Clears the page table entry of an offered page and invalidates nothing, as a buggy driver does.

        The page is the kernel's again and gets fresh content. Nothing is cleared where devices pass.
        """
        iommu = self._kernel.iommu
        domain = None if iommu is None else iommu.attached(self._kernel.device(bdf))
        if isinstance(domain, Domain):
            place = entry_of(self._kernel, domain, iova)
            memory = self._kernel.machine.memory
            self._cleared.append((place, memory.read(place, PTE_SIZE)))
            memory.write(place, bytes(PTE_SIZE))
        self._guard.guard_afresh([self._pages[-1][0]])

    def end(self) -> None:
        """Takes back all of the offer."""
        while self._cleared:  # an unmap is to find what was mapped
            self._kernel.machine.memory.write(*self._cleared.pop())
        while self._live:
            self._live.pop().undo()
        while self._pages:
            self._kernel.pages.free(*self._pages.pop())

    # --- kinds

    def _mapped(self, bdf: int, direction: Direction, avoid: Ranges) -> Offer:
        for _ in range(_ATTEMPTS):
            page = self._alloc()
            iova = self._map(bdf, page, PAGE, direction)
            if not any(base <= iova < base + size for base, size in avoid):
                return Offer(iova, self._guard.guard_afresh([page]))
        raise OSError(EADDRINUSE, f"each address that {pci.format_bdf(bdf)} was given is to be avoided")

    def _unmapped(self, bdf: int) -> Offer:
        page = self._alloc()
        iova = self._map(bdf, page, PAGE, Direction.BIDIRECTIONAL)
        self._live.pop().undo()
        return Offer(iova, self._guard.guard_afresh([page]))

    def _reused(self, bdf: int) -> Offer:
        old = self._unmapped(bdf)
        physical = old.iova == old.pages[0]
        for _ in range(_ATTEMPTS):
            if self._map(bdf, self._alloc(), PAGE, Direction.TO_DEVICE) == old.iova or physical:
                return old
        raise OSError(EADDRNOTAVAIL, f"the address {old.iova:#x} was not given out again")

    def _small(self, bdf: int) -> Offer:
        page = self._alloc()
        return Offer(self._map(bdf, page, _SMALL, Direction.BIDIRECTIONAL), self._guard.guard_afresh([page]))

    def _last_of_a_range(self, bdf: int) -> Offer:
        page = self._alloc(2)
        # Addresses are given out from the top: what was given before this one, and taken back, lies behind it.
        behind = self._map(bdf, page + PAGE, PAGE, Direction.BIDIRECTIONAL)
        iova = self._map(bdf, page, PAGE, Direction.BIDIRECTIONAL)
        self._live.pop(-2).undo()
        if iova + PAGE != behind:
            raise OSError(EADDRNOTAVAIL, f"what lies behind {iova:#x} is not known to be unmapped")
        return Offer(iova, self._guard.guard_afresh([page + PAGE]))

    def _among_others(self, bdf: int) -> Offer:
        page = self._alloc(BLOCK, align=BLOCK)
        others = list(range(page + PAGE, page + BLOCK * PAGE, PAGE))
        return Offer(self._map(bdf, page, PAGE, Direction.BIDIRECTIONAL), self._guard.guard_afresh(others))

    # --- what they are made of

    def _alloc(self, count: int = 1, align: int = 1) -> int:
        page = self._kernel.pages.alloc(count, align)
        self._pages.append((page, count))
        return page

    def _map(self, bdf: int, page: int, size: int, direction: Direction) -> int:
        dma = self._kernel.dma(self._kernel.device(bdf))
        iova = dma.map(page, size, direction)
        self._live.append(_Mapping(dma, iova, size, direction))
        return iova


def entry_of(kernel: Kernel, domain: Domain, iova: int) -> int:
    """Physical address of the entry that maps a 4 KiB page (VT-d section 9.8)."""
    entry = domain.context_entry()
    table = entry.table
    for level in range(levels_of(entry.width_code), 1, -1):
        place = table + _offset(iova, level)
        table = int.from_bytes(kernel.machine.memory.read(place, PTE_SIZE), "little") & ADDRESS_FIELD
    return table + _offset(iova, 1)


def _offset(iova: int, level: int) -> int:
    return (iova >> level_shift(level)) % TABLE_ENTRIES * PTE_SIZE
