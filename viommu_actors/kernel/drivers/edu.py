"""Driver of the edu device (`spec.edu`), here or in QEMU: copies pages to it and back.

An operation is one page moved one way: mapped, transferred, unmapped. Operations come in pairs, there and back,
and the page that comes back is compared with what went there. Parameters: `edu.static=BDF,...` maps its two pages
once; `edu.dma_bits=N` for a device that was given another DMA mask than 28 bits.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from errno import EINVAL, EIO, ENODEV
from typing import TYPE_CHECKING, ClassVar, Self

from viommu_actors.kernel.dma import Direction
from viommu_actors.kernel.driver import IoResult
from viommu_actors.kernel.drivers.binding import PAGE, Binding, BoundDriver, Buffers, is_static
from viommu_actors.pattern import pattern
from viommu_actors.spec import edu
from viommu_actors.spec.edu import DmaCommand, Interrupt, Reg

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import PciDevice

#: A bit of the interrupt status that the device itself never sets.
_BELL = 1 << 1
_LIVENESS_PROBE = 0x5AA5_1234
_NO_DEVICE = 0xFFFF_FFFF


class EduDriver(BoundDriver):
    """One edu device."""

    name: ClassVar[str] = "edu"
    ids: ClassVar[Collection[tuple[int, int]]] = ((edu.VENDOR_ID, edu.DEVICE_ID),)

    def __init__(self, kernel: Kernel, device: PciDevice) -> None:
        self._device = device
        self._done = False
        self._rung = False
        self._sequence = 0
        self._static = is_static(kernel, device, "edu.static")
        with ExitStack() as undo:
            self._binding = binding = Binding(kernel, device, [self._interrupt], _dma_bits(kernel), self._asks)
            undo.callback(binding.release)
            self._identify()
            self._out = Buffers(kernel, binding.dma, 1, Direction.TO_DEVICE, self._static)
            undo.callback(self._out.free)
            self._back = Buffers(kernel, binding.dma, 1, Direction.FROM_DEVICE, self._static)
            undo.callback(self._back.free)
            undo.callback(binding.stop)
            self._undo = undo.pop_all()

    @classmethod
    def probe(cls, kernel: Kernel, device: PciDevice) -> Self:
        return cls(kernel, device)

    def run_io(self, operations: int) -> IoResult:
        """Raises OSError: ETIMEDOUT where the device does not answer."""
        pairs = -(-operations // 2)
        wrong = sum(not self._round_trip() for _ in range(pairs))
        return IoResult(2 * pairs, 2 * pairs * PAGE, not wrong, "static" if self._static else "dynamic")

    def ring(self) -> None:
        """Has the device raise an interrupt of no cause, and takes it. Raises OSError(ETIMEDOUT)."""
        self._rung = False
        self._device.write(edu.BAR, Reg.INTERRUPT_RAISE, 4, _BELL)
        self._binding.wait(lambda: self._rung, "interrupt")

    def _round_trip(self) -> bool:
        memory = self._binding.memory
        self._sequence += 1
        sent = pattern(self._sequence, PAGE)
        memory.write(self._out.paddr(0), sent)
        memory.write(self._back.paddr(0), bytes(PAGE))
        self._transfer(self._out, DmaCommand(0))
        self._transfer(self._back, DmaCommand.TO_MEMORY)
        return memory.read(self._back.paddr(0), PAGE) == sent

    def _transfer(self, buffers: Buffers, direction: DmaCommand) -> None:
        write = self._device.write
        iova = buffers.map(0)
        ends = (edu.BUFFER, iova) if direction else (iova, edu.BUFFER)
        self._done = False
        write(edu.BAR, Reg.DMA_SOURCE, 8, ends[0])
        write(edu.BAR, Reg.DMA_DESTINATION, 8, ends[1])
        write(edu.BAR, Reg.DMA_COUNT, 8, PAGE)
        write(edu.BAR, Reg.DMA_COMMAND, 8, DmaCommand.START | DmaCommand.INTERRUPT | direction)
        try:
            self._binding.wait(lambda: self._done, "DMA")
        finally:
            buffers.unmap(iova)

    def _asks(self) -> bool:
        return self._device.read(edu.BAR, Reg.INTERRUPT_STATUS, 4) not in (0, _NO_DEVICE)

    def _interrupt(self) -> None:
        causes = self._device.read(edu.BAR, Reg.INTERRUPT_STATUS, 4)
        if causes == _NO_DEVICE:
            return
        self._device.write(edu.BAR, Reg.INTERRUPT_ACKNOWLEDGE, 4, causes)
        self._done = self._done or bool(causes & Interrupt.DMA)
        self._rung = self._rung or bool(causes & _BELL)

    def _identify(self) -> None:
        mark = self._device.read(edu.BAR, Reg.IDENTIFICATION, 4)
        if mark & 0xFF != edu.IDENTIFICATION & 0xFF:
            raise OSError(ENODEV, f"{self._device.name}: identification {mark:#010x} is no edu's")
        self._device.write(edu.BAR, Reg.LIVENESS, 4, _LIVENESS_PROBE)
        if self._device.read(edu.BAR, Reg.LIVENESS, 4) != ~_LIVENESS_PROBE & 0xFFFF_FFFF:
            raise OSError(EIO, f"{self._device.name}: liveness check failed")


def _dma_bits(kernel: Kernel) -> int:
    text = kernel.cmdline.get("edu.dma_bits", str(edu.DMA_BITS))
    try:
        bits = int(text or "")
    except ValueError:
        bits = 0
    if not 12 < bits <= 64:
        raise OSError(EINVAL, f"edu.dma_bits={text} is no number of address bits")
    return bits
