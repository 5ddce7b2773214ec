"""Interrupt remapping: requests to 0xFEExxxxx, checked and rewritten by the table that IRTA names (section 5.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from viommu_actors.memory import Memory, Unclaimed
from viommu_actors.spec.vtd import FaultReason, Irta, Reg
from viommu_actors.spec.vtd_interrupts import (
    INTERRUPT_ENTRY_POSTED,
    INTERRUPT_ENTRY_SIZE,
    INTERRUPT_INDEX_MASK,
    SOURCE_QUALIFIERS,
    Interrupt,
    InterruptEntry,
    InterruptRequest,
    SourceValidation,
    apic_destination,
    interrupt_entry_reserved,
    is_remappable,
)
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.deviations import Quirk
from viommu_actors.vtd.faults import FaultLog
from viommu_actors.vtd.registers import RegisterFile

#: Entries that the cache holds; when it is full all of them go.
CAPACITY: Final = 1024

#: changed(first, count): these entries of the table may say something else now.
EntriesChanged = Callable[[int, int], None]


class Remapped(NamedTuple):
    """The interrupt that the table's entry number `entry` makes of the request."""

    interrupt: Interrupt
    entry: int


class Compatible(NamedTuple):
    """The message goes on as it is: remapping is off, or lets the compatibility format pass."""

    address: int
    data: int

    @property
    def interrupt(self) -> Interrupt:
        return Interrupt.of_message(self.address, self.data)


class Blocked(NamedTuple):
    """Nothing is delivered. The fault has been recorded, unless the entry's FPD forbids it."""

    reason: FaultReason


Outcome = Remapped | Compatible | Blocked


class Remap(Protocol):
    """See `InterruptRemapper.remap`."""

    def __call__(self, requester: int | None, address: int, data: int, record: bool = True) -> Outcome: ...


class _Fault(Exception):
    def __init__(self, reason: FaultReason, index: int = 0, fault_disable: bool = False) -> None:
        super().__init__(reason.text)
        self.reason = reason
        self.index = index
        self.fault_disable = fault_disable


