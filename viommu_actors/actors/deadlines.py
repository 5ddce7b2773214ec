"""When what is owed for too long is given up."""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

K = TypeVar("K")


class Deadlines(Generic[K]):
    """Of whatever has a key while it is owed; each gets `timeout` seconds from when it was first seen."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._ends: dict[K, float] = {}

    def expired(self, owed: Collection[K], now: float) -> list[K]:
        """Which of all that is owed at `now`, in monotonic seconds, is over; its owner forgets that."""
        if not owed:
            self._ends.clear()
            return []
        ends = {key: self._ends.get(key, now + self._timeout) for key in owed}
        self._ends = {key: end for key, end in ends.items() if end > now}
        return [key for key, end in ends.items() if end <= now]

    def watch(self, owed: Collection[K], now: float) -> float | None:
        """Looks at all that is owed at `now`; when the first of it is over, None where nothing is owed."""
        self._ends = {key: self._ends.get(key, now + self._timeout) for key in owed}
        return min(self._ends.values(), default=None)

    def __bool__(self) -> bool:
        """Whether anything was owed at the last look."""
        return bool(self._ends)
