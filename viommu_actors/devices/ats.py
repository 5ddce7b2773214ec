"""A function's address translation cache (device-TLB): what it was told, and what it must not use any more.

PCI Express Base 5.0 chapter 10. Pure: who asks and who waits is the endpoint's.
"""

from __future__ import annotations

from typing import Final

from viommu_actors.spec.ats import TranslationEntry
from viommu_actors.spec.tlp import AddressType

#: Translations that are kept; the one that has been there longest makes room.
CAPACITY: Final = 64


class Question:
    """A translation that is being asked for. What comes of a `stale` one is not to be used."""

    __slots__ = ("stale",)

    def __init__(self) -> None:
        self.stale = False


class TranslationCache:
    """Translations by page size and page number."""

    def __init__(self) -> None:
        self._entries: dict[tuple[int, int], TranslationEntry] = {}
        self._asked: set[Question] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forgets all, and what is being asked for."""
        self._entries.clear()
        for question in self._asked:
            question.stale = True

    def find(self, address: int, access: int) -> tuple[int, AddressType] | None:
        """By which address to make an access (bits of `vtd.Access`), and of which type; None where that is not known.

        Pages that the address lies in are looked for by each size that there is.
        """
        for shift in {shift for shift, _ in self._entries}:
            entry = self._entries.get((shift, address >> shift))
            if entry is not None and not access & ~entry.access:
                return place_of(entry, address)
        return None

    def ask(self) -> Question:
        """A translation is about to be asked for."""
        question = Question()
        self._asked.add(question)
        return question

    def asked(self, question: Question) -> None:
        """The answer has come, or is not waited for any more."""
        self._asked.discard(question)

    def keep(self, address: int, entry: TranslationEntry) -> None:
        """Keeps the translation of `address` that was asked for, gives leave, and is not stale."""
        if len(self._entries) >= CAPACITY:
            del self._entries[next(iter(self._entries))]
        self._entries[entry.shift, address >> entry.shift] = entry

    def invalidate(self, first: int, shift: int) -> None:
        """Forgets every translation that overlaps 2^shift bytes, and those that are being asked for."""
        last = first + (1 << shift) - 1
        for size, number in list(self._entries):
            if number << size <= last and first <= (number + 1 << size) - 1:
                del self._entries[size, number]
        for question in self._asked:
            # What it will be told may be of any size.
            question.stale = True


def place_of(entry: TranslationEntry, address: int) -> tuple[int, AddressType]:
    """Where an entry that holds `address` says that it is, and the type of address to use for it."""
    if entry.untranslated_only:
        return address, AddressType.UNTRANSLATED
    return entry.address | address & (1 << entry.shift) - 1, AddressType.TRANSLATED