class InterruptRemapper:
    """Latched table, interrupt entry cache and checks of one unit."""

    def __init__(
        self,
        memory: Memory,
        config: UnitConfig,
        registers: RegisterFile,
        faults: FaultLog,
        counters: Counter[str],
        changed: EntriesChanged | None,
    ) -> None:
        self._memory = memory
        self._config = config
        self._registers = registers
        self._faults = faults
        self._counters = counters
        self._changed: EntriesChanged = changed or (lambda first, count: None)
        self._entries: dict[int, InterruptEntry] = {}
        quirks = config.quirk_set
        self._caches = Quirk.ENTRIES_UNCACHED not in quirks
        self._compatibility_passes = Quirk.COMPATIBILITY_PASSES in quirks
        self._swapped = Quirk.BUS_RANGE_SWAPPED in quirks
        self._anonymous_pass = Quirk.WRITES_ANONYMOUS in quirks
        self._records = Quirk.INTERRUPT_FAULTS_LOST not in quirks
        self._ignored = INTERRUPT_ENTRY_POSTED if Quirk.POSTED_IGNORED in quirks else 0
        self.reset()

    def reset(self) -> None:
        self._enabled = False
        self._compatibility = False
        self._extended = False
        self._table = 0
        self._size = 0
        self.flush()

    # --- what software sets ----------------------------------------------------------------------------------------

    def latch(self) -> None:
        """SIRTP: the table is the one that IRTA names now."""
        value = self._registers.get64(Reg.IRTA)
        self._table = value & Irta.BASE & (1 << self._config.aw_bits) - 1
        self._size = 2 << (value & Irta.SIZE)
        self._extended = bool(value & Irta.EIME)
        self.flush()

    def enable(self, enabled: bool) -> None:
        """IRE."""
        self._enabled = enabled
        self.flush()

    def allow_compatibility(self, allowed: bool) -> None:
        """CFI; with extended interrupt mode the format is blocked all the same."""
        self._compatibility = allowed
        self._tell()

    def flush(self) -> None:
        """Forgets every cached entry."""
        self._entries.clear()
        self._tell()

    def invalidate(self, first: int, index_mask: int) -> None:
        """Forgets the 2^index_mask entries around `first`, naturally aligned."""
        count = 1 << min(index_mask, INTERRUPT_INDEX_MASK.bit_length())
        first = first & -count & INTERRUPT_INDEX_MASK
        if not self._caches:
            self._entries.clear()
        if count < len(self._entries):
            for index in range(first, first + count):
                self._entries.pop(index, None)
        else:
            for index in [index for index in self._entries if first <= index < first + count]:
                del self._entries[index]
        self._changed(first, count)

    def _tell(self) -> None:
        self._changed(0, INTERRUPT_INDEX_MASK + 1)

    # --- requests ------------------------------------------------------------------------------------------------

    def remap(self, requester: int | None, address: int, data: int, record: bool = True) -> Outcome:
        """A 32-bit write of `data` to 0xFEExxxxx. A `requester` of None has no id that an entry could accept.

        `record` False asks what would become of it, for an interrupt route: no fault is recorded then.
        """
        if not self._enabled:
            self._counters["interrupts_unremapped"] += 1
            return Compatible(address, data)
        try:
            if not is_remappable(address):
                if not self._compatibility_passes and (self._extended or not self._compatibility):
                    raise _Fault(FaultReason.IR_COMPATIBILITY_BLOCKED)
                self._counters["interrupts_compatible"] += 1
                return Compatible(address, data)
            outcome = self._remap(requester, InterruptRequest.decode(address, data))
        except _Fault as fault:
            self._counters["interrupts_blocked"] += 1
            if record and self._records:
                self._faults.report_interrupt(requester or 0, fault.index, fault.reason, fault.fault_disable)
            return Blocked(fault.reason)
        self._counters["interrupts_remapped"] += 1
        return outcome

    def _remap(self, requester: int | None, request: InterruptRequest) -> Remapped:
        index = request.entry
        if request.reserved:
            raise _Fault(FaultReason.IR_REQUEST_RESERVED, index)
        entry = self._entries.get(index) if self._caches else None
        if entry is None:
            entry = self._read(index)
        if not self._valid_source(entry, requester):
            raise _Fault(FaultReason.IR_SOURCE_ID, index, entry.fault_disable)
        interrupt = Interrupt(
            apic_destination(entry.destination, self._extended),
            entry.logical,
            entry.redirection_hint,
            entry.delivery_mode,
            entry.vector,
            entry.level,
        )
        return Remapped(interrupt, index)

    def _read(self, index: int) -> InterruptEntry:
        """From memory; cached if it is present and valid."""
        if index >= self._size:
            raise _Fault(FaultReason.IR_INDEX, index)
        address = self._table + index * INTERRUPT_ENTRY_SIZE
        try:
            low, high = self._memory.read_pair(address)
        except Unclaimed:
            raise _Fault(FaultReason.IR_TABLE_ACCESS, index) from None
        entry = InterruptEntry.decode(low, high)
        if not self._caches and self._entries.get(index, entry) != entry:
            self._counters[Quirk.ENTRIES_UNCACHED.counter] += 1
        if not entry.present:
            raise _Fault(FaultReason.IR_NOT_PRESENT, index, entry.fault_disable)
        if interrupt_entry_reserved(low, high, self._ignored):
            raise _Fault(FaultReason.IR_ENTRY_RESERVED, index, entry.fault_disable)
        if len(self._entries) >= CAPACITY:
            self._entries.clear()
        self._entries[index] = entry
        return entry

    def _valid_source(self, entry: InterruptEntry, requester: int | None) -> bool:
        """SVT and SQ (section 9.10). With the reserved SVT no source is valid, as in QEMU."""
        if entry.validation == SourceValidation.NONE:
            return True
        if requester is None:
            return self._anonymous_pass
        if entry.validation == SourceValidation.SOURCE:
            return not (entry.source ^ requester) & SOURCE_QUALIFIERS[entry.qualifier]
        if entry.validation == SourceValidation.BUS_RANGE:
            start, end = entry.source >> 8, entry.source & 0xFF
            if self._swapped:
                start, end = end, start
            return start <= requester >> 8 <= end
        return False
