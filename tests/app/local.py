"""`System` over a real kernel, IOMMU, root complex and nics in one process, without a wire."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from errno import EAGAIN
from typing import Any

from tests.devices.rig import Rig
from tests.kernel.users import ROOT
from viommu_actors.app.system import PciInfo
from viommu_actors.devices.nic import Nic
from viommu_actors.kernel.process import EventFd, UserProcess
from viommu_actors.kernel.sysfs import Sysfs
from viommu_actors.kernel.uio import Uio, UioFile
from viommu_actors.kernel.vfio.calls import Region
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.spec.privileges import Capability

UNSAFE = "vfio_iommu_type1.allow_unsafe_interrupts=1"
STRICT = f"intel_iommu=on {UNSAFE} hugepages=1"
PASSTHROUGH = f"intel_iommu=on iommu=pt {UNSAFE} hugepages=1"
NONE = "hugepages=1"
NOIOMMU = "vfio.enable_unsafe_noiommu_mode=1"
FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"


class UserMemory:
    """The process's mappings of RAM."""

    def __init__(self, rig: Rig, process: UserProcess) -> None:
        self._rig = rig
        self._process = process

    def read(self, address: int, length: int) -> bytes:
        return self._rig.memory.read(self._physical(address, length), length)

    def write(self, address: int, data: bytes) -> None:
        self._rig.memory.write(self._physical(address, len(data)), data)

    def read_u64(self, address: int) -> int:
        return self._rig.memory.read_u64(self._physical(address, 8))

    def write_u64(self, address: int, value: int) -> None:
        self._rig.memory.write_u64(self._physical(address, 8), value)

    def read_pair(self, address: int) -> tuple[int, int]:
        return self._rig.memory.read_pair(self._physical(address, 16))

    def _physical(self, address: int, length: int) -> int:
        return self._process.translate(address, length)[0].physical


