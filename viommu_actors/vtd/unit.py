"""A DMA remapping unit: what its registers do, and the translation of requests.

Pure: memory, interrupts and the listener are given to it. The same unit is the host's hardware and a guest's vIOMMU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from viommu_actors.counters import Counters
from viommu_actors.memory import Memory
from viommu_actors.spec.vtd import (
    RTADDR_TABLE,
    Ccmd,
    Command,
    ContextGranularity,
    IotlbGranularity,
    IotlbRegister,
    Reg,
    Status,
)
from viommu_actors.vtd.config import MAX_ADDRESS_MASK, UnitConfig
from viommu_actors.vtd.deviations import Quirk
from viommu_actors.vtd.device_tlbs import DeviceTlbs, InvalidateDevice
from viommu_actors.vtd.events import SendInterrupt
from viommu_actors.vtd.interrupts import EntriesChanged, InterruptRemapper, Remap
from viommu_actors.vtd.listener import Effort, InvalidationListener, Unheard
from viommu_actors.vtd.quirks import parts
from viommu_actors.vtd.registers import RegisterFile
from viommu_actors.vtd.tables import Context, ContextReader, read_context
from viommu_actors.vtd.translation_agent import TranslationAgent

_CONTEXT_COUNTERS: Final = ("", "context_global", "context_domain", "context_device")
_IOTLB_COUNTERS: Final = ("", "iotlb_global", "iotlb_domain", "iotlb_page")


class RemappingUnit:
    """One DRHD.

    `send_interrupt(address, data)` carries the unit's own messages (fault and completion events); `listener` hears of
    invalidations, `entries_changed(first, count)` of interrupt remapping entries that may say something else now.
    `invalidate_device(source, itag, first, shift)` asks a device to forget translations, where there are device-TLBs;
    it answers by `invalidation_completed`, and who keeps the time says when it is too late for that.
    Nothing that a guest writes, in a register or in memory, makes a method raise.
    """

    def __init__(
        self,
        config: UnitConfig,
        memory: Memory,
        send_interrupt: SendInterrupt,
        listener: InvalidationListener | None = None,
        entries_changed: EntriesChanged | None = None,
        invalidate_device: InvalidateDevice | None = None,
    ) -> None:
        self.config = config
        self._memory = memory
        self._counters = Counters()
        self._listener: InvalidationListener = listener or Unheard()
        self._registers = RegisterFile(config)
        made_of = parts(config)
        self._faults = made_of.faults(self._registers, send_interrupt, self._counters)
        self._translator = made_of.translator(memory, config, self._faults, self._counters)
        self._device_tlbs = DeviceTlbs(invalidate_device, self._counters)
        self._queue = made_of.queue(
            self._registers,
            memory,
            config,
            self,
            self._faults,
            send_interrupt,
            self._counters,
            self._device_tlbs,
        )
        #: Translation requests and translated requests of devices.
        self.translation_agent = TranslationAgent(
            self._translator, memory, config, self._faults, self._counters, self.invalidation_completed
        )
        self._interrupts = InterruptRemapper(
            memory, config, self._registers, self._faults, self._counters, entries_changed
        )
        #: remap_interrupt(requester, address, data, record=True): what becomes of a 32-bit write to 0xFEExxxxx.
        self.remap_interrupt: Remap = self._interrupts.remap
        #: translate(requester, address, access): where one request goes, which must not cross a 4 KiB boundary.
        #: Faults are recorded. Requests to 0xFEExxxxx are given back as they are: ask `is_interrupt` first.
        self.translate, self._hot_hits = self._translator.hot_path()
        #: attach(requester): a device is there. QEMU settles some things for it before its first request.
        self.attach: Callable[[int], None] = self._translator.attach
        self._handlers: dict[int, Callable[[], None]] = {
            Reg.GCMD: self._command,
            Reg.CCMD + 4: self._context_command,
            Reg.IOTLB + 4: self._iotlb_command,
            **self._faults.handlers(),
            **self._queue.handlers(),
            Reg.FSTS: self._fault_status,
        }

    # --- DMA -----------------------------------------------------------------------------------------------------

    @property
    def translation_enabled(self) -> bool:
        return self._translator.enabled

    def context(self, requester: int) -> Context:
        """The context entry of `requester` as memory says now. Raises TableFault."""
        return read_context(self._memory, self._translator.root, requester, self.config)

    def watch(self, requester: int) -> Callable[[], Context | None]:
        """A function that reads the same each time it is called, faster: None while translation is off."""
        read, translator = ContextReader(self._memory, requester, self.config).read, self._translator
        return lambda: read(translator.root) if translator.enabled else None

    @property
    def counters(self) -> Counter[str]:
        """What the unit has done since it was made, by name."""
        counters = Counter(self._counters)
        if hits := self._hot_hits():
            counters["iotlb_hits"] += hits
        counters["translations"] = sum(counters[way] for way in _WAYS)
        return counters

    # --- device-TLBs -----------------------------------------------------------------------------------------------

    @property
    def awaits_devices(self) -> bool:
        """Whether a device owes the completion of an invalidation."""
        return bool(self._device_tlbs.owed)

    @property
    def device_invalidations(self) -> list[int]:
        """Numbers of the invalidations that devices have not completed; a number is used once only."""
        return self._device_tlbs.outstanding

    def invalidation_completed(self, source: int, itags: int, copies: int) -> bool:
        """A device's completion, as it came; False, and an invalidation completion error, where it owes no such one."""
        valid = self._device_tlbs.completed(source, itags, copies)
        if not valid:
            self._counters["invalidation_completion_errors"] += 1
            self._faults.completion_error(source)
        self._queue.devices_answered()
        return valid

    def expire_device_invalidation(self, number: int) -> None:
        """A device has not completed one in time: an invalidation time-out error, unless it did just now."""
        source = self._device_tlbs.expire(number)
        if source is not None:
            self._counters["invalidation_timeouts"] += 1
            self._queue.abort_wait()
            self._faults.invalidation_timeout(source)

    # --- the invalidation queue

    def limit(self, effort: Effort) -> None:
        """From here on the queue stops after a descriptor when `effort` is used up; `go_on` has it go on."""
        self._queue.effort = effort

    @property
    def behind(self) -> bool:
        """Whether the queue stopped so, with more to do."""
        return self._queue.paused

    def go_on(self) -> None:
        """Carries out more descriptors."""
        self._queue.run()

    # --- registers -------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """An access of 4 or 8 bytes, aligned to 4; any other reads as zero."""
        return self._registers.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """An access of 4 or 8 bytes, aligned to 4; any other does nothing."""
        if not self._registers.write(offset, size, value):
            return
        handlers = self._handlers
        if offset in handlers:
            handlers[offset]()
        if size == 8 and offset + 4 in handlers:
            handlers[offset + 4]()

    def reset(self) -> None:
        """As after power on; the counters go on."""
        self._registers.reset()
        self._device_tlbs.reset()
        self._queue.reset()
        self._translator.reset()
        self._interrupts.reset()
        self._listener.unit_reset()

    def _command(self) -> None:
        """GCMD: a level bit acts where it differs from GSTS, a one-shot bit wherever it is set (section 11.4.4)."""
        command = self._registers.get32(Reg.GCMD)
        changed = command ^ self._registers.get32(Reg.GSTS)
        if changed & Command.TE and self.config.dma_translation:
            self._switch_translation(bool(command & Command.TE))
        if command & Command.SRTP:
            self._translator.root = self._registers.get64(Reg.RTADDR) & RTADDR_TABLE & (1 << self.config.aw_bits) - 1
            self._translator.flush()
            self._set_status(Status.RTPS, True)
            self._listener.root_changed()
        if changed & Command.QIE:
            self._switch_queue(bool(command & Command.QIE))
        if command & Command.SIRTP:
            self._interrupts.latch()
            self._set_status(Status.IRTPS, True)
        if self.config.intremap:
            if changed & Command.IRE:
                self._interrupts.enable(bool(command & Command.IRE))
                self._set_status(Status.IRES, bool(command & Command.IRE))
            if changed & Command.CFI and Quirk.COMPATIBILITY_PASSES not in self.config.quirk_set:
                self._interrupts.allow_compatibility(bool(command & Command.CFI))
                self._set_status(Status.CFIS, bool(command & Command.CFI))

    def _switch_translation(self, enabled: bool) -> None:
        self._translator.enabled = enabled
        self._translator.flush()
        self._set_status(Status.TES, enabled)
        self._listener.translation_changed(enabled)

    def _switch_queue(self, enabled: bool) -> None:
        if enabled:
            self._set_status(Status.QIES, True)
            self._queue.enable()
        elif self._queue.disable():
            self._set_status(Status.QIES, False)

    def _set_status(self, bit: int, on: bool) -> None:
        self._registers.change32(Reg.GSTS, clear=bit, set_=bit if on else 0)

    def _fault_status(self) -> None:
        self._faults.status_written()
        self._queue.error_cleared()

    # --- invalidation ------------------------------------------------------------------------------------------------

    def _context_command(self) -> None:
        """CCMD; while the queue is on it is not looked at, and ICC stays set, as in QEMU."""
        value = self._registers.get64(Reg.CCMD)
        if not value & Ccmd.ICC or self._queue.enabled:
            return
        request = Ccmd.request(value)
        granularity = int(ContextGranularity.RESERVED)
        if request.granularity != ContextGranularity.RESERVED:
            granularity = self.invalidate_context(*request)
        self._registers.set64(Reg.CCMD, Ccmd.done(value, granularity))

    def _iotlb_command(self) -> None:
        """IOTLB with IVA; while the queue is on it is not looked at, and IVT stays set, as in QEMU."""
        value = self._registers.get64(Reg.IOTLB)
        if not value & IotlbRegister.IVT or self._queue.enabled:
            return
        granularity, domain, address, mask, *_ = IotlbRegister.request(value, self._registers.get64(Reg.IVA))
        if granularity == IotlbGranularity.PAGE and mask > MAX_ADDRESS_MASK:
            granularity = IotlbGranularity.RESERVED
        if granularity != IotlbGranularity.RESERVED:
            self.invalidate_iotlb(granularity, domain, address, mask)
        self._registers.set64(Reg.IOTLB, IotlbRegister.done(value, granularity))

    def invalidate_context(self, granularity: int, domain: int, source: int, function_mask: int) -> int:
        """Carries out a context-cache invalidation, from the queue or from CCMD; at which granularity."""
        self._counters[_CONTEXT_COUNTERS[granularity]] += 1
        done = self._translator.invalidate_context(granularity, domain, source, function_mask)
        self._listener.context_invalidated(done, domain, source, function_mask)
        return done

    def invalidate_iotlb(self, granularity: int, domain: int, address: int, address_mask: int) -> None:
        """Carries out an IOTLB invalidation, from the queue or from the IOTLB register."""
        self._counters[_IOTLB_COUNTERS[granularity]] += 1
        self._translator.invalidate_iotlb(granularity, domain, address, address_mask)
        self._listener.iotlb_invalidated(granularity, domain, address, address_mask)

    def invalidate_interrupt_entries(self, indexed: bool, first: int, index_mask: int) -> None:
        """Carries out an interrupt entry cache invalidation: of all entries, or of 2^index_mask from `first`."""
        self._counters["interrupt_entry_invalidations"] += 1
        if indexed:
            self._interrupts.invalidate(first, index_mask)
        else:
            self._interrupts.flush()


_WAYS: Final = ("untranslated", "passed_through", "iotlb_hits", "iotlb_misses", "context_faults")
