"""What a root port saw of one attack: every access that was aimed, and what became of it.

It keeps counts, so that a scan of any size can be judged whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from viommu_actors.pci.link import LogEntry, Outcome

_PAGE = ~0xFFF


class Aim(NamedTuple):
    """Addresses `first`, `first + stride`, ... up to and with `last`, as a device puts them on the bus."""

    first: int
    last: int
    stride: int

    @property
    def size(self) -> int:
        """How many they are."""
        return (self.last - self.first) // self.stride + 1


class Watch:
    """The log of a port while a device plays an attack.

    `guarded` are the physical pages that it is after: an access that reaches one of them counts as `reached`, at
    whatever address it was made. `outcomes` counts the accesses that were aimed, `strays` all others. Without `aims`
    every transaction is one that was aimed, whatever its address.
    """

    def __init__(self, aims: Iterable[Aim] | None, guarded: Iterable[int]) -> None:
        self._all = aims is None
        self._aims = [(aim, bytearray(aim.size)) for aim in aims or ()]
        self._guarded = frozenset(guarded)
        self.outcomes: Counter[Outcome] = Counter()
        self.strays = 0
        self.reached = 0
        self.first_refusal: LogEntry | None = None

    @property
    def tried(self) -> int:
        """How many of the addresses aimed at were accessed at least once; without aims, all accesses."""
        return self.outcomes.total() if self._all else sum(len(seen) - seen.count(0) for _, seen in self._aims)

    def add(self, entry: LogEntry) -> None:
        """One transaction, as the port records it."""
        if entry.physical is not None and entry.outcome is Outcome.OK and entry.physical & _PAGE in self._guarded:
            self.reached += 1
        if not self._all and not self._is_aimed(entry.address):
            self.strays += 1
            return
        self.outcomes[entry.outcome] += 1
        if entry.outcome is not Outcome.OK and self.first_refusal is None:
            self.first_refusal = entry

    def _is_aimed(self, address: int) -> bool:
        """Whether an address was aimed at; it counts as tried from now on."""
        for aim, seen in self._aims:
            offset = address - aim.first
            if 0 <= offset <= aim.last - aim.first and offset % aim.stride == 0:
                seen[offset // aim.stride] = 1
                return True
        return False
