"""UIO: a device's registers for a user process, and no word of its DMA (drivers/uio/uio_pci_generic.c).

The driver enables the device and otherwise leaves it to the process: configuration space and BARs by sysfs, no map, no
MSI. Its one interrupt is INTx, which no device here has.
"""

from __future__ import annotations

from collections import Counter
from errno import EACCES, EBUSY, EINVAL, ENODEV, ENOENT
from typing import TYPE_CHECKING, Final

from viommu_actors.kernel.vfio.config import aligned
from viommu_actors.spec.pci import CONFIG_SIZE, Command, format_bdf, parse_bdf
from viommu_actors.spec.privileges import Capability

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import PciDevice
    from viommu_actors.kernel.process import UserProcess

NAME: Final = "uio_pci_generic"
_DWORD = 4


class UioFile:
    """An open /dev/uioN."""

    def __init__(self, pci: PciDevice, opens: Counter[int]) -> None:
        self.pci = pci
        self._opens = opens
        opens[pci.bdf] += 1

    def close(self, process: UserProcess) -> None:
        """The process's maps of BARs go, and the device's DMA is off: all that Linux does for safety here."""
        process.unmap_device(self)
        self._opens[self.pci.bdf] -= 1
        self.pci.set_bus_master(False)


class Uio:
    """Devices bound to uio_pci_generic in one kernel. Every method raises OSError with Linux's errno and a reason."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._bound = kernel.uio_devices
        self._opens: Counter[int] = Counter()
        kernel.holders.append(self.holds)

    def bind(self, bdf: int) -> None:
        """Binds the driver. ENODEV: no such function; EBUSY: it has a driver, or a user process its IOMMU group."""
        kernel = self._kernel
        device = kernel.device(bdf)
        if bdf in kernel.drivers:
            raise OSError(EBUSY, f"{device.name} has a kernel driver")
        if kernel.iommu is not None and kernel.iommu.group_of(bdf) in kernel.user_groups:
            raise OSError(EBUSY, f"{device.name}: a user process has its IOMMU group")
        kernel.claim(device)
        device.set_command(Command.MEMORY, Command.MEMORY)
        self._bound.add(bdf)
        kernel.machine.log(f"{NAME} {device.name}: No IRQ assigned to device: no support for interrupts?")

    def unbind(self, bdf: int) -> None:
        """Takes the driver away. EBUSY: a process has the device open."""
        if self._opens[bdf]:
            raise OSError(EBUSY, f"{format_bdf(bdf)}: a process has it open")
        self._bound.discard(bdf)

    def is_bound(self, bdf: int) -> bool:
        """Whether uio_pci_generic has the function."""
        return bdf in self._bound

    def holds(self, device: PciDevice) -> bool:
        """Whether a process has a function open that is gone; after the last, it is not bound any more.

        UIO has no way to ask for it back. Linux does not wait either, and fails the calls that follow; here they come
        to nothing, and the function's address is nobody else's until the process closes it.
        """
        if self._opens[device.bdf]:
            return True
        self._bound.discard(device.bdf)
        return False

    def open(self, process: UserProcess, device: str) -> int:
        """Opens the /dev/uioN of "0000:00:03.0". ENODEV: it is not bound; EACCES: the process is not root."""
        try:
            bdf = parse_bdf(device)
        except ValueError as error:
            raise OSError(ENODEV, str(error)) from None
        if bdf not in self._bound:
            raise OSError(ENODEV, f"{device} is not bound to {NAME}")
        process.require(Capability.DAC_OVERRIDE, EACCES)
        return process.install(UioFile(self._kernel.device(bdf), self._opens))

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
