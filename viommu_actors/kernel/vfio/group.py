"""VFIO groups: what is assigned, as a whole and to one user only (drivers/vfio/group.c)."""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENODEV, EPERM
from typing import TYPE_CHECKING

from viommu_actors.kernel.vfio.container import Container
from viommu_actors.kernel.vfio.device import VfioDevice
from viommu_actors.spec.pci import format_bdf
from viommu_actors.spec.vfio import GroupFlags

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import PciDevice


class Group:
    """An open /dev/vfio/$GROUP with all devices of the IOMMU group; or /dev/vfio/noiommu-$GROUP with its one."""

    def __init__(self, kernel: Kernel, number: int, devices: list[PciDevice], noiommu: bool = False) -> None:
        self.number = number
        self.noiommu = noiommu
        self.devices = devices
        self.container: Container | None = None
        self._kernel = kernel
        self._open_devices: dict[int, VfioDevice] = {}

    @property
    def busy(self) -> bool:
        """Whether a device of the group is open."""
        return bool(self._open_devices)

    def status(self) -> GroupFlags:
        """VFIO_GROUP_GET_STATUS."""
        flags = GroupFlags(0) if self._kernel_driven() else GroupFlags.VIABLE
        return flags | GroupFlags.CONTAINER_SET if self.container is not None else flags

    def set_container(self, container: Container) -> None:
        """VFIO_GROUP_SET_CONTAINER.

        Raises EINVAL when the group has one, EPERM when the group is not viable: a kernel driver owns one of its
        devices, which could then reach this user's memory.
        """
        if self.container is not None:
            raise OSError(EINVAL, f"group {self.number} has a container")
        driven = self._kernel_driven()
        if driven:
            names = ", ".join(format_bdf(device.bdf) for device in driven)
            raise OSError(EPERM, f"group {self.number} is not viable: kernel drivers have {names}")
        container.add(self)
        self.container = container
        self._kernel.user_groups.add(self.number)

    def unset_container(self) -> None:
        """VFIO_GROUP_UNSET_CONTAINER. Raises EINVAL without one, EBUSY while a device is open."""
        if self.container is None:
            raise OSError(EINVAL, f"group {self.number} has no container")
        if self.busy:
            raise OSError(EBUSY, f"a device of group {self.number} is open")
        self.container.remove(self)
        self.container = None
        self._kernel.user_groups.discard(self.number)

    def open_device(self, bdf: int) -> VfioDevice:
        """Raises EINVAL before the container has its IOMMU, ENODEV where the group has no such device."""
        if self.container is None or not self.container.has_iommu:
            raise OSError(EINVAL, f"group {self.number} has no container with an IOMMU")
        device = self._open_devices.get(bdf)
        if device is None:
            pci = next((pci for pci in self.devices if pci.bdf == bdf), None)
            if pci is None:
                raise OSError(ENODEV, f"{format_bdf(bdf)} is not in group {self.number}")
            device = self._open_devices[bdf] = VfioDevice(self._kernel, pci)
        device.opens += 1
        return device

    def ask_back(self, device: PciDevice) -> None:
        """Asks the user of a function that is gone to close it, if he has it open."""
        opened = self._open_devices.get(device.bdf)
        if opened is not None:
            opened.ask_back()

    def close_device(self, device: VfioDevice) -> None:
        device.opens -= 1
        if not device.opens:
            del self._open_devices[device.pci.bdf]
            device.close()

    def _kernel_driven(self) -> list[PciDevice]:
        """Devices whose driver is not VFIO; uio_pci_generic is a kernel driver like others."""
        kernel = self._kernel
        return [device for device in self.devices if device.bdf in kernel.drivers or device.bdf in kernel.uio_devices]
