"""The shadow as QEMU keeps it: the messages that QEMU 11.1's intel-iommu and VFIO send, in order, defects included.

For bug-compatible runs; the default is `shadow.Shadow`. After hw/i386/intel_iommu.c (vtd_page_walk,
vtd_address_space_unmap, vtd_switch_address_space), util/iova-tree.c and hw/vfio/listener.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from struct import unpack
from typing import Final

from viommu_actors.hypervisor.held import HeldMappings, Mapping
from viommu_actors.hypervisor.shadow import WALK_LIMIT, Ram, ShadowPorts, Unit
from viommu_actors.memory import Memory, Unclaimed
from viommu_actors.spec.vtd import (
    FUNCTION_MASKS,
    INTERRUPT_FIRST,
    INTERRUPT_LAST,
    LARGEST_LEAF_LEVEL,
    PAGE_SHIFT,
    PTE_ACCESS,
    PTE_LARGE,
    PTE_SIZE,
    TABLE_ENTRIES,
    Access,
    ContextGranularity,
    FaultReason,
    IotlbGranularity,
    level_shift,
)
from viommu_actors.vtd.tables import Context, TableFault

_LAST_ADDRESS: Final = (1 << 64) - 1
_ACCESS: Final = tuple(Access(bits) for bits in range(4))
#: VFIO's two notifiers, (first, last), in the order in which an event reaches them: the one registered last is first.
NOTIFIERS: Final = ((INTERRUPT_LAST + 1, _LAST_ADDRESS), (0, INTERRUPT_FIRST - 1))


class QemuShadow:
    """An InvalidationListener for one requester id; what the ports refuse is only logged, and never tried again."""

    def __init__(
        self,
        unit: Unit,
        requester: int,
        ports: ShadowPorts,
        memory: Memory,
        ram: Sequence[Ram],
        log: Callable[[str], None],
    ) -> None:
        """`ram` are the ranges of the machine's memory map, ROM included, ascending."""
        self.requester = requester
        self._unit = unit
        self._ports = ports
        self._memory = memory
        self._ram = ram
        self._log = log
        self._translated = False
        #: What QEMU takes for mapped: leaves as they were announced last.
        self._known = HeldMappings()
        self._budget = 0

    def start(self) -> None:
        """The device is plugged in, with translation off."""
        self._map_memory()
        self._switch()

    def stop(self) -> None:
        """The device is unplugged."""
        if self._translated:
            self._unmap_all()

    # --- events of the unit

    def translation_changed(self, enabled: bool) -> None:
        self._refresh()

    def root_changed(self) -> None:
        self._refresh()

    def unit_reset(self) -> None:
        self._refresh()

    def context_invalidated(self, granularity: int, domain: int, source: int, function_mask: int) -> None:
        if granularity == ContextGranularity.DEVICE:
            if (source ^ self.requester) & FUNCTION_MASKS[function_mask]:
                return
            self._switch()
        else:
            self._refresh()
        self._sync()

    def iotlb_invalidated(self, granularity: int, domain: int, address: int, mask: int) -> None:
        if not self._translated:
            return
        if granularity == IotlbGranularity.GLOBAL:
            self._sync()
            return
        try:
            context = self._unit.context(self.requester)
        except TableFault:
            return
        if context.domain != domain:
            return
        if granularity == IotlbGranularity.DOMAIN:
            self._sync()
        else:
            self._walk(context, address, address + (1 << PAGE_SHIFT + mask))

    # --- address space switches

    def _refresh(self) -> None:
        if self._translated:
            self._unmap_all()
        self._switch()

    def _switch(self) -> None:
        """Between all memory and the tables; what goes is unmapped region by region, what comes is mapped."""
        translated = self._unit.translation_enabled and not self._passes_through()
        if translated == self._translated:
            return
        self._translated = translated
        if not translated:
            for first, last in reversed(NOTIFIERS):
                self._unmap(first, last - first + 1)
            self._map_memory()
            return
        for ram in self._ram:
            self._unmap(ram.base, ram.size)
        for notifier in reversed(NOTIFIERS):
            self._known = HeldMappings()
            try:
                context = self._unit.context(self.requester)
            except TableFault:
                continue
            self._walk(context, 0, _LAST_ADDRESS, notifier)

    def _passes_through(self) -> bool:
        try:
            return self._unit.context(self.requester).pass_through
        except TableFault:
            return False

    def _unmap_all(self) -> None:
        """In aligned powers of two, whatever is mapped."""
        for first, last in NOTIFIERS:
            end = min(last, (1 << self._unit.config.aw_bits) - 1) + 1
            start = first
            while start < end:
                size = 1 << (end - start).bit_length() - 1
                if start:
                    size = min(size, start & -start)
                self._unmap(start, size)
                start += size
            self._known.take(first, end - 1)

    def _sync(self) -> None:
        """The whole table; a context that is present but invalid is left alone, with whatever is mapped."""
        if not self._translated:
            return
        try:
            context = self._unit.context(self.requester)
        except TableFault as fault:
            if fault.reason == FaultReason.CONTEXT_NOT_PRESENT:
                self._unmap_all()
            return
        self._walk(context, 0, _LAST_ADDRESS)

    # --- the walk

    def _walk(self, context: Context, first: int, end: int, replay: tuple[int, int] | None = None) -> None:
        """Tells of every entry in first..end that differs from what is known; `replay`: of leaves, to one notifier."""
        limit = 1 << context.width
        if first >= limit:
            return
        self._budget = WALK_LIMIT
        for entry in self._entries(context.table, context.levels, PTE_ACCESS, first, min(end, limit)):
            if entry.access:
                self._leaf(entry, replay)
            elif replay is None and self._known.take(entry.iova, entry.last):
                self._notify(entry, None)

    def _entries(self, table: int, level: int, allowed: int, first: int, end: int) -> Iterator[Mapping]:
        """Leaves and, without access, absent entries; unreadable and reserved ones are passed over."""
        config = self._unit.config
        shift = level_shift(level)
        index = first >> shift & TABLE_ENTRIES - 1
        count = min((end - 1 >> shift) - (first >> shift) + 1, TABLE_ENTRIES - index)
        try:
            words = unpack(f"<{count}Q", self._memory.read(table + index * PTE_SIZE, count * PTE_SIZE))
        except Unclaimed:
            return
        base = first >> shift << shift
        # An absent entry is of interest only where it could unmap something.
        known = self._known.overlapping(base, base + (count << shift) - 1)
        touched = {
            number
            for mapping in known
            for number in range(max(mapping.iova - base >> shift, 0), min((mapping.last - base >> shift) + 1, count))
        }
        self._budget -= 1
        for number, entry in [(number, entry) for number, entry in enumerate(words) if entry or number in touched]:
            self._budget -= 1
            if self._budget < 0:
                return
            iova = base + (number << shift)
            is_last = level == 1 or (level <= LARGEST_LEAF_LEVEL and bool(entry & PTE_LARGE))
            if entry & config.reserved_bits[is_last][level]:
                continue
            access = allowed & entry
            target = entry & config.address_mask
            if access and not is_last:
                stop = min(iova + (1 << shift), end)
                yield from self._entries(target, level - 1, access, max(iova, first), stop)
            else:
                yield Mapping(iova, target, 1 << shift, _ACCESS[access])

    def _leaf(self, leaf: Mapping, replay: tuple[int, int] | None) -> None:
        if self._known.at(leaf.iova) == leaf:
            return
        if self._known.take(leaf.iova, leaf.last):
            self._notify(leaf._replace(access=Access.NONE), replay)
        self._known.add(leaf)
        self._notify(leaf, replay)

    # --- VFIO

    def _notify(self, event: Mapping, replay: tuple[int, int] | None) -> None:
        """Cropped to each notifier. The target is not moved with the start, as in QEMU."""
        for first, last in NOTIFIERS if replay is None else (replay,):
            start, stop = max(event.iova, first), min(event.last, last)
            if start > stop:
                continue
            if event.access:
                self._map(start, stop - start + 1, event.gpa, event.access)
            else:
                self._unmap(start, stop - start + 1)

    def _map(self, iova: int, size: int, gpa: int, access: Access) -> None:
        """Refused where the target is not RAM, or only partly so. Reading is always allowed."""
        ram = next((ram for ram in self._ram if ram.base <= gpa < ram.base + ram.size), None)
        if ram is None:
            self._log(f"iommu map to non memory area {gpa:#x}")
            return
        if min(size, ram.base + ram.size - gpa) & size - 1:
            self._log(f"iommu has granularity incompatible with target AS: {gpa:#x}+{size:#x}")
            return
        writable = access & ram.access & Access.WRITE
        self._announce(iova, gpa, size, Access.BOTH if writable else Access.READ)

    def _map_memory(self) -> None:
        for ram in self._ram:
            self._announce(ram.base, ram.base, ram.size, ram.access)

    def _announce(self, iova: int, gpa: int, size: int, access: Access) -> None:
        try:
            self._ports.map(iova, gpa, size, access)
        except OSError as error:
            self._log(f"map of {iova:#x}+{size:#x}: {error}")

    def _unmap(self, iova: int, size: int) -> None:
        try:
            self._ports.unmap(iova, size)
        except OSError as error:
            self._log(f"unmap of {iova:#x}+{size:#x}: {error}")
