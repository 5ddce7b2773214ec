"""When what is owed for too long is given up."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Generic, TypeVar

K = TypeVar("K")


class Deadlines(Generic[K]):
    """Of whatever has a key while it is owed; each gets `timeout` seconds from when it was first seen."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        #: Monotonic seconds by what was owed at the last look.
        self.ends: Final[dict[K, float]] = {}

    def expired(self, owed: Collection[K], now: float) -> list[K]:
        """Which of all that is owed at `now`, in monotonic seconds, is over; its owner forgets that."""
        if not owed:
            self.ends.clear()
            return []
        self._look(owed, now)
        over = [key for key, end in self.ends.items() if end <= now]
        for key in over:
            del self.ends[key]
        return over

    def watch(self, owed: Collection[K], now: float) -> float | None:
        """Looks at all that is owed at `now`; when the first of it is over, None where nothing is owed."""
        self._look(owed, now)
        return min(self.ends.values(), default=None)

    def _look(self, owed: Collection[K], now: float) -> None:
        ends = {key: self.ends.get(key, now + self._timeout) for key in owed}
        self.ends.clear()
        self.ends.update(ends)
