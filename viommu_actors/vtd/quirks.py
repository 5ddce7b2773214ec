"""QEMU 7.2's deviations from the specification, as replacements of the unit's parts (hw/i386/intel_iommu.c).

A unit with quirks="qemu" replays recordings of QEMU exactly; with a set of deviations a part does only those. What the
specification leaves open is done as in QEMU by either kind of unit, and stands where it is done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from viommu_actors.memory import Memory, Unclaimed
from viommu_actors.spec.vtd import (
    FUNCTION_MASKS,
    LARGEST_LEAF_LEVEL,
    PAGE_SHIFT,
    QUEUE_INDEX_SHIFT,
    TYPE_MASK,
    U64_MASK,
    Access,
    ContextGranularity,
    DescriptorType,
    DeviceTlbInvalidate,
    FaultReason,
    FaultRecord,
    InterruptEntryInvalidate,
    IotlbGranularity,
    Iqa,
    Reg,
    level_shift,
)
from viommu_actors.vtd.caches import CAPACITY, LEAVE, Grant
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.deviations import Quirk
from viommu_actors.vtd.events import SendInterrupt
from viommu_actors.vtd.faults import FaultLog
from viommu_actors.vtd.queue import Action, BadDescriptor, InvalidationQueue
from viommu_actors.vtd.registers import RegisterFile
from viommu_actors.vtd.tables import Context, Leaf, TableFault, denied, read_context, walk
from viommu_actors.vtd.translator import Translate, Translation, Translator, UnrecordedFault, is_interrupt


class Parts(NamedTuple):
    """What a unit is made of."""

    translator: type[Translator]
    queue: type[InvalidationQueue]
    faults: Callable[[RegisterFile, SendInterrupt, Counter[str]], FaultLog]


def parts(config: UnitConfig) -> Parts:
    quirks = config.quirk_set
    if quirks:
        return Parts(_QemuTranslator, _QemuQueue, lambda *arguments: _QemuFaultLog(quirks, *arguments))
    return Parts(Translator, InvalidationQueue, FaultLog)


class _AllOnesUnreadable:
    """Memory as QEMU's walk sees it: an entry of all ones is taken for a failed read."""

    def __init__(self, memory: Memory) -> None:
        self.read, self.write, self.write_u64 = memory.read, memory.write, memory.write_u64
        self.read_pair = memory.read_pair
        self._read_u64 = memory.read_u64

    def read_u64(self, address: int) -> int:
        value = self._read_u64(address)
        if value == U64_MASK:
            raise Unclaimed(address, 8)
        return value


class _Cached(NamedTuple):
    domain: int
    page: int
    """Number, in 4 KiB, of the first page of the leaf."""
    shift: int
    grant: Grant
    context: Context
    """Under which it was found."""