class LocalSystem:
    """One process of a kernel with two nics; `calls` counts its calls of the kernel, by name.

    Devices move when the process pauses, or loads from a BAR.
    """

    def __init__(
        self,
        cmdline: str = STRICT,
        capabilities: frozenset[Capability] = ROOT,
        seed: int | None = None,
        machine: type[Rig] = Rig,
        **rig: Any,
    ) -> None:
        def nic(number: int) -> Any:
            mac = bytes((2, 0, 0, 0, 0, number))
            return lambda send, log: Nic(send, log, mac=mac)

        self.rig = machine({1: nic(1), 2: nic(2)}, cmdline, seed=seed, **rig)
        self.kernel = self.rig.kernel
        #: descriptors that were signalled and not read yet
        self.signalled: set[int] = set()
        self.process = UserProcess("testpmd", lambda name, descriptor: self.signalled.add(descriptor), capabilities)
        self.memory = UserMemory(self.rig, self.process)
        self.calls: Counter[str] = Counter()
        self.paused = 0
        self._vfio = Vfio(self.kernel)
        self._uio = Uio(self.kernel)
        self._sysfs = Sysfs(self.kernel, self._vfio, self._uio)
        self._place, self.hugepage_bytes = self.kernel.hugepages

    def mmap_hugepages(self) -> int:
        self.calls["mmap_hugepages"] += 1
        return self.process.map_memory(self._place, self.hugepage_bytes)

    def pagemap(self, vaddr: int) -> int:
        self.calls["pagemap"] += 1
        physical = self.process.translate(vaddr, 1)[0].physical
        return physical if self.process.capable(Capability.SYS_ADMIN) else 0

    def pci_devices(self) -> list[PciInfo]:
        return self._sysfs.devices()

    def bind(self, device: str, driver: str) -> None:
        self._sysfs.bind(self.process, device, driver)

    def noiommu_mode(self) -> bool:
        return self._vfio.noiommu_mode

    def open_container(self) -> int:
        return self._vfio.open_container(self.process)

    def iommu_group(self, device: str) -> int:
        return self._vfio.group_of(device)

    def open_group(self, number: int) -> int:
        return self._vfio.open_group(self.process, number)

    def open_noiommu_group(self, number: int) -> int:
        return self._vfio.open_noiommu_group(self.process, number)

    def set_container(self, group: int, container: int) -> None:
        self._vfio.set_container(self.process, group, container)

    def set_iommu(self, container: int, kind: int) -> None:
        self._vfio.set_iommu(self.process, container, kind)

    def get_device(self, group: int, device: str) -> int:
        return self._vfio.get_device(self.process, group, device)

    def map_dma(self, container: int, flags: int, vaddr: int, iova: int, size: int) -> None:
        self.calls["map_dma"] += 1
        self._vfio.map_dma(self.process, container, flags, vaddr, iova, size)

    def unmap_dma(self, container: int, iova: int, size: int) -> int:
        self.calls["unmap_dma"] += 1
        return self._vfio.unmap_dma(self.process, container, iova, size)

    def region_info(self, device: int, index: int) -> Region:
        return Region(*self._vfio.region_info(self.process, device, index))

    def region_read(self, device: int, index: int, offset: int, size: int) -> bytes:
        self.calls["region_read"] += 1
        return self._vfio.region_read(self.process, device, index, offset, size)

    def region_write(self, device: int, index: int, offset: int, data: bytes) -> None:
        self.calls["region_write"] += 1
        self._vfio.region_write(self.process, device, index, offset, data)

    def irq_count(self, device: int, index: int) -> int:
        return self._vfio.irq_info(self.process, device, index).count

    def set_irqs(self, device: int, index: int, start: int, eventfds: tuple[int, ...]) -> None:
        self.calls["set_irqs"] += 1
        self._vfio.set_irqs(self.process, device, index, start, eventfds)

    def act_on_irqs(self, device: int, index: int, action: int, start: int, count: int) -> None:
        self.calls["act_on_irqs"] += 1
        self._vfio.act_on_irqs(self.process, device, index, action, start, count)

    def reset(self, device: int) -> None:
        self._vfio.reset(self.process, device)

    def mmap_region(self, device: int, index: int) -> int:
        return self._vfio.mmap_region(self.process, device, index)

    def eventfd(self) -> int:
        return self._vfio.eventfd(self.process)

    def close(self, handle: int) -> None:
        self.calls["close"] += 1
        self._vfio.close(self.process, handle)

    def wait(self, descriptors: Collection[int], seconds: float) -> list[int]:
        self.calls["wait"] += 1
        until = self.clock() + seconds
        self.rig.wait_for_interrupt(0)
        while not self.signalled.intersection(descriptors) and self.clock() < until:
            self.pause()
            self.rig.wait_for_interrupt(0)
        return [descriptor for descriptor in descriptors if descriptor in self.signalled]

    def read_count(self, descriptor: int) -> int:
        self.calls["read_count"] += 1
        self.signalled.discard(descriptor)
        if isinstance(uio := self.process.files[descriptor], UioFile):
            return uio.read()
        count = self.process.file(descriptor, EventFd).read()
        if not count:
            raise OSError(EAGAIN, "not signalled")
        return count

    def open_uio(self, device: str) -> int:
        return self._uio.open(self.process, device)

    def uio_config_read(self, uio: int, offset: int, size: int) -> bytes:
        return self._uio.config_read(self.process, uio, offset, size)

    def uio_config_write(self, uio: int, offset: int, data: bytes) -> None:
        self._uio.config_write(self.process, uio, offset, data)

    def uio_write(self, uio: int, on: int) -> None:
        self.process.file(uio, UioFile).write()

    def uio_mmap(self, uio: int, bar: int) -> int:
        return self._uio.mmap(self.process, uio, bar)

    def mmio_read(self, vaddr: int, size: int) -> int:
        return self.rig.mmio_read(self.process.translate(vaddr, size)[0].physical, size)

    def mmio_write(self, vaddr: int, size: int, value: int) -> None:
        self.rig.mmio_write(self.process.translate(vaddr, size)[0].physical, size, value)

    def pause(self) -> None:
        self.paused += 1
        self.rig.pump()

    def clock(self) -> float:
        """A hundredth of a second a pause."""
        return self.paused / 100
