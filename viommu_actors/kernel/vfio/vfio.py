"""VFIO as its users call it: opens, ioctls, reads, writes and closes of a process's descriptors."""

from __future__ import annotations

from collections.abc import Callable
from errno import EACCES, EBADFD, EBUSY, EINVAL, ENODEV, ENOENT
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

from viommu_actors.kernel.process import EventFd, UserProcess
from viommu_actors.kernel.vfio.container import Container
from viommu_actors.kernel.vfio.device import DeviceInfo, RegionInfo, VfioDevice
from viommu_actors.kernel.vfio.group import Group
from viommu_actors.kernel.vfio.interrupts import IrqInfo
from viommu_actors.kernel.vfio.noiommu import NoIommuGroups
from viommu_actors.spec.pci import format_bdf, parse_bdf
from viommu_actors.spec.privileges import Capability
from viommu_actors.spec.vfio import NO_EVENTFD, GroupFlags, IommuType

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import PciDevice
    from viommu_actors.kernel.vfio.type1 import Range, Type1

#: What VFIO says of a device that no IOMMU is for.
NO_GROUP = "has no IOMMU group"


class ContainerInfo(NamedTuple):
    """VFIO_IOMMU_GET_INFO with its capabilities: IOVAs that may be mapped, and how many mappings are left."""

    iova_ranges: tuple[Range, ...]
    dma_avail: int


class _GroupFile:
    """An open group. It lasts, after its descriptor is closed, until the group's devices are closed."""

    def __init__(self, group: Group, ended: Callable[[], None]) -> None:
        self.group = group
        self._closed = False
        self._ended = ended

    def close(self, process: UserProcess) -> None:
        self._closed = True
        self.settle()

    def settle(self) -> None:
        """Gives the group back once all is closed."""
        if not self._closed or self.group.busy:
            return
        if self.group.container is not None:
            self.group.unset_container()
        self._ended()


class _DeviceFile:
    """One open of a device."""

    def __init__(self, group: _GroupFile, device: VfioDevice) -> None:
        self.group = group
        self.device = device

    def close(self, process: UserProcess) -> None:
        """With the last open the device is reset, and its BARs are unmapped."""
        if self.device.opens == 1:
            process.unmap_device(self.device)
        self.group.group.close_device(self.device)
        self.group.settle()