class _QemuTranslator(Translator):
    """The IOTLB is tagged by source id and comes before the context cache.

    Whether a device is passed through is settled when translation is switched or its context invalidated, for each
    device that there is; here, for each that has been attached or seen.
    """

    def __init__(self, memory: Memory, config: UnitConfig, faults: FaultLog, counters: Counter[str]) -> None:
        self._pages: dict[tuple[int, int, int], _Cached] = {}
        self._passing: dict[int, bool] = {}
        quirks = config.quirk_set
        self._by_source = Quirk.IOTLB_BY_SOURCE in quirks or Quirk.PAGES_MODULO_256 in quirks
        self._modulo = Quirk.PAGES_MODULO_256 in quirks
        self._loses_denials = Quirk.HIT_DENIAL_LOST in quirks
        self._settles = Quirk.PASS_THROUGH_SETTLED in quirks
        self._domain_as_global = Quirk.DOMAIN_CONTEXT_AS_GLOBAL in quirks
        super().__init__(memory, config, faults, counters)
        if Quirk.ALL_ONES_UNREADABLE in quirks:
            self._walk_memory = _AllOnesUnreadable(memory)

    def attach(self, requester: int) -> None:
        self._is_passing(requester)

    def hot_path(self) -> tuple[Translate, Callable[[], int]]:
        return self._translate, lambda: 0

    def _translate(self, requester: int, address: int, access: Access) -> Translation:
        if not self.enabled or is_interrupt(address):
            self._counters["untranslated"] += 1
            return Translation(address, None)
        passing = self._settles and self._is_passing(requester)
        beyond = passing and address >> self._config.aw_bits
        if self._settles and (beyond or passing != self._read_passing(requester)):
            self._counters[Quirk.PASS_THROUGH_SETTLED.counter] += 1
        if passing:
            self._counters["passed_through"] += 1
            return Translation(address, None)
        for shift in _SHIFTS if self._by_source else ():
            cached = self._pages.get((requester, shift, address >> shift))
            if cached is not None:
                self._counters["iotlb_hits"] += 1
                if cached.context != self._context_now(requester):
                    self._counters[Quirk.IOTLB_BY_SOURCE.counter] += 1
                offset, leave, granted = cached.grant
                if leave[access]:
                    return Translation(address + offset, None)
                reason = denied(access & ~granted)
                if self._loses_denials:
                    # Refused by the memory core, which knows of no fault log.
                    self._counters["faults"] += 1
                else:
                    self._faults.report(
                        requester, address, bool(access & Access.WRITE), reason, cached.context.fault_disable
                    )
                return Translation(address, reason)
        return self._translate_slowly(requester, address, access)

    def flush(self) -> None:
        super().flush()
        self._pages.clear()
        self._switch(0, 0)

    def invalidate_context(self, granularity: int, domain: int, source: int, function_mask: int) -> int:
        """A domain-selective one is carried out as a global one."""
        if granularity == ContextGranularity.DOMAIN and self._domain_as_global:
            granularity = ContextGranularity.GLOBAL
        selective = granularity == ContextGranularity.DEVICE
        self._switch(FUNCTION_MASKS[function_mask] if selective else 0, source)
        return super().invalidate_context(granularity, domain, source, function_mask)

    def invalidate_iotlb(self, granularity: int, domain: int, address: int, address_mask: int) -> None:
        """Page numbers are compared under a mask, in QEMU 7.2 of 8 bits: modulo 256, or not at all."""
        super().invalidate_iotlb(granularity, domain, address, address_mask)
        if granularity == IotlbGranularity.GLOBAL:
            self._pages.clear()
            return
        everything = granularity == IotlbGranularity.DOMAIN
        mask = ~((1 << address_mask) - 1) & (0xFF if self._modulo else U64_MASK)
        page = address >> PAGE_SHIFT
        for key, cached in list(self._pages.items()):
            if cached.domain == domain and (
                everything
                or not (cached.page ^ page) & mask
                or cached.page == address >> cached.shift << cached.shift >> PAGE_SHIFT
            ):
                del self._pages[key]
                if (
                    self._modulo
                    and not everything
                    and (cached.page ^ page) >> max(address_mask, cached.shift - PAGE_SHIFT)
                ):
                    self._counters[Quirk.PAGES_MODULO_256.counter] += 1

    def _is_passing(self, requester: int) -> bool:
        passing = self._passing.get(requester)
        if passing is None:
            if len(self._passing) >= CAPACITY:
                self._passing.clear()
            passing = self._passing[requester] = self._read_passing(requester)
        return passing

    def _context_now(self, requester: int) -> Context | None:
        try:
            return read_context(self._memory, self.root, requester, self._config)
        except TableFault:
            return None

    def _read_passing(self, requester: int) -> bool:
        context = self._context_now(requester)
        return context is not None and context.pass_through

    def _switch(self, mask: int, source: int) -> None:
        """Settles it anew for the devices that are `source` under `mask`."""
        for requester in self._passing:
            if not (requester ^ source) & mask:
                self._passing[requester] = self._read_passing(requester)

    def _lookup(self, context: Context, address: int, access: Access) -> Grant:
        if not self._by_source:
            return super()._lookup(context, address, access)
        self._counters["iotlb_misses"] += 1
        leaf = walk(self._walk_memory, context, address, access, self._config)
        return self._insert(context, leaf)

    def _deny_hit(self, context: Context, missing: int) -> NoReturn:
        if self._loses_denials:
            self._counters["faults"] += 1
            raise UnrecordedFault(denied(missing))
        super()._deny_hit(context, missing)

    def _insert(self, context: Context, leaf: Leaf) -> Grant:
        if len(self._pages) >= CAPACITY:
            self._pages.clear()
        grant = (leaf.address - leaf.iova, LEAVE[leaf.access], leaf.access)
        cached = _Cached(context.domain, leaf.iova >> PAGE_SHIFT, leaf.shift, grant, context)
        self._pages[context.source, leaf.shift, leaf.iova >> leaf.shift] = cached
        return grant

    def _check_pass_through(self, context: Context, address: int) -> None:
        """An address beyond the unit's width passes as well."""
        if not self._settles:
            super()._check_pass_through(context, address)


_SHIFTS: Final = tuple(level_shift(level) for level in range(1, LARGEST_LEAF_LEVEL + 1))


