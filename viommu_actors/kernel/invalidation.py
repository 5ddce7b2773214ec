"""How the kernel makes a remapping unit forget: by its invalidation queue, or by registers where it has none.

Every call returns only when the unit has done it, transactions under way drained (VT-d sections 6.5.1 and 6.5.2;
Linux: qi_submit_sync, __iommu_flush_iotlb).
"""

from __future__ import annotations

from collections import Counter
from struct import Struct
from typing import Protocol

from viommu_actors.kernel.machine import KernelPanic, Machine
from viommu_actors.kernel.pages import PageAllocator
from viommu_actors.spec.vtd import (
    DESCRIPTOR_SIZE,
    Ccmd,
    ContextCacheInvalidate,
    ContextGranularity,
    DeviceTlbInvalidate,
    Fsts,
    InterruptEntryInvalidate,
    InvalidationWait,
    IotlbGranularity,
    IotlbInvalidate,
    IotlbRegister,
    Iqa,
    Iqer,
    Reg,
)
from viommu_actors.spec.vtd_invalidation import DOMAIN_SHIFT

#: Reads of a status after which a unit counts as dead.
_PATIENCE = 10_000
_WORDS = Struct("<QQ")
_RING_SIZE = DESCRIPTOR_SIZE << Iqa.ENTRIES_SHIFT
#: A descriptor and the wait for it.
_SUBMITTED = 2 * DESCRIPTOR_SIZE


class Invalidation(Protocol):
    """Each returns when it is done. Addresses in bytes; `mask` as a power of two of pages."""

    def context(self, granularity: ContextGranularity, domain: int = 0, source: int = 0) -> None: ...

    def iotlb(self, granularity: IotlbGranularity, domain: int = 0) -> None: ...

    def iotlb_pages(self, domain: int, address: int, mask: int) -> None: ...


class QueuedInvalidation:
    """A queue of 256 descriptors: each one is followed by a wait, and waited for."""

    def __init__(
        self, machine: Machine, registers: int, pages: PageAllocator, counters: Counter[str], drain: tuple[bool, bool]
    ) -> None:
        """`drain` says whether the unit can drain writes and reads."""
        self._machine = machine
        self._memory = machine.memory
        self._counters = counters
        self._status_register = registers + Reg.FSTS
        self._tail_register = registers + Reg.IQT
        self._error_register = registers + Reg.IQER
        self.ring = pages.alloc()
        self._status = pages.alloc()
        self._tail = 0
        self._pages_low, _ = IotlbInvalidate(
            IotlbGranularity.PAGE, drain_writes=drain[0], drain_reads=drain[1]
        ).encode()
        self._drain = drain
        # Every second descriptor is a wait, written once. Each has a status of its own, the offset of its end, so
        # that nothing needs to be cleared between them.
        for tail in range(_SUBMITTED, _RING_SIZE + 1, _SUBMITTED):
            wait = InvalidationWait(status_write=True, data=tail, address=self._status)
            self._memory.write(self.ring + tail - DESCRIPTOR_SIZE, _WORDS.pack(*wait.encode()))

    @property
    def pages(self) -> list[int]:
        return [self.ring, self._status]

    def context(self, granularity: ContextGranularity, domain: int = 0, source: int = 0) -> None:
        self._counters["context_invalidations"] += 1
        self._insist(*ContextCacheInvalidate(granularity, domain, source).encode())

    def iotlb(self, granularity: IotlbGranularity, domain: int = 0) -> None:
        self._counters["invalidations"] += 1
        writes, reads = self._drain
        self._insist(*IotlbInvalidate(granularity, domain, drain_writes=writes, drain_reads=reads).encode())

    def iotlb_pages(self, domain: int, address: int, mask: int) -> None:
        self._counters["invalidations"] += 1
        self._insist(self._pages_low | domain << DOMAIN_SHIFT, address | mask)

    def device_tlb(self, source: int, first: int, shift: int, max_pending: int) -> bool:
        """Has a device forget its translations of 2^shift bytes; False where it did not say in time that it has.

        The unit stopped then (ITE), and goes on (Linux: qi_check_fault). `max_pending` is the device's queue depth.
        """
        self._counters["device_tlb_invalidations"] += 1
        return self._submit(*DeviceTlbInvalidate.of_range(source, first, shift, max_pending).encode())

    def interrupt_entries(self, first: int | None = None, mask: int = 0) -> None:
        """2^mask entries of the interrupt remapping table from `first`, naturally aligned; without it all."""
        self._counters["interrupt_entry_invalidations"] += 1
        self._insist(*InterruptEntryInvalidate(first is not None, first or 0, mask).encode())

    def _insist(self, low: int, high: int) -> None:
        """For what no device has a part in: were it aborted with another's wait, it is done again."""
        while not self._submit(low, high):
            pass

    def _submit(self, low: int, high: int) -> bool:
        """Whether it is done; False where its wait was aborted."""
        memory, counters, place = self._memory, self._counters, self._tail
        done = place + _SUBMITTED
        self._tail = tail = done % _RING_SIZE
        memory.write(self.ring + place, _WORDS.pack(low, high))
        counters["waits"] += 1
        counters["queue_tail_writes"] += 1
        self._machine.mmio_write(self._tail_register, 4, tail)
        return memory.read_u64(self._status) == done or self._spin(done)

    def _spin(self, done: int) -> bool:
        for _ in range(_PATIENCE):
            status = self._machine.mmio_read(self._status_register, 4)
            if self._memory.read_u64(self._status) == done:
                return True
            if status & Fsts.IQE:
                raise KernelPanic(f"DMAR: VT-d detected an invalidation queue error: FSTS = {status:#x}")
            if status & Fsts.ITE:
                self._clear_timeout()
                return False
        raise KernelPanic("DMAR: the invalidation queue does not complete its wait descriptor")

    def _clear_timeout(self) -> None:
        """The unit has aborted the wait; with ITE cleared it fetches on behind it."""
        source = self._machine.mmio_read(self._error_register, 8) >> Iqer.ITE_SOURCE_SHIFT & Iqer.SOURCE_MASK
        self._machine.log(f"DMAR: VT-d detected Invalidation Time-out Error: SID {source:x}")
        self._machine.mmio_write(self._status_register, 4, Fsts.ITE)
        self._machine.log("DMAR: Invalidation Time-out Error (ITE) cleared")


