"""UIO: a device's registers for a user process, and no word of its DMA (drivers/uio/uio_pci_generic.c).

The driver enables the device and otherwise leaves it to the process: configuration space and BARs by sysfs, no map, no
MSI. Its one interrupt is INTx: the driver counts it, keeps the device from its wire by interrupt disable, and wakes
who waits; the process sees to the device, and clears interrupt disable in configuration space.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EACCES, EAGAIN, EBUSY, EINVAL, EIO, ENODEV, ENOENT, ENOSYS
from typing import TYPE_CHECKING, Final

from viommu_actors.kernel import intx
from viommu_actors.kernel.vfio.config import aligned
from viommu_actors.spec.pci import CONFIG_SIZE, Command, format_bdf, parse_bdf
from viommu_actors.spec.privileges import Capability

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import PciDevice
    from viommu_actors.kernel.process import UserProcess

NAME: Final = "uio_pci_generic"
_DWORD = 4


class _Bound:
    """A device of the driver: how often it interrupted, and who has it open."""

    def __init__(self, kernel: Kernel, pci: PciDevice) -> None:
        """Raises OSError: ENODEV for INTx that cannot be kept from its wire, ENOSPC where vectors are used up."""
        self.pci = pci
        self.events = 0
        self.files: list[UioFile] = []
        self._lines = kernel.lines
        pci.set_command(Command.MEMORY, Command.MEMORY | Command.INTX_DISABLE)
        self.interrupts = kernel.lines.line_of(pci) is not None
        if not self.interrupts:
            kernel.machine.log(f"{NAME} {pci.name}: No IRQ assigned to device: no support for interrupts?")
            return
        if not intx.mask_supported(pci):
            intx.enable(pci, False)
            raise OSError(ENODEV, f"{pci.name}: its INTx cannot be disabled")
        kernel.lines.request(pci, self._handle)

    def _handle(self) -> bool:
        """Whether it was this device's (irqhandler, uio_event_notify)."""
        if not intx.check_and_mask(self.pci):
            return False
        self.events += 1
        for file in self.files:
            file.wake()
        return True

    def close(self) -> None:
        """Nobody hears the device any more: it is kept from a wire that others may share."""
        self._lines.free(self.pci)
        if self.interrupts:
            intx.enable(self.pci, False)


class UioFile:
    """An open /dev/uioN."""

    def __init__(self, bound: _Bound) -> None:
        self.pci = bound.pci
        self.wake: Callable[[], None] = lambda: None
        self._bound = bound
        self._seen = bound.events
        bound.files.append(self)

    def read(self) -> int:
        """How many interrupts there have been in all, without blocking.

        Raises OSError: EIO for a device without, EAGAIN where none came since the last read.
        """
        self._require_interrupts()
        if self._seen == self._bound.events:
            raise OSError(EAGAIN, f"{self.pci.name}: no interrupt since")
        self._seen = self._bound.events
        return self._seen

    def write(self) -> None:
        """What turns interrupts on and off where a driver has `irqcontrol`; this one has not: ENOSYS, or EIO."""
        self._require_interrupts()
        raise OSError(ENOSYS, f"{NAME} has no irqcontrol: clear interrupt disable in configuration space")

    def close(self, process: UserProcess) -> None:
        """The process's maps of BARs go, and the device's DMA is off: all that Linux does for safety here."""
        process.unmap_device(self)
        self._bound.files.remove(self)
        self.pci.set_bus_master(False)

    def _require_interrupts(self) -> None:
        if not self._bound.interrupts:
            raise OSError(EIO, f"{self.pci.name} has no interrupt")


class Uio:
    """Devices bound to uio_pci_generic in one kernel. Every method raises OSError with Linux's errno and a reason."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._bound: dict[int, _Bound] = {}
        kernel.holders.append(self.holds)

    def bind(self, bdf: int) -> None:
        """Binds the driver.

        ENODEV: no such function, or one whose INTx cannot be disabled; EBUSY: it has a driver, or a user process its
        IOMMU group; ENOSPC: no vector for it.
        """
        kernel = self._kernel
        device = kernel.device(bdf)
        if bdf in kernel.drivers:
            raise OSError(EBUSY, f"{device.name} has a kernel driver")
        if kernel.iommu is not None and kernel.iommu.group_of(bdf) in kernel.user_groups:
            raise OSError(EBUSY, f"{device.name}: a user process has its IOMMU group")
        kernel.claim(device)
        self._bound[bdf] = _Bound(kernel, device)
        kernel.uio_devices.add(bdf)

    def unbind(self, bdf: int) -> None:
        """Takes the driver away. EBUSY: a process has the device open."""
        bound = self._bound.get(bdf)
        if bound is not None and bound.files:
            raise OSError(EBUSY, f"{format_bdf(bdf)}: a process has it open")
        self._release(bdf)

    def is_bound(self, bdf: int) -> bool:
        """Whether uio_pci_generic has the function."""
        return bdf in self._bound

    def holds(self, device: PciDevice) -> bool:
        """Whether a process has a function open that is gone; after the last, it is not bound any more.

        UIO has no way to ask for it back. Linux does not wait either, and fails the calls that follow; here they come
        to nothing, and the function's address is nobody else's until the process closes it.
        """
        bound = self._bound.get(device.bdf)
        if bound is not None and bound.files:
            return True
        self._release(device.bdf)
        return False

    def _release(self, bdf: int) -> None:
        bound = self._bound.pop(bdf, None)
        if bound is not None:
            bound.close()
            self._kernel.uio_devices.discard(bdf)

    def open(self, process: UserProcess, device: str) -> int:
        """Opens the /dev/uioN of "0000:00:03.0". ENODEV: it is not bound; EACCES: the process is not root."""
        try:
            bdf = parse_bdf(device)
        except ValueError as error:
            raise OSError(ENODEV, str(error)) from None
        if bdf not in self._bound:
            raise OSError(ENODEV, f"{device} is not bound to {NAME}")
        process.require(Capability.DAC_OVERRIDE, EACCES)
        file = UioFile(self._bound[bdf])
        descriptor = process.install(file)
        file.wake = process.waker(descriptor)
        return descriptor

    def config_read(self, process: UserProcess, uio: int, offset: int, size: int) -> bytes:
        """Reads configuration space as the device answers. EINVAL outside of it."""
        pci = process.file(uio, UioFile).pci
        _check(offset, size)
        pieces = aligned(offset, size, _DWORD)
        return b"".join(pci.config_read(at, length).to_bytes(length, "little") for at, length in pieces)

    def config_write(self, process: UserProcess, uio: int, offset: int, data: bytes) -> None:
        """Writes it, whatever it is: nobody stands between. EINVAL outside of it."""
        pci = process.file(uio, UioFile).pci
        _check(offset, len(data))
        for at, length in aligned(offset, len(data), _DWORD):
            pci.config_write(at, length, int.from_bytes(data[at - offset : at - offset + length], "little"))

    def mmap(self, process: UserProcess, uio: int, bar: int) -> int:
        """User address of a BAR until the device is closed. ENOENT: sysfs has no `resourceN` for it."""
        file = process.file(uio, UioFile)
        window = file.pci.bars.get(bar)
        if window is None:
            raise OSError(ENOENT, f"{file.pci.name} has no BAR {bar}")
        return process.map_bar(window.address, window.size, file)


def _check(offset: int, size: int) -> None:
    if offset < 0 or size <= 0 or offset + size > CONFIG_SIZE:
        raise OSError(EINVAL, f"config space ends at {CONFIG_SIZE:#x}, asked for {offset:#x}+{size:#x}")
