"""Translation of DMA requests through the caches and, where they miss, the tables (section 3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from viommu_actors.memory import Memory
from viommu_actors.spec.vtd import (
    INTERRUPT_FIRST,
    INTERRUPT_LAST,
    PAGE_SHIFT,
    Access,
    ContextGranularity,
    FaultReason,
    IotlbGranularity,
)
from viommu_actors.vtd.caches import CAPACITY, ContextCache, Grant, Iotlb, Offsets, offsets
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.faults import FaultLog
from viommu_actors.vtd.tables import Context, TableFault, denied, read_context, walk

_PAGE = int(IotlbGranularity.PAGE)


class Translation(NamedTuple):
    """Where a request goes, or with a `reason` that it is blocked (`address` is then the request's own)."""

    address: int
    reason: FaultReason | None


#: translate(requester, address, access)
Translate = Callable[[int, int, Access], Translation]


class UnrecordedFault(Exception):
    """A request is blocked, and no record of it is to be left."""

    def __init__(self, reason: FaultReason) -> None:
        super().__init__(reason.text)
        self.reason = reason


def is_interrupt(address: int) -> bool:
    """Whether a request goes to the interrupt address range: it is never translated, a write there is an MSI."""
    return INTERRUPT_FIRST <= address <= INTERRUPT_LAST


class Translator:
    """Context cache, IOTLB and page walks of one unit."""

    def __init__(self, memory: Memory, config: UnitConfig, faults: FaultLog, counters: Counter[str]) -> None:
        self._memory = self._walk_memory = memory
        self._config = config
        self._faults = faults
        self._counters = counters
        self._contexts = ContextCache()
        #: What was hit since the last invalidation of whatever kind, by requester and page: in the caches all of it.
        self._recent: dict[int, dict[int, Offsets]] = {}
        self._iotlb = Iotlb()
        self.reset()

    def reset(self) -> None:
        self.enabled = False
        self.root = 0
        self.flush()

    def attach(self, requester: int) -> None:
        """A device is there. Nothing of it is looked at before its first request."""

    def hot_path(self) -> tuple[Translate, Callable[[], int]]:
        """`translate`, as fast as Python allows, and how often it answered without going further.

        One request that does not cross a 4 KiB boundary. A fault is recorded here.
        """
        recent, slowly, new = self._recent, self._translate_slowly, tuple.__new__
        hits = 0

        def translate(requester: int, address: int, access: Access) -> Translation:
            nonlocal hits
            try:
                offset = recent[requester][address >> PAGE_SHIFT][access]
            except KeyError:
                return slowly(requester, address, access)
            if offset is None:
                return slowly(requester, address, access)
            hits += 1
            return new(Translation, (address + offset, None))

        return translate, lambda: hits

    def _translate_slowly(self, requester: int, address: int, access: Access) -> Translation:
        """All that was not asked for just before."""
        if not self.enabled or is_interrupt(address):
            self._counters["untranslated"] += 1
            return Translation(address, None)
        try:
            context = self.context(requester)
            if context.pass_through:
                self._counters["passed_through"] += 1
                self._check_pass_through(context, address)
                return Translation(address, None)
            grant = self._lookup(context, address, access)
        except TableFault as fault:
            write = bool(access & Access.WRITE)
            self._faults.report(requester, address, write, fault.reason, fault.fault_disable)
            return Translation(address, fault.reason)
        except UnrecordedFault as fault:
            return Translation(address, fault.reason)
        return Translation(address + grant[0], None)

    def context(self, requester: int) -> Context:
        """The context of a requester, from the cache or from memory. Raises TableFault."""
        context = self._contexts.entries.get(requester)
        if context is None:
            try:
                context = read_context(self._memory, self.root, requester, self._config)
            except TableFault:
                self._counters["context_faults"] += 1
                raise
            self._recent.clear()
            self._contexts.insert(context)
        return context

    def _lookup(self, context: Context, address: int, access: Access) -> Grant:
        """From the IOTLB, or by a walk. Raises TableFault, also where a cached page does not allow the access."""
        grant = self._iotlb.find(context.domain, address)
        if grant is None:
            self._counters["iotlb_misses"] += 1
            if len(self._iotlb) >= CAPACITY:
                self._recent.clear()
            return self._iotlb.insert(context.domain, walk(self._walk_memory, context, address, access, self._config))
        self._counters["iotlb_hits"] += 1
        if address >> context.width:
            raise TableFault(FaultReason.ADDRESS_BEYOND_WIDTH, context.fault_disable)
        if not grant[1][access]:
            self._deny_hit(context, access & ~grant[2])
        self._recent.setdefault(context.source, {})[address >> PAGE_SHIFT] = offsets(grant)
        return grant

    def _deny_hit(self, context: Context, missing: int) -> NoReturn:
        """A cached page lacks these rights, bits of Access."""
        raise TableFault(denied(missing), context.fault_disable)

    def _check_pass_through(self, context: Context, address: int) -> None:
        if address >> self._config.aw_bits:
            raise TableFault(FaultReason.ADDRESS_BEYOND_WIDTH, context.fault_disable)

    # --- invalidation ------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Forgets everything."""
        self._recent.clear()
        self._contexts.clear()
        self._iotlb.clear()

    def invalidate_context(self, granularity: int, domain: int, source: int, function_mask: int) -> int:
        """Returns the granularity carried out."""
        self._recent.clear()
        if granularity == ContextGranularity.DEVICE:
            self._contexts.drop_device(source, function_mask)
        elif granularity == ContextGranularity.DOMAIN:
            self._contexts.drop_domain(domain)
        else:
            self._contexts.clear()
        return granularity

    def invalidate_iotlb(self, granularity: int, domain: int, address: int, address_mask: int) -> None:
        self._recent.clear()
        if granularity == _PAGE:
            self._iotlb.drop_pages(domain, address, address_mask)
        elif granularity == IotlbGranularity.DOMAIN:
            self._iotlb.drop_domain(domain)
        else:
            self._iotlb.clear()
