"""Fault events of a remapping unit: its interrupt, its records, and the lines that Linux prints (dmar_fault)."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from viommu_actors.kernel.irq import Interrupts
from viommu_actors.kernel.machine import Machine
from viommu_actors.spec import pci
from viommu_actors.spec import vtd as spec
from viommu_actors.spec.vtd import EventControl, Fsts, Reg
from viommu_actors.spec.vtd_interrupts import INTERRUPT_BASE

#: Records kept, and lines printed, until they are taken.
_LIMIT = 1024
#: Faults after which, if nobody has taken them, the unit's fault event is masked: a device that does nothing but fault
#: must not keep the processor busy. Linux limits the lines alone (dmar_fault).
STORM = 1 << 15
_COMPLETION_ERRORS_LOGGED = 10


class FaultRecord(NamedTuple):
    """One blocked request. `source` is the requester ID, `address` the page it asked for.

    Of an interrupt, `address` holds the index of its remapping entry in the bits that Linux prints it from.
    """

    source: int
    address: int
    write: bool
    reason: spec.FaultReason

    @property
    def entry(self) -> int | None:
        """Index of the interrupt remapping entry; None for a DMA."""
        return spec.InterruptFaultRecord.decode(self.address, 0).entry if self.reason.of_interrupt else None


class FaultHandler:
    """Reads and clears fault records, by interrupt or when asked."""

    def __init__(
        self,
        machine: Machine,
        registers: int,
        capability: spec.Capability,
        irq: Interrupts,
        counters: Counter[str],
    ) -> None:
        """`counters`: fault_storms, how often the fault event was masked."""
        self._machine = machine
        self._counters = counters
        self._registers = registers
        self._first = registers + capability.fault_offset
        self._count = capability.fault_records
        self._log = machine.log
        self._masked = False
        #: What came since it was last taken, the first `_LIMIT`; `lost` counts what found no place or no record.
        self.records: list[FaultRecord] = []
        self.lost = 0
        self._completion_errors = 0
        self._drain()
        vector = irq.request_vector(self.handle)
        machine.mmio_write(registers + Reg.FEDATA, 4, vector)
        machine.mmio_write(registers + Reg.FEADDR, 4, INTERRUPT_BASE)
        machine.mmio_write(registers + Reg.FEUADDR, 4, 0)
        machine.mmio_write(registers + Reg.FECTL, 4, 0)
        self.take()

    def handle(self) -> None:
        """The fault interrupt."""
        status = self._machine.mmio_read(self._registers + Reg.FSTS, 4)
        if status & Fsts.ICE:
            self._clear_completion_error()
        if status & (Fsts.PPF | Fsts.PFO):
            if not self.lost and len(self.records) < _LIMIT:
                self._log(f"DMAR: DRHD: handling fault status reg {status:x}")
            self._drain(status)
        if not self._masked and len(self.records) + self.lost >= STORM:
            self._log(f"DMAR: DRHD: {STORM} faults and nobody looks at them: fault event masked")
            self._counters["fault_storms"] += 1
            self._mask(True)

    def take(self) -> tuple[list[FaultRecord], int]:
        """Records that came since the last call, those whose interrupt is still to come included, and how many were
        lost."""
        self.handle()
        taken = self.records, self.lost
        self.records, self.lost = [], 0
        if self._masked:
            self._mask(False)
        return taken

    def _mask(self, masked: bool) -> None:
        """What faults while the event is masked is recorded and overflows in the unit, as far as that goes."""
        self._masked = masked
        self._machine.mmio_write(self._registers + Reg.FECTL, 4, EventControl.IM if masked else 0)

    def _clear_completion_error(self) -> None:
        """A device completed an invalidation that it does not owe; while that stands no other fault would interrupt."""
        self._completion_errors += 1
        if self._completion_errors <= _COMPLETION_ERRORS_LOGGED:
            source = self._machine.mmio_read(self._registers + Reg.IQER, 8) >> spec.Iqer.ICE_SOURCE_SHIFT
            self._log(f"DMAR: VT-d detected Invalidation Completion Error: SID {source:x}")
        self._machine.mmio_write(self._registers + Reg.FSTS, 4, Fsts.ICE)

    def _drain(self, status: int | None = None) -> None:
        if status is None:
            status = self._machine.mmio_read(self._registers + Reg.FSTS, 4)
        index = status >> Fsts.FRI_SHIFT & Fsts.FRI_MASK
        for _ in range(self._count):
            place = self._first + index % self._count * spec.FAULT_RECORD_SIZE
            high = self._machine.mmio_read(place + 8, 8)
            if not high & spec.FAULT_RECORDED:
                break
            low = self._machine.mmio_read(place, 8)
            # Bit 63 of the record's upper word, cleared by writing one.
            self._machine.mmio_write(place + 12, 4, spec.FAULT_RECORDED >> 32)
            self._record(spec.FaultRecord.decode(low, high))
            index += 1
        if status & Fsts.PFO:
            self.lost += 1
            self._machine.mmio_write(self._registers + Reg.FSTS, 4, Fsts.PFO)

    def _record(self, record: spec.FaultRecord) -> None:
        try:
            reason = spec.FaultReason(record.reason)
        except ValueError:
            self._log(f"DMAR: fault record with unknown reason {record.reason:#04x}")
            self.lost += 1
            return
        if len(self.records) >= _LIMIT:
            self.lost += 1
            return
        taken = FaultRecord(record.source, record.address, record.write, reason)
        self.records.append(taken)
        name = pci.format_bdf(record.source)
        if taken.entry is not None:
            what = f"[INTR-REMAP] Request device [{name}] fault index {taken.entry:#x}"
        else:
            kind = "Write" if record.write else "Read"
            what = f"[DMA {kind} NO_PASID] Request device [{name}] fault addr {record.address:#x}"
        self._log(f"DMAR: {what} [fault reason {reason:#04x}] {reason.text}")
