"""The invalidation queue: descriptors fetched from memory and carried out in order (section 6.5.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from struct import Struct
from typing import Final, Protocol

from viommu_actors.memory import Memory, Unclaimed
from viommu_actors.spec.ats import ITAGS
from viommu_actors.spec.vtd import (
    DESCRIPTOR_SIZE,
    ICS_IWC,
    QUEUE_INDEX_SHIFT,
    TYPE_MASK,
    WAIT_DATA_SHIFT,
    WAIT_INTERRUPT,
    WAIT_STATUS_WRITE,
    ContextCacheInvalidate,
    ContextGranularity,
    DescriptorType,
    DeviceTlbInvalidate,
    InterruptEntryInvalidate,
    InvalidationWait,
    IotlbGranularity,
    IotlbInvalidate,
    Iqa,
    Reg,
)
from viommu_actors.vtd.config import MAX_ADDRESS_MASK, UnitConfig
from viommu_actors.vtd.device_tlbs import DeviceTlbs
from viommu_actors.vtd.events import Event, SendInterrupt
from viommu_actors.vtd.faults import FaultLog
from viommu_actors.vtd.listener import Effort
from viommu_actors.vtd.registers import RegisterFile

_STATUS: Final = Struct("<I")
#: Head and tail among the words of the register file.
_IQH: Final = Reg.IQH >> 2
_IQT: Final = Reg.IQT >> 2
#: As plain integers, for a member of an enumeration takes longer to be found and compared than all else about it.
_RESERVED: Final = int(IotlbGranularity.RESERVED)
_PAGE: Final = int(IotlbGranularity.PAGE)


#: Carries out a descriptor, given its low and high word. Raises BadDescriptor.
Action = Callable[[int, int], None]


class Invalidations(Protocol):
    """What descriptors act on."""

    def invalidate_context(self, granularity: int, domain: int, source: int, function_mask: int) -> object: ...

    def invalidate_iotlb(self, granularity: int, domain: int, address: int, address_mask: int) -> None: ...

    def invalidate_interrupt_entries(self, indexed: bool, first: int, index_mask: int) -> None: ...


class BadDescriptor(Exception):
    """The queue stops here with FSTS.IQE."""


def _bad(low: int, high: int) -> None:
    """A descriptor type that is not there."""
    raise BadDescriptor


class _NoTag(Exception):
    """The descriptor is looked at again when a device has answered."""


class _Held(Exception):
    """The descriptor, a wait, has been fetched, and nothing is behind it until devices have answered."""


class InvalidationQueue:
    """Runs whenever software writes the tail.

    All is done when that returns, and so is a wait, but for what devices owe: a wait behind their invalidations is held
    until they have answered, and nothing behind it is fetched before (as if it had its fence).
    """

    def __init__(
        self,
        registers: RegisterFile,
        memory: Memory,
        config: UnitConfig,
        target: Invalidations,
        faults: FaultLog,
        send_interrupt: SendInterrupt,
        counters: Counter[str],
        device_tlbs: DeviceTlbs,
    ) -> None:
        self._registers = registers
        self._memory = memory
        self._config = config
        self._target = target
        self._faults = faults
        self._completion = Event(registers, Reg.IECTL, send_interrupt)
        self._counters = counters
        self._device_tlbs = device_tlbs
        #: Looked at after each descriptor: used up, the rest is to wait for `run`.
        self.effort = Effort()
        self._owed = device_tlbs.owed
        actions = self._actions()
        #: by descriptor type
        self._execute = tuple(actions.get(kind, _bad) for kind in range(TYPE_MASK + 1))
        self.reset()

    def handlers(self) -> dict[int, Callable[[], None]]:
        """What is to be called after a write of a register, by offset."""
        return {
            Reg.IQT: self.run,
            Reg.ICS: self.completion_written,
            Reg.IECTL: self._completion.deliver,
        }

    def reset(self) -> None:
        self.enabled = False
        self._base = 0
        self._entries = 0
        self._head = 0
        self._running = False
        #: There is more to do, and whoever runs this had enough for now.
        self.paused = False
        #: A wait that has been fetched and is not complete.
        self._held: tuple[int, int] | None = None

    def enable(self) -> None:
        """QIE 0 to 1: latches address and size; a tail already written is acted on, as in QEMU."""
        address = self._registers.get64(Reg.IQA)
        self._base = address & Iqa.BASE & (1 << self._config.aw_bits) - 1
        self._entries = 1 << (address & Iqa.QS) + Iqa.ENTRIES_SHIFT
        self.enabled = True
        if self._registers.get32(Reg.IQT):
            self.run()

    def disable(self) -> bool:
        """QIE 1 to 0; whether it is done."""
        self._head = 0
        self._registers.set32(Reg.IQH, 0)
        self.enabled = False
        self._held = None
        return True

    def run(self) -> None:
        """Carries out descriptors up to the tail, or to the first bad one, or until its effort is used up.

        Bounded by the size of the queue.
        """
        self.paused = False
        if not self.enabled or self._running or self._held is not None or self._faults.queue_stopped:
            return
        # A message sent on the way may come back as a write of the tail; this loop will see it.
        self._running = True
        try:
            self._drain()
        except BadDescriptor:
            self._counters["queue_errors"] += 1
            self._faults.queue_error()
        except _Held:
            self._head = (self._head + 1) % self._entries
            self._registers.set32(Reg.IQH, self._head << QUEUE_INDEX_SHIFT)
        except _NoTag:
            pass
        finally:
            self._running = False

    def error_cleared(self) -> None:
        """After a write of FSTS: with IQE gone, fetching goes on at the descriptor that was bad; with ITE gone, behind
        the last one that was fetched."""
        self.run()

    def devices_answered(self) -> None:
        """A device has completed an invalidation: a wait for the last of them is complete, and fetching goes on."""
        if self._held is not None and not self._owed:
            held, self._held = self._held, None
            try:
                self._complete(*held)
            except BadDescriptor:
                self._counters["queue_errors"] += 1
                self._faults.queue_error()
        self.run()

    def abort_wait(self) -> None:
        """A device has not answered in time: a wait for it never completes (section 6.5.2.11)."""
        if self._held is not None:
            self._held = None
            self._counters["waits_aborted"] += 1

    def completion_written(self) -> None:
        """After a write of ICS."""
        if not self._registers.get32(Reg.ICS) & ICS_IWC:
            self._completion.withdraw()

    def _drain(self) -> None:
        words, read, execute = self._registers.words, self._memory.read_pair, self._execute
        base, entries, effort = self._base, self._entries, self.effort
        head = self._head
        while head != (tail := words[_IQT] >> QUEUE_INDEX_SHIFT):
            if tail >= entries:
                raise BadDescriptor
            try:
                low, high = read(base + head * DESCRIPTOR_SIZE)
            except Unclaimed:
                raise BadDescriptor from None
            execute[low & TYPE_MASK](low, high)
            head += 1
            self._head = head = head if head < entries else 0
            words[_IQH] = head << QUEUE_INDEX_SHIFT
            if effort.left < 0:
                self.paused = head != words[_IQT] >> QUEUE_INDEX_SHIFT
                return

    def _actions(self) -> dict[int, Action]:
        """What each descriptor type does; one that is not here is bad."""
        return {
            DescriptorType.CONTEXT_CACHE: self._context_cache,
            DescriptorType.IOTLB: self._iotlb,
            DescriptorType.DEVICE_TLB: self._device_tlb,
            DescriptorType.INTERRUPT_ENTRY: self._interrupt_entry,
            DescriptorType.WAIT: self._wait,
        }

    def _context_cache(self, low: int, high: int) -> None:
        if ContextCacheInvalidate.reserved(low, high):
            raise BadDescriptor
        granularity, domain, source, function_mask = ContextCacheInvalidate.decode(low, high)
        if granularity == ContextGranularity.RESERVED:
            raise BadDescriptor
        self._target.invalidate_context(granularity, domain, source, function_mask)

    def _iotlb(self, low: int, high: int) -> None:
        if IotlbInvalidate.reserved(low, high):
            raise BadDescriptor
        granularity, domain, address, address_mask = IotlbInvalidate.pages(low, high)
        if granularity == _RESERVED or (granularity == _PAGE and address_mask > MAX_ADDRESS_MASK):
            raise BadDescriptor
        self._target.invalidate_iotlb(granularity, domain, address, address_mask)

    def _device_tlb(self, low: int, high: int) -> None:
        """Where no device-TLBs are offered the descriptor does not exist."""
        if not self._config.device_iotlb or DeviceTlbInvalidate.reserved(low, high):
            raise BadDescriptor
        request = DeviceTlbInvalidate.decode(low, high)
        if not self._device_tlbs.invalidate(request.source, *request.range, request.max_pending or ITAGS):
            raise _NoTag
        self._counters["device_tlb_invalidations"] += 1

    def _interrupt_entry(self, low: int, high: int) -> None:
        if InterruptEntryInvalidate.reserved(low, high):
            raise BadDescriptor
        self._target.invalidate_interrupt_entries(*InterruptEntryInvalidate.decode(low, high))

    def _wait(self, low: int, high: int) -> None:
        if InvalidationWait.reserved(low, high):
            raise BadDescriptor
        if not low & (WAIT_INTERRUPT | WAIT_STATUS_WRITE):
            raise BadDescriptor
        self._counters["waits"] += 1
        if self._owed:
            self._held = low, high
            raise _Held
        self._complete(low, high)

    def _complete(self, low: int, high: int) -> None:
        """What a wait does once all before it is done."""
        if low & WAIT_STATUS_WRITE:
            try:
                self._memory.write(high, _STATUS.pack(low >> WAIT_DATA_SHIFT))
            except Unclaimed:
                raise BadDescriptor from None
        if low & WAIT_INTERRUPT and not self._registers.get32(Reg.ICS) & ICS_IWC:
            self._registers.change32(Reg.ICS, set_=ICS_IWC)
            self._completion.signal()