class RegisterInvalidation:
    """Context command and IOTLB registers, for a unit without a queue."""

    pages: tuple[int, ...] = ()

    def __init__(
        self, machine: Machine, registers: int, iotlb_offset: int, counters: Counter[str], drain: tuple[bool, bool]
    ) -> None:
        """`iotlb_offset` is ECAP.IRO: IVA there, the IOTLB register behind it."""
        self._machine = machine
        self._context_register = registers + Reg.CCMD
        self._address_register = registers + iotlb_offset
        self._iotlb_register = registers + iotlb_offset + 8
        self._counters = counters
        self._command = IotlbRegister.IVT
        self._command |= (IotlbRegister.DW if drain[0] else 0) | (IotlbRegister.DR if drain[1] else 0)

    def context(self, granularity: ContextGranularity, domain: int = 0, source: int = 0) -> None:
        self._counters["context_invalidations"] += 1
        value = Ccmd.ICC | granularity << Ccmd.CIRG_SHIFT | source << Ccmd.SID_SHIFT | domain << Ccmd.DID_SHIFT
        self._run(self._context_register, value, Ccmd.ICC)

    def iotlb(self, granularity: IotlbGranularity, domain: int = 0) -> None:
        self._counters["invalidations"] += 1
        value = self._command | granularity << IotlbRegister.IIRG_SHIFT | domain << IotlbRegister.DID_SHIFT
        self._run(self._iotlb_register, value, IotlbRegister.IVT)

    def iotlb_pages(self, domain: int, address: int, mask: int) -> None:
        self._machine.mmio_write(self._address_register, 8, address | mask)
        self.iotlb(IotlbGranularity.PAGE, domain)

    def _run(self, register: int, value: int, busy: int) -> None:
        self._machine.mmio_write(register, 8, value)
        for _ in range(_PATIENCE):
            if not self._machine.mmio_read(register, 8) & busy:
                return
        raise KernelPanic(f"DMAR: an invalidation by the register at {register:#x} does not complete")
