"""VFIO for devices that no IOMMU translates (vfio.enable_unsafe_noiommu_mode): nothing is mapped, nothing is checked.

Linux: drivers/vfio/group.c (vfio_noiommu_group_alloc), drivers/vfio/container.c (vfio_noiommu_ops).
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import PciDevice

PARAMETER: Final = "vfio.enable_unsafe_noiommu_mode"


class NoIommu:
    """The IOMMU of a container that has none: its devices reach all memory, and nobody maps anything for them."""

    def attach(self, devices: list[PciDevice]) -> None:
        """There is no domain that they could be put into."""

    def detach(self, devices: list[PciDevice]) -> None:
        """Nor one to take them out of."""

    def release(self) -> None:
        """Nor are there mappings."""


class NoIommuGroups:
    """The groups that vfio-pci makes of devices that have none, one device each."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        #: by number
        self.devices: dict[int, PciDevice] = {}
        self._next = 0

    @property
    def enabled(self) -> bool:
        """What /sys/module/vfio/parameters/enable_unsafe_noiommu_mode says."""
        return self._kernel.cmdline.enabled(PARAMETER)

    def group_of(self, bdf: int) -> int | None:
        return next((number for number, device in self.devices.items() if device.bdf == bdf), None)

    def add(self, device: PciDevice) -> None:
        """A group for a device that vfio-pci is bound to. It taints the kernel. EINVAL: the mode is not enabled."""
        if not self.enabled:
            raise OSError(EINVAL, f"vfio-pci {device.name}: it has no IOMMU group, and {PARAMETER} is off")
        number = self._number()
        self.devices[number] = device
        self._kernel.taint("U", f"vfio-pci {device.name}: Adding kernel taint for vfio-noiommu group on device")

    def remove(self, bdf: int) -> None:
        """The driver is unbound; nothing where there is no such group."""
        number = self.group_of(bdf)
        if number is not None:
            del self.devices[number]

    def _number(self) -> int:
        """One that no other group of the kernel has or will have."""
        if self._kernel.iommu is not None:
            return self._kernel.iommu.reserve_group()
        self._next += 1
        return self._next - 1
