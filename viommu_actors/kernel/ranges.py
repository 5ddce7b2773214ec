"""Free ranges of numbers (page frames, IOVA frames, bytes of a window), kept in order and merged."""

from __future__ import annotations

from bisect import bisect_left


class FreeRanges:
    """A set of integers, as sorted ranges that neither touch nor overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """(start, end) of each, ascending."""
        return list(zip(self._starts, self._ends, strict=True))

    @property
    def total(self) -> int:
        """How many integers are in the set."""
        return sum(self._ends) - sum(self._starts)

    def give(self, start: int, count: int) -> None:
        """Adds [start, start + count). Raises ValueError where a part of it is in already."""
        end = start + count
        index = bisect_left(self._starts, start)
        if (index < len(self._starts) and self._starts[index] < end) or (index and self._ends[index - 1] > start):
            raise ValueError(f"[{start:#x}, {end:#x}) is free already")
        joins_left = index > 0 and self._ends[index - 1] == start
        joins_right = index < len(self._starts) and self._starts[index] == end
        if joins_left and joins_right:
            self._ends[index - 1] = self._ends.pop(index)
            del self._starts[index]
        elif joins_left:
            self._ends[index - 1] = end
        elif joins_right:
            self._starts[index] = start
        else:
            self._starts.insert(index, start)
            self._ends.insert(index, end)

    def remove(self, start: int, end: int) -> None:
        """Takes out whatever of [start, end) is in the set."""
        for low, high in self.ranges:
            if low < end and start < high:
                self._cut(self._starts.index(low), max(low, start), min(high, end))

    def take_highest(self, count: int, align: int, limit: int) -> int | None:
        """Takes `count` aligned integers below `limit`, as high as they go; None where no range has them."""
        for index in range(len(self._starts) - 1, -1, -1):
            start = (min(self._ends[index], limit) - count) // align * align
            if start >= self._starts[index]:
                self._cut(index, start, start + count)
                return start
        return None

    def take_lowest(self, count: int, align: int) -> int | None:
        """Takes `count` aligned integers, as low as they go; None where no range has them."""
        for index, low in enumerate(self._starts):
            start = -(-low // align) * align
            if start + count <= self._ends[index]:
                self._cut(index, start, start + count)
                return start
        return None

    def _cut(self, index: int, start: int, end: int) -> None:
        low, high = self._starts[index], self._ends[index]
        if low == start and high == end:
            del self._starts[index], self._ends[index]
        elif low == start:
            self._starts[index] = end
        elif high == end:
            self._ends[index] = start
        else:
            self._ends[index] = start
            self._starts.insert(index + 1, end)
            self._ends.insert(index + 1, high)