class Vfio:
    """Containers, groups and devices of one kernel. Every method raises OSError with Linux's errno and a reason."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._bound = {parse_bdf(name) for name in kernel.cmdline.values("vfio-pci.ids")}
        self._open_groups: dict[int, Group] = {}
        kernel.holders.append(self.holds)
        self._containers: WeakSet[Container] = WeakSet()
        self._noiommu = NoIommuGroups(kernel)
        if self._noiommu.enabled:
            for device in kernel.pci:
                if device.bdf in self._bound and self.group_number(device.bdf) is None:
                    self._noiommu.add(device)

    @property
    def noiommu_mode(self) -> bool:
        """Whether devices without an IOMMU group are taken too (vfio.enable_unsafe_noiommu_mode)."""
        return self._noiommu.enabled

    def bind(self, bdf: int) -> None:
        """Binds vfio-pci to a function, as writing to sysfs does.

        ENODEV: no such function; EBUSY: it has a driver; EINVAL: it has no IOMMU group, and `noiommu_mode` is off.
        """
        device = self._kernel.device(bdf)
        if bdf in self._kernel.drivers:
            raise OSError(EBUSY, f"{format_bdf(bdf)} has a kernel driver")
        if self.group_number(bdf) is None:
            self._noiommu.add(device)
        self._bound.add(bdf)

    def unbind(self, bdf: int) -> None:
        """Takes vfio-pci away from a function, if it has it. EBUSY: a process has its group open."""
        if bdf not in self._bound:
            return
        if self.group_number(bdf) in self._open_groups:
            raise OSError(EBUSY, f"{format_bdf(bdf)}: a process has its group open")
        self._bound.discard(bdf)
        self._noiommu.remove(bdf)

    def is_bound(self, bdf: int) -> bool:
        """Whether vfio-pci has the function."""
        return bdf in self._bound

    def group_of(self, device: str) -> int:
        """The number of the IOMMU group of "0000:01:00.0". Raises ENODEV where there is no such device or group."""
        number = self.group_number(self._kernel.device(_address(device)).bdf)
        if number is None:
            raise OSError(ENODEV, f"{device} {NO_GROUP}")
        return number

    def group_number(self, bdf: int) -> int | None:
        """The same by address, None without."""
        iommu = self._kernel.iommu
        number = None if iommu is None else iommu.group_of(bdf)
        return self._noiommu.group_of(bdf) if number is None else number

    def holds(self, device: PciDevice) -> bool:
        """Whether a user has a function that is gone; he is asked, once, to let go of it. After the last, nothing of it
        is bound to vfio-pci any more."""
        for group in self._open_groups.values():
            if device in group.devices:
                group.ask_back(device)
                return True
        self._bound.discard(device.bdf)
        self._noiommu.remove(device.bdf)
        return False

    # --- containers

    def open_container(self, process: UserProcess) -> int:
        opened = Container(self._kernel)
        self._containers.add(opened)
        return process.install(opened)

    @property
    def mappings(self) -> list[Type1]:
        """Of every container that has an IOMMU."""
        return [container.type1 for container in self._containers if container.maps]

    def set_iommu(self, process: UserProcess, container: int, kind: int = IommuType.TYPE1V2) -> None:
        """EINVAL without a group or a second time, ENODEV for another type, EPERM without interrupt remapping."""
        process.file(container, Container).set_iommu(kind)

    def container_info(self, process: UserProcess, container: int) -> ContainerInfo:
        type1 = process.file(container, Container).type1
        return ContainerInfo(type1.iova_ranges, type1.dma_avail)

    def map_dma(self, process: UserProcess, container: int, flags: int, vaddr: int, iova: int, size: int) -> None:
        """Lets the container's devices reach `size` bytes at `vaddr` through `iova`: see `Type1.map`."""
        process.file(container, Container).type1.map(process, flags, vaddr, iova, size)

    def unmap_dma(self, process: UserProcess, container: int, iova: int, size: int) -> int:
        """The bytes that were mapped there: see `Type1.unmap`."""
        return process.file(container, Container).type1.unmap(iova, size)

    # --- groups

    def open_group(self, process: UserProcess, number: int) -> int:
        """ENOENT: no device of the group is bound to vfio-pci; EACCES: not root, whose /dev/vfio/N is; EBUSY: open."""
        iommu = self._kernel.iommu
        devices = [] if iommu is None else iommu.groups.get(number, [])
        if not any(device.bdf in self._bound for device in devices):
            raise OSError(ENOENT, f"/dev/vfio/{number}: no such group")
        process.require(Capability.DAC_OVERRIDE, EACCES)
        return self._open_group(process, Group(self._kernel, number, list(devices)), f"/dev/vfio/{number}")

    def open_noiommu_group(self, process: UserProcess, number: int) -> int:
        """ENOENT: no device without an IOMMU has this group; EPERM without CAP_SYS_RAWIO; EBUSY: it is open."""
        node = f"/dev/vfio/noiommu-{number}"
        device = self._noiommu.devices.get(number)
        if device is None:
            raise OSError(ENOENT, f"{node}: no such group")
        process.require(Capability.SYS_RAWIO)
        return self._open_group(process, Group(self._kernel, number, [device], noiommu=True), node)

    def _open_group(self, process: UserProcess, group: Group, node: str) -> int:
        if group.number in self._open_groups:
            raise OSError(EBUSY, f"{node} is open")
        self._open_groups[group.number] = group
        return process.install(_GroupFile(group, partial(self._ended, group.number)))

    def _ended(self, number: int) -> None:
        del self._open_groups[number]

    def group_status(self, process: UserProcess, group: int) -> GroupFlags:
        return process.file(group, _GroupFile).group.status()

    def set_container(self, process: UserProcess, group: int, container: int) -> None:
        """EINVAL: the group has one; EPERM: the group is not viable; EBADFD: `container` is something else."""
        file = process.file(group, _GroupFile)
        file.group.set_container(process.file(container, Container, mismatch=EBADFD))

    def unset_container(self, process: UserProcess, group: int) -> None:
        """EINVAL: it has none; EBUSY: a device is open."""
        process.file(group, _GroupFile).group.unset_container()

    def get_device(self, process: UserProcess, group: int, name: str) -> int:
        """EINVAL: no container with an IOMMU; ENODEV: no such device in the group, or not bound to vfio-pci."""
        file = process.file(group, _GroupFile)
        bdf = _address(name)
        if bdf not in self._bound:
            raise OSError(ENODEV, f"{name} is not bound to vfio-pci")
        if file.group.noiommu:
            self._kernel.machine.log(f"vfio-pci {name}: vfio-noiommu device opened by user ({process.name})")
        return process.install(_DeviceFile(file, file.group.open_device(bdf)))

    # --- devices

    def device_info(self, process: UserProcess, device: int) -> DeviceInfo:
        return self._open(process, device).info()

    def region_info(self, process: UserProcess, device: int, index: int) -> RegionInfo:
        """EINVAL for an index beyond all regions."""
        return self._open(process, device).region_info(index)

    def region_read(self, process: UserProcess, device: int, index: int, offset: int, size: int) -> bytes:
        """EINVAL outside the region, EIO while memory decoding is off; short at the end of a BAR."""
        return self._open(process, device).region_read(index, offset, size)

    def region_write(self, process: UserProcess, device: int, index: int, offset: int, data: bytes) -> None:
        """As `region_read`."""
        self._open(process, device).region_write(index, offset, data)

    def mmap_region(self, process: UserProcess, device: int, index: int) -> int:
        """Maps a BAR into the process until the device is closed. EINVAL: the region cannot be mapped."""
        opened = self._open(process, device)
        bar = opened.mappable_bar(index)
        return process.map_bar(bar.address, bar.size, opened)

    def irq_info(self, process: UserProcess, device: int, index: int) -> IrqInfo:
        """EINVAL for an index beyond all interrupts."""
        return self._open(process, device).irq_info(index)

    def set_irqs(self, process: UserProcess, device: int, index: int, start: int, eventfds: tuple[int, ...]) -> None:
        """Each interrupt from `start` signals its eventfd; -1 takes one away, an empty tuple disables the index.

        EBADF or EINVAL for a descriptor that is no eventfd, EINVAL for interrupts that are not there or while the
        other kind is on, ENOSPC where the kernel has no vectors for them.
        """
        files = tuple(None if fd == NO_EVENTFD else process.file(fd, EventFd, mismatch=EINVAL) for fd in eventfds)
        self._open(process, device).set_irqs(index, start, files)

    def act_on_irqs(
        self, process: UserProcess, device: int, index: int, action: int, start: int, count: int
    ) -> None:
        """Masks, unmasks or raises interrupts: see `DeviceInterrupts.act`."""
        self._open(process, device).act_on_irqs(index, action, start, count)

    def reset(self, process: UserProcess, device: int) -> None:
        """EINVAL: the device has no reset; ENOTTY: it did not come back."""
        self._open(process, device).reset()

    # --- descriptors

    def eventfd(self, process: UserProcess) -> int:
        return process.eventfd()

    def close(self, process: UserProcess, descriptor: int) -> None:
        """EBADF. The last close of a device resets it, that of a group's files detaches it and ends its mappings."""
        process.close(descriptor)

    def release(self, process: UserProcess) -> None:
        """The end of a process: see `UserProcess.exit`."""
        process.exit()

    def _open(self, process: UserProcess, device: int) -> VfioDevice:
        return process.file(device, _DeviceFile).device


def _address(name: str) -> int:
    """Raises ENODEV for what is no PCI address."""
    try:
        return parse_bdf(name)
    except ValueError as error:
        raise OSError(ENODEV, str(error)) from None
