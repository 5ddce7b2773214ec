"""The shadow of a guest's translation tables: what a caching-mode vIOMMU maps for an assigned device.

After each invalidation the tables are read again where they may have changed, and what the device's container holds
is brought to what they say now. As QEMU's intel-iommu does it for VFIO, but without the mappings that QEMU leaves
behind: an entry that is absent, reserved, unreadable or invalid counts as a hole, whatever was there before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from errno import ENOSPC
from itertools import islice
from typing import Final, NamedTuple, Protocol

from viommu_actors.counters import Counters
from viommu_actors.hypervisor.held import HeldMappings, Mapping
from viommu_actors.memory import Memory
from viommu_actors.spec.vtd import (
    FUNCTION_MASKS,
    INTERRUPT_FIRST,
    INTERRUPT_LAST,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    Access,
    ContextGranularity,
    IotlbGranularity,
)
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.listener import Effort, InvalidationListener
from viommu_actors.vtd.tables import Context, Leaf, TableFault, leaf_at, leaves

_LAST_ADDRESS: Final = (1 << 64) - 1
#: Entries that one walk reads before it gives up and leaves the rest unmapped: tables that lead back into themselves
#: describe more pages than anyone could walk, and VFIO takes 65,535 mappings anyway.
WALK_LIMIT: Final = 1 << 17

# Members of enumerations as a module has them at hand.
_NONE: Final = Access.NONE
_BOTH: Final = Access.BOTH
_PAGE: Final = int(IotlbGranularity.PAGE)
_GLOBAL: Final = int(IotlbGranularity.GLOBAL)
_new: Final = tuple.__new__
#: An entry of the guest's tables: first and last address, and what the device is to see there.
_Entry = tuple[int, int, Sequence[Mapping]]


_CUT_SHORT_LOGGED: Final = 10
#: What a map or unmap costs, in entries read.
_CALL_EFFORT: Final = 32
#: Maps that are asked for at once.
_AT_ONCE: Final = 64


class ShadowPorts(Protocol):
    """The device's container, in guest-physical terms."""

    def map(self, iova: int, gpa: int, size: int, access: Access) -> None:
        """Raises OSError where the container refuses; nothing is mapped then."""
        ...

    def map_each(self, mappings: Sequence[Mapping]) -> list[OSError | None]:
        """Several, in order, each as `map` does it: what was refused, and why. After an ENOSPC it may leave off."""
        results: list[OSError | None] = []
        for mapping in mappings:
            try:
                self.map(*mapping)
            except OSError as error:
                results.append(error)
                if error.errno == ENOSPC:
                    break
            else:
                results.append(None)
        return results

    def unmap(self, iova: int, size: int) -> None:
        """Takes away every mapping in the range, none of which crosses its ends. A barrier. Must not fail."""
        ...


class Unit(Protocol):
    """What a shadow asks of the vIOMMU."""

    @property
    def config(self) -> UnitConfig: ...

    @property
    def translation_enabled(self) -> bool: ...

    def context(self, requester: int) -> Context:
        """As memory says now. Raises TableFault."""
        ...

    def watch(self, requester: int) -> Callable[[], Context | None]:
        """What reads that again and again: None while translation is off."""
        ...


class Ram(NamedTuple):
    """Guest memory that a device may be given, at `base` for `size` bytes; ROM has `access` READ."""

    base: int
    size: int
    access: Access = Access.BOTH


class View(Enum):
    """What the device sees, if not tables."""

    DIRECT = "all RAM at its own address: translation is off, or the context is pass-through"
    BLOCKED = "nothing: the context is absent or invalid"


