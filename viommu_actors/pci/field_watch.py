"""What a root port saw of a device that does as it likes: accesses to each of several fields, by reads and writes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

from viommu_actors.pci.link import LogEntry, Outcome
from viommu_actors.pci.watch import Watch

_PAGE = ~0xFFF
#: Kinds of transactions that get to memory.
_TO_MEMORY = frozenset({"read", "write", "atomic"})
#: Kinds that get to another device, and not by way of the root complex.
_TO_PEERS = frozenset({"peer read", "peer write"})

Ranges = tuple[tuple[int, int], ...]
Way = Literal["read", "write"]
_WAYS: tuple[Way, Way] = ("read", "write")


class Field(NamedTuple):
    """Something that a device may be after.

    `addresses` are (base, size) as the device puts them on the bus; `guarded` physical pages; `exposed` (base, size) of
    physical memory of which the device was given nothing but the page `spared`; `requesters` IDs of others, in whose
    name any memory at all is none of the device's; `peers` whether it is the registers of others.
    """

    name: str
    addresses: Ranges
    guarded: Collection[int]
    exposed: Ranges
    requesters: Collection[int] = ()
    peers: bool = False

    def holds(self, entry: LogEntry, physical: int) -> bool:
        """Whether that access, which got to `physical`, is one to this."""
        if entry.kind in _TO_PEERS:
            return self.peers
        borrowed = entry.requester in self.requesters and entry.kind in _TO_MEMORY
        return borrowed or physical & _PAGE in self.guarded or _within(physical, self.exposed)


class FieldWatch:
    """The log of a port: each access counts for the first field that it reaches, else the first that it is aimed at."""

    def __init__(self, fields: list[Field], spared: int | None) -> None:
        self._fields = [field._replace(guarded=frozenset(field.guarded)) for field in fields]
        self._spared = spared
        self.seen = {(field.name, way): _Seen() for field in fields for way in _WAYS}

    def add(self, entry: LogEntry) -> None:
        """One transaction, as the port records it."""
        if entry.length == 0 or (entry.physical is not None and entry.physical & _PAGE == self._spared):
            return
        physical = entry.physical if entry.outcome is Outcome.OK else None
        reached = None if physical is None else next((it for it in self._fields if it.holds(entry, physical)), None)
        field = reached or next((it for it in self._fields if _within(entry.address, it.addresses)), None)
        if field is not None:
            self.seen[field.name, "write" if entry.write else "read"].add(entry, reached is not None)


class _Seen(Watch):
    """Accesses of one kind to one field."""

    def __init__(self) -> None:
        super().__init__(None, ())

    def add(self, entry: LogEntry, reached: bool = False) -> None:
        super().add(entry)
        self.reached += reached


def _within(address: int, ranges: Ranges) -> bool:
    return any(base <= address < base + size for base, size in ranges)
