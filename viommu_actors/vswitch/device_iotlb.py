"""What a back end was told that it may access: the device-IOTLB of vhost (DPDK, lib/vhost/iotlb.c)."""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import Final

from viommu_actors.spec.vhost import Access

#: Ranges held; the one that was told first makes room for the next.
CAPACITY: Final = 2048


class DeviceIotlb:
    """Ranges of addresses with the leave that each gives (`Access`). They do not overlap: what was told last holds."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        #: first address -> (last, leave), in the order in which they were told; and the first addresses, sorted
        self._ranges: dict[int, tuple[int, int]] = {}
        self._starts: list[int] = []

    def __len__(self) -> int:
        return len(self._starts)

    def update(self, iova: int, size: int, access: Access) -> None:
        """It may access these bytes from here on."""
        self.invalidate(iova, size)
        if len(self._starts) >= self._capacity:
            self._drop(next(iter(self._ranges)))
        self._ranges[iova] = iova + size - 1, int(access)
        insort(self._starts, iova)

    def invalidate(self, iova: int, size: int) -> None:
        """Forgets each range that has a byte of these."""
        last = iova + size - 1
        at = bisect_right(self._starts, last) - 1
        while at >= 0 and self._ranges[self._starts[at]][0] >= iova:
            self._drop(self._starts[at])
            at -= 1

    def clear(self) -> None:
        """Forgets all."""
        self._ranges.clear()
        self._starts.clear()

    def missing(self, iova: int, size: int) -> int | None:
        """The first of these bytes of which nothing was told; None where there is none."""
        end = iova + size
        while iova < end:
            found = self._find(iova)
            if found is None:
                return iova
            iova = found[0] + 1
        return None

    def allows(self, iova: int, size: int, access: int) -> bool:
        """Whether it may access all of these bytes so."""
        end = iova + size
        while iova < end:
            found = self._find(iova)
            if found is None or access & ~found[1]:
                return False
            iova = found[0] + 1
        return True

    def _find(self, iova: int) -> tuple[int, int] | None:
        """(last, leave) of the range that holds an address."""
        at = bisect_right(self._starts, iova) - 1
        if at < 0:
            return None
        found = self._ranges[self._starts[at]]
        return found if found[0] >= iova else None

    def _drop(self, start: int) -> None:
        del self._ranges[start]
        del self._starts[bisect_right(self._starts, start) - 1]