class Shadow:
    """The shadow for one requester id: hears of invalidations, keeps its container like the guest's tables.

    An InvalidationListener of the unit. `counters`: maps, unmaps (calls) and the mappings_gone by them, walks,
    map_errors, walks_cut_short, and outside_ram, the leaves that lead out of guest memory.
    Memory outside `ram` and the interrupt range are never mapped; a leaf that is partly so is mapped for the rest.
    """

    def __init__(
        self,
        unit: Unit,
        requester: int,
        ports: ShadowPorts,
        memory: Memory,
        ram: Iterable[Ram],
        log: Callable[[str], None],
        effort: Effort | None = None,
    ) -> None:
        """`memory` is the guest's, where its tables are; what is done is taken from `effort`."""
        self.requester = requester
        self.counters = Counters()
        self._unit = unit
        self._config = unit.config
        self._context = unit.watch(requester)
        self._ports = ports
        self._memory = memory
        self._ram = sorted(ram)
        if any((piece.base | piece.size) & PAGE_MASK for piece in self._ram):
            raise ValueError("guest RAM is not made of whole pages")
        #: (base, end) of what is no ROM: nearly all that is ever mapped lies there.
        self._writable = [(piece.base, piece.base + piece.size) for piece in self._ram if piece.access is _BOTH]
        self._log = log
        self._effort = effort or Effort()
        self._view: Context | View = View.BLOCKED
        self._held = HeldMappings()
        self._full = False
        self._errors_logged: set[int | None] = set()

    @property
    def view(self) -> Context | View:
        """What the device saw at the last event."""
        return self._view

    def mappings(self) -> list[Mapping]:
        """What the container holds, ascending."""
        return self._held.all()

    def start(self) -> None:
        """The device is plugged in."""
        self._rebuild()

    def stop(self) -> None:
        """The device is unplugged: its container is emptied."""
        self._view = View.BLOCKED
        self._drop(0, _LAST_ADDRESS)

    # --- events of the unit

    def translation_changed(self, enabled: bool) -> None:
        self._rebuild()

    def root_changed(self) -> None:
        if self._unit.translation_enabled:
            self._rebuild()

    def context_invalidated(self, granularity: int, domain: int, source: int, function_mask: int) -> None:
        """A domain's or a global one concerns every device: which domain a device was in, only a cache would know."""
        selective = granularity == ContextGranularity.DEVICE
        if selective and (source ^ self.requester) & FUNCTION_MASKS[function_mask]:
            return
        if self._unit.translation_enabled:
            self._rebuild()

    def iotlb_invalidated(self, granularity: int, domain: int, address: int, mask: int) -> None:
        """A changed context is a reason to start afresh, whatever the descriptor is about."""
        view = self._current_view()
        if view is not self._view and view != self._view:
            self._rebuild(view)
        elif isinstance(view, Context) and (domain == view.domain or granularity == _GLOBAL):
            if granularity == _PAGE and not mask:
                self._sync_page(view, address)
            elif granularity == _PAGE:
                size = 1 << PAGE_SHIFT + mask
                # Hardware ignores the address bits below the size; QEMU adds the size to them. Both are covered.
                self._sync(address & -size, address + size - 1)
            else:
                self._sync(0, _LAST_ADDRESS)

    def unit_reset(self) -> None:
        self._rebuild()

    # --- the container

    def _current_view(self) -> Context | View:
        try:
            context = self._context()
        except TableFault:
            return View.BLOCKED
        return View.DIRECT if context is None or context.pass_through else context

    def _rebuild(self, seen: Context | View | None = None) -> None:
        """Everything anew: after a switch from or to translation nothing of before stays, else the difference goes.

        `seen` is what the device sees now, where that has been read already.
        """
        view = seen or self._current_view()
        if view is not self._view and (isinstance(view, View) or isinstance(self._view, View)):
            self._drop(0, _LAST_ADDRESS)
        self._view = view
        self._sync(0, _LAST_ADDRESS)

    def _sync_page(self, view: Context, page: int) -> None:
        """`_sync` of one page, as most invalidations are about: the same, without what several entries need."""
        self.counters["walks"] += 1
        last = page + PAGE_MASK
        leaf = leaf_at(self._memory, view, page, self._config)
        if leaf is None or leaf.shift != PAGE_SHIFT:
            self._sync(page, last, () if leaf is None else (self._entry(leaf),))
            return
        _, _, address, access, _ = leaf
        # A page is one mapping or none: memory, and the interrupt range, are made of whole ones.
        mappings = () if access is _NONE else self._crop(page, address, PAGE_SIZE, access)
        if mappings and self._held.at(page) == mappings[0]:
            return
        reaching_out = self._drop(page, last, page, last)
        if mappings:
            self._full = False
            self._map_one(mappings[0])
        for gone in reaching_out:
            self._sync(gone.iova, gone.last)

    def _sync(self, first: int, last: int, entries: Iterable[_Entry] | None = None) -> None:
        """Brings what is held in first..last to what the device is to see there.

        `entries` are what the guest says of it, where they have been read already. They are taken whole, leaves and
        holes. A held mapping that has to go and reaches out of the range, say a large page of which only a part was
        invalidated, has its remainder read again.
        """
        self._full = missed = False
        reaching_out: list[Mapping] = []
        due: list[Mapping] = []
        # Nothing is to be held from `bare` to the next mapping.
        bare, end = first, last
        for begin, finish, mappings in self._entries(first, last) if entries is None else entries:
            if begin < bare:
                bare = begin
            if finish > end:
                end = finish
            for wanted in mappings:
                iova, until = wanted.iova, wanted.last
                if iova > bare:
                    reaching_out += self._drop(bare, iova - 1, first, last)
                if self._held.at(iova) != wanted:
                    reaching_out += self._drop(iova, until, first, last)
                    due.append(wanted)
                    if len(due) == _AT_ONCE:
                        self._map(due)
                        missed |= self._full
                        due.clear()
                bare = until + 1
        if bare <= end:
            reaching_out += self._drop(bare, end, first, last)
        if due:
            self._map(due)
            missed |= self._full
        if missed and not self._full:
            # An unmap after the refusal has made room. The second time there is nothing left to unmap.
            self._sync(first, last)
        for gone in reaching_out:
            self._sync(gone.iova, gone.last)

    def _map(self, due: list[Mapping]) -> None:
        """What is refused counts as not there, so that the next look at it tries again."""
        if self._full:
            return
        if len(due) == 1:
            self._map_one(due[0])
            return
        self._effort.left -= _CALL_EFFORT * len(due)
        for mapping, error in zip(due, self._ports.map_each(due), strict=False):
            if error is None:
                self._mapped(mapping)
            else:
                self._refused(mapping, error)

    def _map_one(self, mapping: Mapping) -> None:
        self._effort.left -= _CALL_EFFORT
        try:
            self._ports.map(*mapping)
        except OSError as error:
            self._refused(mapping, error)
        else:
            self._mapped(mapping)

    def _mapped(self, mapping: Mapping) -> None:
        self.counters["maps"] += 1
        self._held.add(mapping)

    def _refused(self, mapping: Mapping, error: OSError) -> None:
        self.counters["map_errors"] += 1
        self._full |= error.errno == ENOSPC
        if error.errno not in self._errors_logged:
            self._errors_logged.add(error.errno)
            self._log(f"shadow {self.requester:#06x}: map of {mapping.iova:#x}+{mapping.size:#x}: {error}")

    def _drop(self, first: int, last: int, inner: int = 0, outer: int = _LAST_ADDRESS) -> list[Mapping]:
        """Unmaps every mapping that overlaps first..last; returns those that reach out of inner..outer."""
        gone = self._held.take(first, last)
        if not gone:
            return gone
        self._effort.left -= _CALL_EFFORT + len(gone)
        begin, end = gone[0].iova, gone[-1].last
        self._ports.unmap(begin, end + 1 - begin)
        self.counters["unmaps"] += 1
        self.counters["mappings_gone"] += len(gone)
        self._full = False
        if begin >= inner and end <= outer:
            return []
        return [mapping for mapping in (gone[0], gone[-1]) if mapping.iova < inner or mapping.last > outer]

    # --- the guest

    def _entries(self, first: int, last: int) -> Iterable[_Entry]:
        """What the guest says of first..last: ranges (begin, finish) ascending, with the mappings in each."""
        view = self._view
        if isinstance(view, Context):
            self.counters["walks"] += 1
            return self._walk(view, first, last)
        if view is View.DIRECT:
            return [
                (ram.base, ram.base + ram.size - 1, self._crop(ram.base, ram.base, ram.size, ram.access))
                for ram in self._ram
            ]
        return ()

    def _walk(self, view: Context, first: int, last: int) -> Iterator[_Entry]:
        walk = leaves(self._memory, view, first, last, self._config, holes=False)
        effort = self._effort
        for leaf in islice(walk, WALK_LIMIT):
            effort.left -= 1
            yield self._entry(leaf)
        if next(walk, None) is not None:
            self.counters["walks_cut_short"] += 1
            if self.counters["walks_cut_short"] <= _CUT_SHORT_LOGGED:
                self._log(f"shadow {self.requester:#06x}: gave up a walk after {WALK_LIMIT} entries")

    def _entry(self, leaf: Leaf) -> _Entry:
        iova, shift, address, access, _ = leaf
        size = 1 << shift
        # The truth of a flag is a call; which one it is, is not.
        return iova, iova + size - 1, () if access is _NONE else self._crop(iova, address, size, access)

    def _crop(self, iova: int, gpa: int, size: int, access: Access) -> list[Mapping]:
        """What of a mapping is neither in the interrupt range nor beyond guest memory, ascending."""
        end = iova + size
        if end <= INTERRUPT_FIRST or iova > INTERRUPT_LAST:
            for base, limit in self._writable:
                if base <= gpa and gpa + size <= limit:
                    return [_new(Mapping, (iova, gpa, size, access))]
        cropped = []
        for low, high in ((iova, min(end, INTERRUPT_FIRST)), (max(iova, INTERRUPT_LAST + 1), end)):
            outside = high - low
            if outside <= 0:
                continue
            for ram in self._ram:
                start = max(low, iova + ram.base - gpa)
                stop = min(high, iova + ram.base + ram.size - gpa)
                if start >= stop:
                    continue
                outside -= stop - start
                allowed = access if ram.access is Access.BOTH else access & ram.access
                if allowed:
                    cropped.append(Mapping(start, gpa + start - iova, stop - start, allowed))
            if outside:
                self.counters["outside_ram"] += 1
        return cropped


