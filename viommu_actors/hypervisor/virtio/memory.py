"""Guest memory as an emulated function reaches it: translated by the vIOMMU access by access, as QEMU does it.

A translation goes through the unit's IOTLB, and what it blocks is recorded as a fault in the unit, which tells the
guest by its fault event (hw/i386/intel_iommu.c, vtd_iommu_translate).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from viommu_actors.memory import Memory, Unclaimed
from viommu_actors.pci.link import Log, LogEntry, Outcome
from viommu_actors.spec.vtd import PAGE_MASK, PAGE_SIZE, Access
from viommu_actors.vtd.tables import TableFault, leaf_at
from viommu_actors.vtd.translator import is_interrupt
from viommu_actors.vtd.unit import RemappingUnit


class Entry(NamedTuple):
    """What `size` bytes may be accessed for, and where they are. `domain` None: no tables say so."""

    iova: int
    size: int
    address: int
    access: Access
    domain: int | None


class FunctionMemory:
    """The memory that the function with this requester ID reaches; without a unit, all of the guest's.

    `counters`: virtio_blocked, the accesses that the vIOMMU blocked, and virtio_outside_ram, those that it did not and
    that no memory answers; requests to the interrupt range, which are never translated, are among the latter.
    """

    def __init__(self, memory: Memory, unit: RemappingUnit | None, requester: int, counters: Counter[str]) -> None:
        self._memory = memory
        self._unit = unit
        self._requester = requester
        self._counters = counters
        #: Hears of each access, page by page, as a port's log does of a device's; None for nobody.
        self.log: Log | None = None

    def read(self, iova: int, size: int) -> bytes | None:
        """None where any of it is blocked, or no memory."""
        data = b""
        for place, length in _pieces(iova, size):
            address = self._translate(place, Access.READ, length)
            if address is None:
                return None
            try:
                data += self._memory.read(address, length)
            except Unclaimed:
                self._outside_ram(place, length, write=False)
                return None
            if self.log is not None:
                self._note(place, length, False, Outcome.OK, address)
        return data

    def write(self, iova: int, data: bytes) -> bool:
        """False where any of it is blocked, or no memory; nothing is written from there on."""
        for place, length in _pieces(iova, len(data)):
            address = self._translate(place, Access.WRITE, length)
            if address is None:
                return False
            try:
                self._memory.write(address, data[place - iova : place - iova + length])
            except Unclaimed:
                self._outside_ram(place, length, write=True)
                return False
            if self.log is not None:
                self._note(place, length, True, Outcome.OK, address)
        return True

    def told(self, kind: str, outcome: Outcome) -> None:
        """Something came that is no access, and is counted by whoever judged it."""
        if self.log is not None:
            self.log.add(LogEntry(kind, self._requester, 0, 0, False, outcome, None, None))

    def refused(self, iova: int, size: int, write: bool) -> None:
        """An access came that the device does not make in its state; it is counted by whoever refused it."""
        if self.log is not None:
            for place, length in _pieces(iova, size):
                self._note(place, length, write, Outcome.NOT_RUNNING)

    def entry(self, iova: int, access: Access) -> Entry | None:
        """The leaf that holds an access, with all the leave that it has, or where no tables say so the page; None where
        it may not be, as if it were done (vtd_iommu_translate gives the size of the leaf, too)."""
        address = self._translate(iova, access)
        if address is None:
            return None
        page = iova & ~PAGE_MASK
        try:
            self._memory.read(address, 1)
        except Unclaimed:
            self._counters["virtio_outside_ram"] += 1
            return None
        unit = self._unit
        if unit is None or not unit.translation_enabled:
            return Entry(page, PAGE_SIZE, page, Access.BOTH, None)
        try:
            context = unit.context(self._requester)
        except TableFault:
            # It passed by what the unit still holds of tables that are gone.
            return None
        if context.pass_through:
            return Entry(page, PAGE_SIZE, page, Access.BOTH, context.domain)
        leaf = leaf_at(self._memory, context, iova, unit.config)
        if leaf is None or access & ~leaf.access:
            return None
        return Entry(leaf.iova, leaf.size, address - (iova - leaf.iova), leaf.access, context.domain)

    def _translate(self, iova: int, access: Access, length: int = 0) -> int | None:
        """Where an access within one page goes; None where it goes nowhere, which is counted.

        `length` of an access that is made; 0 of one that is only asked about.
        """
        if is_interrupt(iova):
            self._counters["virtio_outside_ram"] += 1
            if length and self.log is not None:
                self._note(iova, length, access is Access.WRITE, Outcome.INTERRUPT_RANGE)
            return None
        if self._unit is None:
            return iova
        address, reason = self._unit.translate(self._requester, iova, access)
        if reason is not None:
            self._counters["virtio_blocked"] += 1
            if length and self.log is not None:
                self._note(iova, length, access is Access.WRITE, Outcome.FAULT, reason=int(reason))
            return None
        return address

    def _outside_ram(self, iova: int, length: int, write: bool) -> None:
        self._counters["virtio_outside_ram"] += 1
        if self.log is not None:
            self._note(iova, length, write, Outcome.UNCLAIMED)

    def _note(
        self,
        iova: int,
        length: int,
        write: bool,
        outcome: Outcome,
        address: int | None = None,
        reason: int | None = None,
    ) -> None:
        assert self.log is not None
        kind = "write" if write else "read"
        self.log.add(LogEntry(kind, self._requester, iova, length, write, outcome, address, reason))


def _pieces(iova: int, size: int) -> Sequence[tuple[int, int]]:
    """A range as (address, length) of its pieces, none of which crosses a page."""
    first = PAGE_SIZE - (iova & PAGE_MASK)
    if size <= first:
        return ((iova, size),)
    starts = [iova, *range(iova + first, iova + size, PAGE_SIZE)]
    return [(start, end - start) for start, end in pairwise([*starts, iova + size])]
