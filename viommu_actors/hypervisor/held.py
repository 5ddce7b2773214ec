"""What a shadow has mapped for its device: mappings that do not overlap, in address order."""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import NamedTuple

from viommu_actors.spec.vtd import Access


class Mapping(NamedTuple):
    """`size` bytes at guest-physical `gpa`, which the device reaches at `iova`."""

    iova: int
    gpa: int
    size: int
    access: Access

    @property
    def last(self) -> int:
        return self.iova + self.size - 1


class HeldMappings:
    """Found by address in logarithmic time."""

    def __init__(self) -> None:
        self._iovas: list[int] = []
        self._by_iova: dict[int, Mapping] = {}

    def __len__(self) -> int:
        return len(self._iovas)

    def all(self) -> list[Mapping]:
        """Every mapping, ascending."""
        return [self._by_iova[iova] for iova in self._iovas]

    def at(self, iova: int) -> Mapping | None:
        """The mapping that starts at `iova`."""
        return self._by_iova.get(iova)

    def overlapping(self, first: int, last: int) -> list[Mapping]:
        """Every mapping that overlaps first..last (inclusive), ascending."""
        begin, end = self._range(first, last)
        return [self._by_iova[iova] for iova in self._iovas[begin:end]]

    def add(self, mapping: Mapping) -> None:
        """Enters a mapping that overlaps none."""
        iova = mapping.iova
        insort(self._iovas, iova)
        self._by_iova[iova] = mapping

    def take(self, first: int, last: int) -> list[Mapping]:
        """Takes out and returns every mapping that overlaps first..last (inclusive), ascending."""
        begin, end = self._range(first, last)
        if begin == end:
            return []
        taken = [self._by_iova.pop(iova) for iova in self._iovas[begin:end]]
        del self._iovas[begin:end]
        return taken

    def _range(self, first: int, last: int) -> tuple[int, int]:
        """Places of the mappings that overlap first..last."""
        begin = bisect_right(self._iovas, first)
        if begin and self._by_iova[self._iovas[begin - 1]].last >= first:
            begin -= 1
        return begin, bisect_right(self._iovas, last, begin)
