"""What a device's container ought to hold: where an invalidation was due, and what the guest's tables say there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from viommu_actors.hypervisor.shadow import Ram
from viommu_actors.memory import Memory
from viommu_actors.replay import transcript as t
from viommu_actors.replay.container import Container, Piece
from viommu_actors.spec.vtd import (
    FUNCTION_MASKS,
    INTERRUPT_FIRST,
    INTERRUPT_LAST,
    PAGE_SHIFT,
    Access,
    ContextGranularity,
    IotlbGranularity,
)
from viommu_actors.vtd import Context, InvalidationListener, RemappingUnit, TableFault, leaves, walk

_EVERYTHING: Final = (0, 1 << 64)
_TEXTS: Final = {Access.READ: "r", Access.WRITE: "w", Access.BOTH: "rw"}


class Due:
    """Stands before the shadows and notes for each device which addresses every invalidation is about."""

    def __init__(self, devices: Iterable[str]) -> None:
        self.listeners: list[InvalidationListener] = []
        #: By device: ranges, each with the domain that it is about (None: any).
        self._ranges: dict[str, list[tuple[tuple[int, int], int | None]]] = {name: [] for name in devices}

    def take(self, device: str, unit: RemappingUnit) -> list[tuple[int, int]]:
        """The ranges since the last time, as far as they concern the domain that the device is in now."""
        noted, self._ranges[device] = self._ranges[device], []
        domain = _domain(unit, t.bdf(device))
        return sorted({span for span, of in noted if of is None or of == domain})

    def translation_changed(self, enabled: bool) -> None:
        self._note_all()
        for listener in self.listeners:
            listener.translation_changed(enabled)

    def root_changed(self) -> None:
        self._note_all()
        for listener in self.listeners:
            listener.root_changed()

    def context_invalidated(self, granularity: int, domain: int, source: int, function_mask: int) -> None:
        selective = granularity == ContextGranularity.DEVICE
        for device, ranges in self._ranges.items():
            if not (selective and (source ^ t.bdf(device)) & FUNCTION_MASKS[function_mask]):
                ranges.append((_EVERYTHING, None))
        for listener in self.listeners:
            listener.context_invalidated(granularity, domain, source, function_mask)

    def iotlb_invalidated(self, granularity: int, domain: int, address: int, mask: int) -> None:
        if granularity == IotlbGranularity.GLOBAL:
            self._note_all()
        else:
            size = 1 << PAGE_SHIFT + mask
            first = address & -size
            span = (first, first + size) if granularity == IotlbGranularity.PAGE else _EVERYTHING
            for ranges in self._ranges.values():
                ranges.append((span, domain))
        for listener in self.listeners:
            listener.iotlb_invalidated(granularity, domain, address, mask)

    def unit_reset(self) -> None:
        self._note_all()
        for listener in self.listeners:
            listener.unit_reset()

    def _note_all(self) -> None:
        for ranges in self._ranges.values():
            ranges.append((_EVERYTHING, None))


class Truth:
    """The guest's tables, read afresh."""

    def __init__(self, unit: RemappingUnit, memory: Memory, ram: list[Ram]) -> None:
        self._unit = unit
        self._memory = memory
        self._ram = ram

    def pieces(self, requester: int, first: int, end: int) -> list[Piece]:
        """What a device should reach in first..end: memory only, nothing in the interrupt range."""
        container = Container()
        context = self._context(requester)
        if isinstance(context, Context):
            for leaf in leaves(self._memory, context, first, end - 1, self._unit.config, holes=False):
                if leaf.access:
                    self._place(container, leaf.iova, leaf.address, leaf.size, leaf.access)
        elif context:
            for ram in self._ram:
                self._place(container, ram.base, ram.base, ram.size, ram.access)
        container.unmap(INTERRUPT_FIRST, INTERRUPT_LAST + 1)
        return container.pieces(first, end)

    def confirms(self, requester: int, pieces: list[Piece], first: int) -> bool:
        """Whether walks by address, one for each piece, and one where there is none, agree with the pieces."""
        context = self._context(requester)
        if not isinstance(context, Context):
            return True
        for piece in pieces:
            access = Access.READ if "r" in piece.access else Access.WRITE
            try:
                leaf = walk(self._memory, context, piece.first, access, self._unit.config)
            except TableFault:
                return False
            if piece.gpa is not None and leaf.address + piece.first - leaf.iova != piece.gpa:
                return False
        return bool(pieces) or not self._reaches_memory(context, first)

    def _reaches_memory(self, context: Context, address: int) -> bool:
        if INTERRUPT_FIRST <= address <= INTERRUPT_LAST:
            return False
        for access in (Access.READ, Access.WRITE):
            try:
                leaf = walk(self._memory, context, address, access, self._unit.config)
            except TableFault:
                continue
            target = leaf.address + address - leaf.iova
            return any(ram.base <= target < ram.base + ram.size and ram.access & leaf.access for ram in self._ram)
        return False

    def _context(self, requester: int) -> Context | bool:
        """The context that is walked; True: all memory, False: nothing."""
        if not self._unit.translation_enabled:
            return True
        try:
            context = self._unit.context(requester)
        except TableFault:
            return False
        return context.pass_through or context

    def _place(self, container: Container, iova: int, gpa: int, size: int, access: Access) -> None:
        for ram in self._ram:
            start, stop = max(gpa, ram.base), min(gpa + size, ram.base + ram.size)
            allowed = access & ram.access
            if start < stop and allowed:
                at = iova + start - gpa
                target = None if ram.access is Access.READ else start
                container.map(Piece(at, at + stop - start, target, _TEXTS[allowed]))


def _domain(unit: RemappingUnit, requester: int) -> int | None:
    try:
        return unit.context(requester).domain if unit.translation_enabled else None
    except TableFault:
        return None
