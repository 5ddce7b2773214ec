"""QEMU's educational device on a PCI Express link: liveness, factorial, interrupts and one DMA channel.

QEMU docs/specs/edu.rst. Different here: it is a PCI Express function (capability, function level reset), it starts a
transfer at once instead of after 100 ms, and a transfer that leaves its buffer is refused, logged, and over.
"""

from __future__ import annotations

from collections.abc import Callable

from viommu_actors.devices.dma_engine import Task
from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.pci import config_space
from viommu_actors.spec import edu, pci, tlp
from viommu_actors.spec.edu import DmaCommand, Interrupt, Reg, Status

_DMA_REGISTERS = (Reg.DMA_SOURCE, Reg.DMA_DESTINATION, Reg.DMA_COUNT, Reg.DMA_COMMAND)
#: 34! and all above are multiples of 2^32.
_FACTORIAL_ZERO = 34


class Edu(Endpoint):
    """`dma_bits`: how many address bits its DMA engine drives; `ats`: address translation services."""

    def __init__(
        self,
        send: Callable[[tlp.Upstream], None],
        log: Callable[[str], None] = lambda _: None,
        *,
        max_payload: int = 4096,
        dma_bits: int = edu.DMA_BITS,
        ats: bool = False,
    ) -> None:
        config = config_space.endpoint_header(
            edu.VENDOR_ID, edu.DEVICE_ID, pci.ClassCode.UNCLASSIFIED_OTHER, edu.REVISION
        )
        config.add_bar(edu.BAR, edu.BAR_SIZE)
        config_space.add_intx(config)
        config_space.add_msi(config)
        config_space.add_power_management(config)
        config_space.add_express(config, pci.PortType.ENDPOINT, max_payload)
        if ats:
            config_space.add_ats(config)
        super().__init__(config, send, log)
        self._dma_mask = (1 << dma_bits) - 1
        self.device_reset()

    def device_reset(self) -> None:
        self._liveness = 0
        self._factorial = 0
        self._status = 0
        self._interrupts = 0
        self._dma = dict.fromkeys(_DMA_REGISTERS, 0)
        self._buffer = bytearray(edu.BUFFER_SIZE)

    # --- registers

    def bar_read(self, bar: int, offset: int, size: int) -> int | None:
        if not _accepts(offset, size):
            return None
        match offset:
            case Reg.IDENTIFICATION:
                return edu.IDENTIFICATION
            case Reg.LIVENESS:
                return self._liveness
            case Reg.FACTORIAL:
                return self._factorial
            case Reg.STATUS:
                return self._status
            case Reg.INTERRUPT_STATUS:
                return self._interrupts
            case Reg.DMA_SOURCE | Reg.DMA_DESTINATION | Reg.DMA_COUNT | Reg.DMA_COMMAND:
                return self._dma[Reg(offset)]
        return (1 << 8 * size) - 1

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        if not _accepts(offset, size):
            return
        match offset:
            case Reg.LIVENESS:
                self._liveness = ~value & 0xFFFF_FFFF
            case Reg.FACTORIAL:
                self._compute(value)
            case Reg.STATUS:
                self._status = value & Status.INTERRUPT_AFTER_FACTORIAL
            case Reg.INTERRUPT_RAISE:
                self._raise(value)
            case Reg.INTERRUPT_ACKNOWLEDGE:
                self._interrupts &= ~value
                self.set_intx(bool(self._interrupts))
            case Reg.DMA_SOURCE | Reg.DMA_DESTINATION | Reg.DMA_COUNT | Reg.DMA_COMMAND:
                self._write_dma(Reg(offset), value)

    def _compute(self, value: int) -> None:
        """The factorial modulo 2^32. It is there at once, so the computing bit never shows."""
        result = 1 if value < _FACTORIAL_ZERO else 0
        for factor in range(2, value + 1 if result else 0):
            result = result * factor & 0xFFFF_FFFF
        self._factorial = result
        if self._status & Status.INTERRUPT_AFTER_FACTORIAL:
            self._raise(Interrupt.FACTORIAL)

    def _raise(self, causes: int) -> None:
        self._interrupts |= causes
        self.set_intx(bool(self._interrupts))
        if self._interrupts:
            self.interrupt()

    # --- DMA

    def _write_dma(self, register: Reg, value: int) -> None:
        """A transfer in progress keeps its registers."""
        if self._dma[Reg.DMA_COMMAND] & DmaCommand.START:
            return
        if register is not Reg.DMA_COMMAND:
            self._dma[register] = value
        elif value & DmaCommand.START:
            self._dma[register] = value
            self.start(self._transfer(value))

    def _transfer(self, command: int) -> Task:
        source, destination = self._dma[Reg.DMA_SOURCE], self._dma[Reg.DMA_DESTINATION]
        count = self._dma[Reg.DMA_COUNT]
        to_memory = bool(command & DmaCommand.TO_MEMORY)
        start = (source if to_memory else destination) - edu.BUFFER
        if not 0 <= start <= start + count <= edu.BUFFER_SIZE:
            first = start + edu.BUFFER
            self.complain("out of bounds", f"edu: DMA of {count:#x} bytes at {first:#x} leaves the buffer, refused")
        elif to_memory:
            yield from self.dma_write(self._clamp(destination), bytes(self._buffer[start : start + count]))
        else:
            data = yield from self.dma_read(self._clamp(source), count)
            if data is None:
                self.complain("DMA error", f"edu: DMA read of {count:#x} bytes at {source:#x} failed")
            # As on QEMU, a read that fails leaves zeros.
            self._buffer[start : start + count] = bytes(count) if data is None else data
        self._dma[Reg.DMA_COMMAND] = command & ~DmaCommand.START
        if command & DmaCommand.INTERRUPT:
            self._raise(Interrupt.DMA)

    def _clamp(self, address: int) -> int:
        clamped = address & self._dma_mask
        if clamped != address:
            self.complain("clamped", f"edu: DMA address {address:#x} clamped to {clamped:#x}")
        return clamped


def _accepts(offset: int, size: int) -> bool:
    return size == 4 or (size == 8 and offset >= Reg.DMA_SOURCE)
