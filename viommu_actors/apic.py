"""The local APIC of a machine's one CPU: which interrupts it takes, and when.

Intel SDM volume 3, sections 11.6.2 (destinations) and 11.11 (message signalled interrupts).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from viommu_actors.spec.vtd_interrupts import DeliveryMode, Interrupt

#: The only CPU: its APIC ID, and its bit in a flat logical destination.
APIC_ID = 0
LOGICAL_ID = 1 << APIC_ID
_BROADCAST = (0xFF, 0xFFFF_FFFF)
#: Vectors 0 to 15 are illegal (section 11.5.2).
_FIRST_LEGAL = 16
#: Interrupts a second that devices may raise by one vector, and how many may come at once before that counts. No honest
#: device comes near: it raises one for each transfer, or for several, and a transfer takes longer than this.
RATE: Final = 20_000
BURST: Final = 500


class PendingInterrupts:
    """Vectors that wait for the CPU, in order of arrival: one that comes again meanwhile is the same interrupt.

    A vector that devices raise too often waits for its turn, and none of its interrupts gets lost by that: the last
    one is taken later. `clock` in seconds. `counters`: interrupts_coalesced, those that found their vector waiting;
    interrupts_throttled, those that had to wait for their turn.
    """

    def __init__(
        self, clock: Callable[[], float], counters: Counter[str], rate: float = RATE, burst: float = BURST
    ) -> None:
        self._clock = clock
        self._rate = rate
        self._burst = burst
        self._counters = counters
        #: by vector, whether it has its turn already
        self._waiting: dict[int, bool] = {}
        self._held = 0
        #: by vector, how many may still come at once, and when that was so
        self._credit: dict[int, tuple[float, float]] = {}

    def raise_by_device(self, vector: int) -> bool:
        """A device's message; whether its vector was not waiting already."""
        if vector in self._waiting:
            self._counters["interrupts_coalesced"] += 1
            return False
        self._waiting[vector] = turn = self._has_turn(vector)
        if not turn:
            self._held += 1
            self._counters["interrupts_throttled"] += 1
        return True

    def raise_by_machine(self, vector: int) -> bool:
        """The same of a part of the machine that is trusted, and not limited."""
        if vector in self._waiting:
            self._counters["interrupts_coalesced"] += 1
            return False
        self._waiting[vector] = True
        return True

    def take(self) -> int | None:
        """The next vector to be handled; None while there is none, or its turn has not come."""
        if not self._waiting or (len(self._waiting) == self._held and not self._release()):
            return None
        vector = next(vector for vector, turn in self._waiting.items() if turn)
        del self._waiting[vector]
        return vector

    @property
    def due(self) -> float | None:
        """Seconds until a vector has its turn; None where none waits for it."""
        if not self._held:
            return None
        now = self._clock()
        return max(0.0, min(self._turn_at(vector) - now for vector, turn in self._waiting.items() if not turn))

    def _release(self) -> bool:
        """Gives their turn to the vectors that have it by now; whether there are any."""
        for vector, turn in self._waiting.items():
            if not turn and self._has_turn(vector):
                self._waiting[vector] = True
                self._held -= 1
        return len(self._waiting) > self._held

    def _has_turn(self, vector: int) -> bool:
        now = self._clock()
        credit, since = self._credit.get(vector, (self._burst, now))
        credit = min(self._burst, credit + (now - since) * self._rate)
        self._credit[vector] = (credit - 1 if credit >= 1 else credit, now)
        return credit >= 1

    def _turn_at(self, vector: int) -> float:
        credit, since = self._credit[vector]
        return since + max(0.0, 1 - credit) / self._rate


def accepted(interrupt: Interrupt) -> int | None:
    """The vector that the CPU takes; None for an interrupt of another CPU, an illegal vector, or no fixed one.

    SMI, NMI, INIT and ExtINT are not modelled: no kernel here asks for them, and a forged one is lost.
    """
    if interrupt.delivery_mode not in (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY):
        return None
    if interrupt.destination not in _BROADCAST:
        mine = interrupt.destination & LOGICAL_ID if interrupt.logical else interrupt.destination == APIC_ID
        if not mine:
            return None
    return interrupt.vector if interrupt.vector >= _FIRST_LEGAL else None
