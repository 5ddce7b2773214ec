"""Requests of address translation services: what a device may learn, and which translated addresses it may use.

VT-d chapter 4 and PCI Express 5.0 section 10.2. A translated request is not translated again, and its address is not
looked at: whoever may make one reaches any address. All that stands in its way is its context entry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from viommu_actors.memory import Memory
from viommu_actors.spec.ats import TranslationEntry
from viommu_actors.spec.tlp import AddressType, CompletionStatus
from viommu_actors.spec.vtd import PAGE_MASK, PAGE_SHIFT, Access, FaultReason
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.faults import FaultLog
from viommu_actors.vtd.tables import Context, TableFault, leaf_at
from viommu_actors.vtd.translator import Translator, is_interrupt


class TranslationAgent:
    """Answers device-TLBs, and judges requests with translated addresses."""

    def __init__(
        self,
        translator: Translator,
        memory: Memory,
        config: UnitConfig,
        faults: FaultLog,
        counters: Counter[str],
        completed: Callable[[int, int, int], bool],
    ) -> None:
        #: completed(source, itags, copies): an invalidation completion came; whether it was owed.
        self.completed = completed
        self._translator = translator
        self._memory = memory
        self._config = config
        self._faults = faults
        self._counters = counters

    @property
    def serves(self) -> bool:
        """Whether there is the service at all: with translation off, or on a unit that does not offer it, there is none
        and nothing is recorded."""
        return self._config.device_iotlb and self._translator.enabled

    def translate(self, requester: int, address: int, no_write: bool) -> TranslationEntry | CompletionStatus:
        """A translation request: the range that holds `address`, or the status of a completion without data.

        An address that is not mapped is no fault: the answer gives no leave. Only for one that the device may not ask,
        or that broken tables stand in the way of, a fault is recorded.
        """
        self._counters["translation_requests"] += 1
        page = address & ~PAGE_MASK
        if is_interrupt(address):
            # Interrupts are written untranslated (section 3.14).
            return TranslationEntry(page, PAGE_SHIFT, Access.WRITE, untranslated_only=True)
        kind = AddressType.TRANSLATION_REQUEST
        context = self._context(requester, address, False, kind)
        if not isinstance(context, Context):
            return CompletionStatus.UNSUPPORTED_REQUEST
        # Read afresh: what the IOTLB still holds of a mapping that is gone is not handed out.
        leaf = leaf_at(self._memory, context, address, self._config)
        if leaf is None:
            return TranslationEntry(page, PAGE_SHIFT, Access.NONE)
        if leaf.reason is not None:
            self._faults.report(requester, address, False, leaf.reason, context.fault_disable, kind)
            return CompletionStatus.COMPLETER_ABORT
        access = leaf.access & ~Access.WRITE if no_write else leaf.access
        return TranslationEntry(leaf.address, leaf.shift, access)

    def admit(self, requester: int, address: int, access: Access) -> FaultReason | None:
        """A translated request: None where it may pass with the address that it has."""
        self._counters["translated_requests"] += 1
        write = bool(access & Access.WRITE)
        context = self._context(requester, address, write, AddressType.TRANSLATED)
        return None if isinstance(context, Context) else context

    def _context(self, requester: int, address: int, write: bool, kind: AddressType) -> Context | FaultReason:
        """The requester's context where it allows device-TLBs (TT = 01); else the fault, which is recorded."""
        try:
            context = self._translator.context(requester)
            if not context.device_iotlb:
                raise TableFault(FaultReason.TRANSLATION_BLOCKED, context.fault_disable)
        except TableFault as fault:
            self._faults.report(requester, address, write, fault.reason, fault.fault_disable, kind)
            return fault.reason
        return context