class _QemuFaultLog(FaultLog):
    def __init__(
        self,
        quirks: frozenset[Quirk],
        registers: RegisterFile,
        send_interrupt: SendInterrupt,
        counters: Counter[str],
    ) -> None:
        super().__init__(registers, send_interrupt, counters)
        self._quirks = quirks

    def record_written(self) -> None:
        """A pending event is looked at again only when FSTS is written."""
        if Quirk.EVENT_AWAITS_STATUS in self._quirks:
            self._update_pending()
        else:
            super().record_written()

    def _maskable(self, reason: FaultReason) -> bool:
        if reason == FaultReason.CONTEXT_RESERVED and Quirk.CONTEXT_RESERVED_RECORDED in self._quirks:
            return False
        return super()._maskable(reason)

    def _record(self, record: FaultRecord) -> tuple[int, int]:
        """Faults of a walk carry a PASID field of ones, although no PASID is present."""
        low, high = super()._record(record)
        if record.reason in _FOUND_BY_WALK and Quirk.PASID_OF_ONES in self._quirks:
            high |= _NO_PASID
        return low, high


_NO_PASID: Final = 0xFFFF << 40
_FOUND_BY_WALK: Final = frozenset(
    {
        FaultReason.ADDRESS_BEYOND_WIDTH,
        FaultReason.WRITE_DENIED,
        FaultReason.READ_DENIED,
        FaultReason.TABLE_ACCESS,
        FaultReason.TABLE_RESERVED,
        FaultReason.INTERRUPT_RANGE,
    }
)


class _QemuQueue(InvalidationQueue):
    """Takes descriptors that a legacy unit does not have, and stops more readily than it starts."""

    def reset(self) -> None:
        super().reset()
        self._last_type = -1
        self._written = 0

    def handlers(self) -> dict[int, Callable[[], None]]:
        if not self._has(Quirk.QUEUE_ADDRESS_LATCHED):
            return super().handlers()
        return super().handlers() | {Reg.IQA: self._address_low, Reg.IQA + 4: self._address_high}

    def enable(self) -> None:
        if not self._has(Quirk.QUEUE_ADDRESS_LATCHED):
            super().enable()
            return
        self._registers.set64(Reg.IQA, self._written)
        super().enable()
        self._show_latched()

    def disable(self) -> bool:
        """Refused unless the queue is empty and its last descriptor was a wait."""
        head = self._head
        tail = self._registers.get32(Reg.IQT) >> QUEUE_INDEX_SHIFT
        idle = head == tail and self._last_type == DescriptorType.WAIT
        if self._has(Quirk.QUEUE_KEEPS_RUNNING) and not idle:
            return False
        return super().disable()

    def error_cleared(self) -> None:
        """Nothing is fetched until the tail is written again."""
        if not self._has(Quirk.QUEUE_STAYS_STOPPED):
            super().error_cleared()

    def _address_low(self) -> None:
        """IQA reads as the base that was latched with QIE, and the size that was written."""
        self._written = self._written & ~_LOW | self._registers.get32(Reg.IQA)
        self._show_latched()

    def _address_high(self) -> None:
        self._written = self._written & _LOW | self._registers.get32(Reg.IQA + 4) << 32
        self._show_latched()

    def _show_latched(self) -> None:
        self._registers.set64(Reg.IQA, self._base | self._written & Iqa.QS)

    def _actions(self) -> dict[int, Action]:
        actions = super()._actions()
        if self._has(Quirk.PASID_DESCRIPTORS):
            actions[DescriptorType.PASID_IOTLB] = actions[DescriptorType.PASID_CACHE] = self._ignore
        return {kind: self._noting(kind, actions.get(kind, self._refuse)) for kind in range(TYPE_MASK + 1)}

    def _noting(self, kind: int, action: Action) -> Action:
        def noted(low: int, high: int) -> None:
            self._last_type = kind
            action(low, high)

        return noted

    def _ignore(self, low: int, high: int) -> None:
        pass

    def _refuse(self, low: int, high: int) -> None:
        raise BadDescriptor

    def _device_tlb(self, low: int, high: int) -> None:
        """Taken also without ECAP.DT."""
        if not self._has(Quirk.DEVICE_TLB_ANYWAY):
            super()._device_tlb(low, high)
            return
        if DeviceTlbInvalidate.reserved(low, high):
            raise BadDescriptor
        self._counters["device_tlb_invalidations"] += 1

    def _interrupt_entry(self, low: int, high: int) -> None:
        """Reserved bits are not looked at."""
        if self._has(Quirk.ENTRY_INVALIDATION_UNCHECKED):
            self._target.invalidate_interrupt_entries(*InterruptEntryInvalidate.decode(low, high))
        else:
            super()._interrupt_entry(low, high)

    def _has(self, quirk: Quirk) -> bool:
        return quirk in self._config.quirk_set


_LOW: Final = 0xFFFF_FFFF
