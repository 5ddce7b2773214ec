"""Primary fault logging: one fault record, its status and its event (section 7.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from viommu_actors.spec.tlp import AddressType
from viommu_actors.spec.vtd import (
    FAULT_RECORDED,
    FAULT_SOURCE,
    FaultReason,
    FaultRecord,
    Fsts,
    InterruptFaultRecord,
    Iqer,
    Reg,
)
from viommu_actors.vtd.events import Event, SendInterrupt
from viommu_actors.vtd.registers import RegisterFile

_RECORD_HIGH: Final = Reg.FRCD + 8
#: Among the words of the register file.
_FSTS: Final = Reg.FSTS >> 2
#: Any of these set: an interrupt has been raised and not been served.
_CONDITIONS: Final = Fsts.PFO | Fsts.PPF | Fsts.IQE | Fsts.ICE | Fsts.ITE
#: Either of these set: the invalidation queue stands still.
_STOPPED: Final = Fsts.IQE | Fsts.ITE


class FaultLog:
    """Records faults in FRCD and FSTS. Every blocked request is counted, recorded or not."""

    def __init__(self, registers: RegisterFile, send_interrupt: SendInterrupt, counters: Counter[str]) -> None:
        self._registers = registers
        self._event = Event(registers, Reg.FECTL, send_interrupt)
        self._counters = counters

    def handlers(self) -> dict[int, Callable[[], None]]:
        """What is to be called after a write of a register, by offset."""
        return {
            Reg.FSTS: self.status_written,
            Reg.FECTL: self._event.deliver,
            _RECORD_HIGH + 4: self.record_written,
        }

    def report(
        self,
        source: int,
        address: int,
        write: bool,
        reason: FaultReason,
        fault_disable: bool,
        address_type: int = AddressType.UNTRANSLATED,
    ) -> None:
        """A request was blocked; `fault_disable` is FPD of its context entry."""
        self._counters["faults"] += 1
        if fault_disable and self._maskable(reason):
            self._counters["faults_disabled"] += 1
            return
        self._log(source, self._record(FaultRecord(source, reason, address, write, address_type)))

    def report_interrupt(self, source: int, index: int, reason: FaultReason, fault_disable: bool) -> None:
        """An interrupt was blocked; `fault_disable` is FPD of its table entry, if one was read."""
        self._counters["faults"] += 1
        if fault_disable:
            self._counters["faults_disabled"] += 1
            return
        self._log(source, InterruptFaultRecord(source, reason, index).encode())

    def _log(self, source: int, record: tuple[int, int]) -> None:
        registers = self._registers
        status = registers.get32(Reg.FSTS)
        if status & Fsts.PFO:
            self._counters["faults_lost"] += 1
            return
        pending = registers.get64(_RECORD_HIGH)
        if pending & FAULT_RECORDED:
            if pending & FAULT_SOURCE == source:
                # A further fault of a requester whose record waits may be collapsed into it.
                self._counters["faults_collapsed"] += 1
            else:
                self._counters["faults_lost"] += 1
                registers.change32(Reg.FSTS, set_=Fsts.PFO)
            return
        self._counters["faults_recorded"] += 1
        low, high = record
        registers.set64(Reg.FRCD, low)
        registers.set64(_RECORD_HIGH, high | FAULT_RECORDED)
        self._raise(Fsts.PPF)

    def queue_error(self) -> None:
        """The invalidation queue stopped at a bad descriptor."""
        self._raise(Fsts.IQE)

    def completion_error(self, source: int) -> None:
        """A device completed an invalidation that it does not owe."""
        self._note_source(source, Iqer.ICE_SOURCE_SHIFT)
        self._raise(Fsts.ICE)

    def invalidation_timeout(self, source: int) -> None:
        """A device did not complete an invalidation in time; the queue stops."""
        self._note_source(source, Iqer.ITE_SOURCE_SHIFT)
        self._raise(Fsts.ITE)

    def _note_source(self, source: int, shift: int) -> None:
        kept = self._registers.get64(Reg.IQER) & ~(Iqer.SOURCE_MASK << shift)
        self._registers.set64(Reg.IQER, kept | source << shift)

    @property
    def queue_stopped(self) -> bool:
        return self._registers.words[_FSTS] & _STOPPED != 0

    def status_written(self) -> None:
        """After a write of FSTS."""
        if not self._registers.get32(Reg.FSTS) & _CONDITIONS:
            self._event.withdraw()

    def record_written(self) -> None:
        """After a write of FRCD's upper half: PPF follows its F bit."""
        self._update_pending()
        self.status_written()

    def _update_pending(self) -> None:
        if not self._registers.get64(_RECORD_HIGH) & FAULT_RECORDED:
            self._registers.change32(Reg.FSTS, clear=Fsts.PPF)

    def _raise(self, condition: int) -> None:
        """Sets a condition; an event follows only where none was waiting to be served (section 7.3)."""
        before = self._registers.get32(Reg.FSTS)
        self._registers.change32(Reg.FSTS, set_=condition)
        if not before & _CONDITIONS:
            self._event.signal()

    def _maskable(self, reason: FaultReason) -> bool:
        return reason.qualified

    def _record(self, record: FaultRecord) -> tuple[int, int]:
        return record.encode()
