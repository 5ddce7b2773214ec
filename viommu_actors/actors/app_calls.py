"""System calls of applications beyond VFIO: sysfs, UIO, pagemap; and page faults on the BARs that they have mapped.

A BAR that is mapped is lent by the channel which this kernel itself was lent: the application then reaches the device
without a hop of this kernel's. One that the hypervisor emulates is lent by the hypervisor. Either ends with the map:
memory decoding goes off and on again, which makes whoever lent the channel revoke it, and this kernel ask for another.
"""

from __future__ import annotations

from errno import EAGAIN, EFAULT, EINVAL

from viommu_actors.actors.kernel_service import Call
from viommu_actors.actors.lending_on import Channels, renew
from viommu_actors.kernel.pci import PciDevice
from viommu_actors.kernel.process import EventFd, UserProcess, Vma
from viommu_actors.kernel.sysfs import PciInfo, Sysfs
from viommu_actors.kernel.uio import Uio, UioFile
from viommu_actors.kernel.vfio.device import VfioDevice
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.spec.privileges import Capability
from viommu_actors.wire import messages as m
from viommu_actors.wire.codec import Message


class AppCalls:
    """The calls, for `KernelService`."""

    def __init__(self, vfio: Vfio, uio: Uio, sysfs: Sysfs, channels: Channels) -> None:
        self._channels = channels
        #: functions of which a process was lent a BAR
        self._lent: set[PciDevice] = set()
        self.calls: dict[type, Call] = {
            m.ListPci: lambda p, r: m.PciFunctions(tuple(map(_told, sysfs.devices()))),
            m.BindDriver: lambda p, r: sysfs.bind(p, r.device, r.driver),
            m.NoiommuMode: lambda p, r: m.Done(int(vfio.noiommu_mode)),
            m.OpenNoiommuGroup: lambda p, r: m.Done(vfio.open_noiommu_group(p, r.group)),
            m.Pagemap: _pagemap,
            m.OpenUio: lambda p, r: m.Done(uio.open(p, r.device)),
            m.UioConfigRead: lambda p, r: m.Content(uio.config_read(p, r.uio, r.offset, r.size)),
            m.UioConfigWrite: lambda p, r: uio.config_write(p, r.uio, r.offset, r.data),
            m.UioMmap: lambda p, r: m.Done(uio.mmap(p, r.uio, r.bar)),
            m.PageFault: self._fault,
            m.ReadCount: _read_count,
            m.UioWrite: lambda p, r: p.file(r.uio, UioFile).write(),
        }

    def area_gone(self, area: Vma) -> None:
        """MMU notifier: what the process has lost it shall not reach by the channel that it still knows."""
        pci = _function(area)
        if pci in self._lent:
            self._lent.discard(pci)
            renew(pci)

    def _fault(self, process: UserProcess, request: m.PageFault) -> Message:
        area = process.area(request.vaddr, 1)
        pci = _function(area)
        if pci is None:
            raise OSError(EFAULT, f"{process.name}: {request.vaddr:#x} is memory, which is mapped already")
        first, end, token, emulated = self._channels.channel(area.physical + request.vaddr - area.start)
        self._lent.add(pci)
        return m.Window(area.start + first - area.physical, end - first, token, emulated)


def _function(area: Vma) -> PciDevice | None:
    return area.device.pci if isinstance(area.device, VfioDevice | UioFile) else None


def _told(info: PciInfo) -> tuple[str, int, int, str, int, int, tuple[int, ...]]:
    group = -1 if info.iommu_group is None else info.iommu_group
    return info.name, info.vendor, info.device, info.driver, group, info.iommu_bits or 0, info.bars


def _read_count(process: UserProcess, request: m.ReadCount) -> Message:
    if isinstance(uio := process.files.get(request.descriptor), UioFile):
        return m.Done(uio.read())
    count = process.file(request.descriptor, EventFd, mismatch=EINVAL).read()
    if not count:
        raise OSError(EAGAIN, f"{process.name}: eventfd {request.descriptor} was not signalled")
    return m.Done(count)


def _pagemap(process: UserProcess, request: m.Pagemap) -> Message:
    """0 for who may not know it, since Linux 4.2 (Documentation/admin-guide/mm/pagemap.rst)."""
    physical = process.translate(request.vaddr, 1)[0].physical
    return m.Done(physical if process.capable(Capability.SYS_ADMIN) else 0)
