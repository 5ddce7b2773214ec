"""The vfio and kvm wires as a hypervisor or an application uses them: one blocking call an ioctl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from viommu_actors.hypervisor.parent import MapRequest
from viommu_actors.kernel.vfio.calls import Region
from viommu_actors.wire import messages as m
from viommu_actors.wire.codec import Message
from viommu_actors.wire.sockets import Channel


class RemoteVfio:
    """`kernel.vfio.calls.VfioCalls` over a channel to the kernel's process."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def _ask(self, request: Message) -> Any:
        answer = self._channel.call(request)
        if isinstance(answer, m.Failed):
            raise OSError(answer.errno, answer.reason)
        return answer

    def map_dma(self, container: int, flags: int, vaddr: int, iova: int, size: int) -> None:
        self._ask(m.MapDma(container, flags, vaddr, iova, size))

    def unmap_dma(self, container: int, iova: int, size: int) -> int:
        return int(self._ask(m.UnmapDma(container, iova, size)).value)

    def open_container(self) -> int:
        return int(self._ask(m.OpenContainer()).value)

    def iommu_group(self, device: str) -> int:
        return int(self._ask(m.IommuGroup(device)).value)

    def open_group(self, number: int) -> int:
        return int(self._ask(m.OpenGroup(number)).value)

    def set_container(self, group: int, container: int) -> None:
        self._ask(m.SetContainer(group, container))

    def set_iommu(self, container: int, kind: int) -> None:
        self._ask(m.SetIommu(container, kind))

    def get_device(self, group: int, device: str) -> int:
        return int(self._ask(m.GetDevice(group, device)).value)

    def region_info(self, device: int, index: int) -> Region:
        return Region(*self._ask(m.GetRegionInfo(device, index)))

    def irq_count(self, device: int, index: int) -> int:
        return int(self._ask(m.GetIrqInfo(device, index)).vectors)

    def region_read(self, device: int, index: int, offset: int, size: int) -> bytes:
        return bytes(self._ask(m.RegionRead(device, index, offset, size)).data)

    def region_write(self, device: int, index: int, offset: int, data: bytes) -> None:
        self._ask(m.RegionWrite(device, index, offset, data))

    def set_irqs(self, device: int, index: int, start: int, eventfds: tuple[int, ...]) -> None:
        self._ask(m.SetIrqs(device, index, start, eventfds))

    def act_on_irqs(self, device: int, index: int, action: int, start: int, count: int) -> None:
        self._ask(m.ActOnIrqs(device, index, action, start, count))

    def reset(self, device: int) -> None:
        self._ask(m.ResetDevice(device))

    def mmap_region(self, device: int, index: int) -> int:
        return int(self._ask(m.MmapRegion(device, index)).value)

    def eventfd(self) -> int:
        return int(self._ask(m.Eventfd()).value)

    def close(self, handle: int) -> None:
        self._ask(m.CloseHandle(handle))


class RemoteKernel(RemoteVfio):
    """`hypervisor.parent.ParentKernel`: KVM too."""

    def map_dma_each(self, container: int, requests: Sequence[MapRequest]) -> list[OSError | None]:
        answers = self._channel.calls([m.MapDma(container, *request) for request in requests])
        return [OSError(*answer) if isinstance(answer, m.Failed) else None for answer in answers]

    def mmap_ram(self, slot: str) -> int:
        return int(self._ask(m.MmapRam(slot)).value)

    def create_vm(self, name: str) -> int:
        return int(self._ask(m.CreateVm(name)).value)

    def set_memory(self, vm: int, slot: int, gpa: int, size: int, vaddr: int) -> bytes:
        return bytes(self._ask(m.SetMemory(vm, slot, gpa, size, vaddr)).data)

    def set_routes(self, vm: int, routes: list[tuple[int, int, int]]) -> None:
        self._ask(m.SetRoutes(vm, tuple(routes)))

    def irqfd(self, vm: int, eventfd: int, gsi: int, assign: bool) -> None:
        self._ask(m.BindIrqfd(vm, eventfd, gsi, assign))

    def signal_msi(self, vm: int, address: int, data: int) -> None:
        self._ask(m.SignalMsi(vm, address, data))
