"""What a root port saw of a device that does as it likes: accesses to each of several fields, by reads and writes."""

from __future__ import annotations

from typing import Literal, NamedTuple

from viommu_actors.pci.link import LogEntry, Outcome
from viommu_actors.pci.watch import Watch

_PAGE = ~0xFFF

Ranges = tuple[tuple[int, int], ...]
Way = Literal["read", "write"]
_WAYS: tuple[Way, Way] = ("read", "write")


class Field(NamedTuple):
    """Something that a device may be after.

    `addresses` are (base, size) as the device puts them on the bus; `guarded` physical pages; `exposed` (base, size) of
    physical memory of which the device was given nothing but the page `spared`.
    """

    name: str
    addresses: Ranges
    guarded: tuple[int, ...]
    exposed: Ranges


class FieldWatch:
    """The log of a port: each access counts for the first field that it is aimed at, or that it reaches."""

    def __init__(self, fields: list[Field], spared: int | None) -> None:
        self._fields = fields
        self._spared = spared
        self._guarded = [frozenset(field.guarded) for field in fields]
        self.seen = {(field.name, way): _Seen() for field in fields for way in _WAYS}

    def add(self, entry: LogEntry) -> None:
        """One transaction, as the port records it."""
        if entry.length == 0 or (entry.physical is not None and entry.physical & _PAGE == self._spared):
            return
        for field, guarded in zip(self._fields, self._guarded, strict=True):
            physical = entry.physical if entry.outcome is Outcome.OK else None
            reached = physical is not None and (physical & _PAGE in guarded or _within(physical, field.exposed))
            if reached or _within(entry.address, field.addresses):
                self.seen[field.name, "write" if entry.write else "read"].add(entry, reached)
                return


class _Seen(Watch):
    """Accesses of one kind to one field."""

    def __init__(self) -> None:
        super().__init__(None, ())

    def add(self, entry: LogEntry, reached: bool = False) -> None:
        super().add(entry)
        self.reached += reached


def _within(address: int, ranges: Ranges) -> bool:
    return any(base <= address < base + size for base, size in ranges)
