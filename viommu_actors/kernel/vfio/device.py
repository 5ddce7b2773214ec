"""An open vfio-pci device: regions, interrupts, reset (drivers/vfio/pci/vfio_pci_core.c, vfio_pci_intrs.c)."""

from __future__ import annotations

from errno import EINVAL, EIO
from typing import TYPE_CHECKING, NamedTuple

from viommu_actors.kernel.process import EventFd
from viommu_actors.kernel.vfio.config import VirtualConfig, aligned
from viommu_actors.kernel.vfio.interrupts import DeviceInterrupts, IrqInfo
from viommu_actors.kernel.vfio.reset import has_flr, reset_function
from viommu_actors.spec.pci import CONFIG_SIZE
from viommu_actors.spec.vfio import (
    BAR_REGIONS,
    IRQ_COUNT,
    PAGE_SIZE,
    REGION_COUNT,
    REGION_OFFSET_SHIFT,
    DeviceFlags,
    RegionFlags,
    RegionIndex,
)

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import Bar, PciDevice

#: Largest single access to a BAR.
_QWORD = 8


class DeviceInfo(NamedTuple):
    """VFIO_DEVICE_GET_INFO."""

    flags: DeviceFlags
    regions: int
    irqs: int


class RegionInfo(NamedTuple):
    """VFIO_DEVICE_GET_REGION_INFO: size in bytes, place in the device's file."""

    flags: RegionFlags
    size: int
    offset: int


class VfioDevice:
    """A function bound to vfio-pci, from its first open to its last close."""

    def __init__(self, kernel: Kernel, pci: PciDevice) -> None:
        self.pci = pci
        self.opens = 0
        self._asked_back = False
        self._kernel = kernel
        # Nothing of what the function did before may go on, least of all its DMA.
        pci.set_bus_master(False)
        self._resettable = has_flr(pci)
        if self._resettable:
            self._reset_function()
        self._interrupts = DeviceInterrupts(kernel, pci)
        self._config = VirtualConfig(
            pci,
            self._reset_if_possible,
            lambda: self._interrupts.msi_active,
            self._interrupts.intx.set_disabled if self._interrupts.intx.offered else None,
        )

    def close(self) -> None:
        """The last close: DMA and interrupts stop, and the function is reset."""
        self.pci.set_bus_master(False)
        self._interrupts.disable()
        self._reset_if_possible()

    def info(self) -> DeviceInfo:
        reset = DeviceFlags.RESET if self._resettable else DeviceFlags(0)
        return DeviceInfo(DeviceFlags.PCI | reset, REGION_COUNT, IRQ_COUNT)

    def region_info(self, index: int) -> RegionInfo:
        """Size 0 for a region the device lacks; raises EINVAL for an index beyond all."""
        flags, size = RegionFlags.READ | RegionFlags.WRITE, 0
        if index == RegionIndex.CONFIG:
            size = CONFIG_SIZE
        elif index in self.pci.bars and index < BAR_REGIONS:
            size = self.pci.bars[index].size
            if size % PAGE_SIZE == 0 and not self._interrupts.owns(index, 0, size):
                flags |= RegionFlags.MMAP
        elif not 0 <= index < REGION_COUNT or index == RegionIndex.VGA:
            raise OSError(EINVAL, f"{self} has no region {index}")
        return RegionInfo(flags if size else RegionFlags(0), size, index << REGION_OFFSET_SHIFT)

    def region_read(self, index: int, offset: int, size: int) -> bytes:
        """Reads; fewer bytes than asked at the end of a BAR.

        Raises EINVAL outside the region, EIO for a BAR while the user has memory decoding off.
        """
        if index == RegionIndex.CONFIG:
            return self._config.read(offset, size)
        size = self._within_bar(index, offset, size)
        read = self.pci.read
        return b"".join(read(index, at, n).to_bytes(n, "little") for at, n in aligned(offset, size, _QWORD))

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """As `region_read`; of what lies beyond the end of a BAR, or in the MSI-X table, nothing is written."""
        if index == RegionIndex.CONFIG:
            self._config.write(offset, data)
            return
        size = self._within_bar(index, offset, len(data))
        for at, n in aligned(offset, size, _QWORD):
            if self._interrupts.owns(index, at, n):
                continue
            start = at - offset
            self.pci.write(index, at, n, int.from_bytes(data[start : start + n], "little"))

    def mappable_bar(self, index: int) -> Bar:
        """The BAR behind a region that may be mapped. Raises EINVAL for any other."""
        if not self.region_info(index).flags & RegionFlags.MMAP:
            raise OSError(EINVAL, f"region {index} of {self} cannot be mapped")
        return self.pci.bars[index]

    def irq_info(self, index: int) -> IrqInfo:
        """See `DeviceInterrupts.info`."""
        return self._interrupts.info(index)

    def set_irqs(self, index: int, start: int, eventfds: tuple[EventFd | None, ...]) -> None:
        """See `DeviceInterrupts.set`."""
        self._interrupts.set(index, start, eventfds)

    def act_on_irqs(self, index: int, action: int, start: int, count: int) -> None:
        """See `DeviceInterrupts.act`."""
        self._interrupts.act(index, action, start, count)

    def ask_back(self) -> None:
        """The function is gone: its user is asked, once, to let go of it (vfio_pci_core_request)."""
        if not self._asked_back:
            self._asked_back = True
            self._kernel.machine.log(f"vfio-pci {self}: Relaying device request to user (#0)")
            self._interrupts.request()

    def reset(self) -> None:
        """VFIO_DEVICE_RESET. Raises EINVAL where the function has no reset, ENOTTY where it does not come back."""
        if not self._resettable:
            raise OSError(EINVAL, f"{self} has no function level reset")
        self._reset()

    def __str__(self) -> str:
        return self.pci.name

    def _reset(self) -> None:
        self._reset_function()
        self._interrupts.restore()

    def _reset_function(self) -> None:
        reset_function(self.pci)
        if self._kernel.iommu is not None:
            self._kernel.iommu.was_reset(self.pci)

    def _reset_if_possible(self) -> None:
        """A function that is gone or wedged is left as it is: its DMA is off, and its mappings go next."""
        if not self._resettable:
            return
        try:
            self._reset()
        except OSError as error:
            self._kernel.machine.log(f"vfio-pci: {error.strerror}")

    def _within_bar(self, index: int, offset: int, size: int) -> int:
        """How many bytes of an access lie in the BAR."""
        info = self.region_info(index)
        if index >= BAR_REGIONS or not 0 <= offset < info.size or size <= 0:
            raise OSError(EINVAL, f"{self}: {offset:#x} is not in region {index} of {info.size:#x} bytes")
        if not self._config.memory_enabled:
            raise OSError(EIO, f"{self}: memory decoding is off")
        return min(size, info.size - offset)
