"""Device-TLB invalidations that devices owe an answer to (VT-d section 6.5.2.5, PCI Express 5.0 section 10.3).

A tag stands for one of them from its request until all of its completions have come, or it has timed out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Final

from viommu_actors.spec.ats import ITAGS, MAX_COMPLETIONS

#: invalidate_device(source, itag, first, shift): asks a device to forget its translations of 2^shift bytes.
InvalidateDevice = Callable[[int, int, int, int], None]


@dataclass
class Owed:
    """One invalidation that a device has not completed; `number` is used once only."""

    number: int
    source: int
    #: How many completions belong to it, once one has said so.
    expected: int | None = None
    received: int = 0


class DeviceTlbs:
    """What was asked of device-TLBs. Without `ask` no device has any, and an invalidation is complete at once."""

    def __init__(self, ask: InvalidateDevice | None, counters: Counter[str]) -> None:
        self._ask = ask
        self._counters = counters
        #: What devices owe an answer for, by tag.
        self.owed: Final[dict[int, Owed]] = {}
        self._numbers: Final = count()
        self._next_tag = 0

    @property
    def outstanding(self) -> list[int]:
        """Numbers of what is owed, each used once only: for who keeps the time."""
        return [owed.number for owed in self.owed.values()]

    def reset(self) -> None:
        self.owed.clear()

    def invalidate(self, source: int, first: int, shift: int, limit: int) -> bool:
        """Asks a device to forget a range; False while there is no tag, or while it owes `limit` answers already."""
        busy = sum(owed.source == source for owed in self.owed.values())
        if self._ask is None:
            return True
        if len(self.owed) == ITAGS or busy >= limit:
            return False
        while self._next_tag in self.owed:
            self._next_tag = (self._next_tag + 1) % ITAGS
        tag = self._next_tag
        # Tags go round, so that a completion that comes after its timeout meets no newer invalidation.
        self._next_tag = (tag + 1) % ITAGS
        # Listed before it is sent: a device within the process answers before `ask` returns.
        self.owed[tag] = Owed(next(self._numbers), source)
        self._ask(source, tag, first, shift)
        return True

    def completed(self, source: int, tags: int, copies: int) -> bool:
        """A device's completion for the tags of a vector; False where it owes none for one of them, or says
        otherwise than before how many belong together."""
        valid = bool(tags)
        expected = copies or MAX_COMPLETIONS
        for tag in range(ITAGS):
            if not tags >> tag & 1:
                continue
            owed = self.owed.get(tag)
            if owed is None or owed.source != source or owed.expected not in (None, expected):
                valid = False
                continue
            owed.expected = expected
            owed.received += 1
            if owed.received == expected:
                del self.owed[tag]
        return valid

    def expire(self, number: int) -> int | None:
        """Gives up what is owed under a number; the source id of who owed it, None where it has been answered."""
        for tag, owed in self.owed.items():
            if owed.number == number:
                del self.owed[tag]
                return owed.source
        return None
