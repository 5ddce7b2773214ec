"""Memory of an application for its devices: zones of hugepages, and a pool of packet buffers made of them.

Nothing is mapped here: an address for the devices is known of each hugepage from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import ENOMEM
from typing import NamedTuple

from viommu_actors.app.system import HUGEPAGE


class Hugepage(NamedTuple):
    """By user address, and by the address that devices use."""

    vaddr: int
    iova: int


class Zone(NamedTuple):
    """Bytes that are contiguous by either address."""

    vaddr: int
    iova: int
    size: int


class Heap:
    """Gives out zones; none is ever given back."""

    def __init__(self, hugepages: Sequence[Hugepage]) -> None:
        self._hugepages = tuple(hugepages)
        self._used = [0] * len(self._hugepages)

    def reserve(self, size: int, align: int) -> Zone:
        """`align` is a power of two up to that of a hugepage. Raises OSError(ENOMEM) where none has room."""
        for index, page in enumerate(self._hugepages):
            start = -(-self._used[index] // align) * align
            if start + size <= HUGEPAGE:
                self._used[index] = start + size
                return Zone(page.vaddr + start, page.iova + start, size)
        raise OSError(ENOMEM, f"no hugepage has {size} bytes left")


class Mbuf:
    """A packet buffer: whose it is, where a packet lies in it, and how many bytes of it are one."""

    __slots__ = ("iova", "length", "pool", "vaddr")

    def __init__(self, pool: Mempool, vaddr: int, iova: int) -> None:
        self.pool = pool
        self.vaddr = vaddr
        self.iova = iova
        self.length = 0

    def free(self) -> None:
        """Back to its pool."""
        self.pool.put(self)


class Mempool:
    """`count` buffers, of which each has room for a packet of `size` bytes."""

    def __init__(self, heap: Heap, count: int, buffer: int, headroom: int = 0) -> None:
        """Buffers of so many bytes, a power of two; a packet leaves `headroom` before it to what a device puts there.

        Raises OSError(ENOMEM).
        """
        self.size = buffer - headroom
        zones = [heap.reserve(buffer, buffer) for _ in range(count)]
        self._free = [Mbuf(self, zone.vaddr + headroom, zone.iova + headroom) for zone in zones]

    @property
    def available(self) -> int:
        return len(self._free)

    def get(self) -> Mbuf | None:
        """A buffer; None when all are in use."""
        return self._free.pop() if self._free else None

    def put(self, mbuf: Mbuf) -> None:
        self._free.append(mbuf)