class DeviceShadow(InvalidationListener, Protocol):
    """Keeps the container of one requester id."""

    requester: int

    def start(self) -> None:
        """The device is plugged in."""

    def stop(self) -> None:
        """The device is unplugged."""


class Shadows:
    """The InvalidationListener of a vIOMMU with several assigned devices: each of their shadows hears of everything."""

    def __init__(self) -> None:
        self._shadows: dict[int, DeviceShadow] = {}

    def add(self, shadow: DeviceShadow) -> None:
        """A device is plugged in: from here on its container is kept."""
        self._shadows[shadow.requester] = shadow
        shadow.start()

    def remove(self, requester: int) -> None:
        """A device is unplugged. Raises KeyError for one that is not there."""
        self._shadows.pop(requester).stop()

    def __iter__(self) -> Iterator[DeviceShadow]:
        return iter(self._shadows.values())

    def translation_changed(self, enabled: bool) -> None:
        for shadow in self:
            shadow.translation_changed(enabled)

    def root_changed(self) -> None:
        for shadow in self:
            shadow.root_changed()

    def context_invalidated(self, granularity: int, domain: int, source: int, function_mask: int) -> None:
        for shadow in self:
            shadow.context_invalidated(granularity, domain, source, function_mask)

    def iotlb_invalidated(self, granularity: int, domain: int, address: int, mask: int) -> None:
        for shadow in self._shadows.values():
            shadow.iotlb_invalidated(granularity, domain, address, mask)

    def unit_reset(self) -> None:
        for shadow in self:
            shadow.unit_reset()
