"""A kernel's system calls as messages: the serving end of the vfio and kvm wires.

The same service stands in the host and in a guest kernel that has hypervisors or applications of
its own. Requests of one kernel are served one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from errno import ENOSYS
from typing import Any

from viommu_actors.actors.runtime import log
from viommu_actors.kernel.kvm import Kvm
from viommu_actors.kernel.process import UserProcess
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.spec.privileges import Capability
from viommu_actors.wire import messages as m
from viommu_actors.wire.codec import MalformedMessage, Message
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.tally import Tally

_DONE = m.Done(0)
#: A system call: its answer, None where success says nothing more.
Call = Callable[[UserProcess, Any], Message | None]


class KernelService:
    """Serves the user processes of one kernel; a peer's name is its process."""

    def __init__(
        self, inbox: Inbox, vfio: Vfio, others: Mapping[type, Call], notify: Callable[[str, int], None]
    ) -> None:
        """`others` are the system calls beyond VFIO; `notify(process, eventfd)` wakes a user process whose eventfd was
        signalled."""
        self._inbox = inbox
        self._vfio = vfio
        self._notify = notify
        self._processes: dict[bytes, UserProcess] = {}
        self._ram: dict[bytes, dict[str, tuple[int, int]]] = {}
        #: by process the user address of each slot that it has mapped
        self._mapped: dict[bytes, dict[str, int]] = {}
        self.tallies: dict[bytes, Tally] = {}
        self._calls = {**_vfio_calls(vfio), **others}

    def add_process(
        self,
        peer: bytes,
        tally: Tally,
        ram: dict[str, tuple[int, int]],
        capabilities: frozenset[Capability] = frozenset(),
    ) -> UserProcess:
        """A user process and the memory slots that are its own: name -> (physical address, size)."""
        process = self._processes[peer] = UserProcess(peer.decode(), self._notify, capabilities)
        self._ram[peer], self._mapped[peer] = ram, {}
        self.tallies[peer] = tally
        return process

    def serves(self, peer: bytes) -> bool:
        """Whether this peer is a user process of this kernel."""
        return peer in self._processes

    def serve(self, peer: bytes, frame: bytes) -> None:
        """Carries out one request and answers it."""
        tally = self.tallies[peer]
        try:
            request = m.VFIO.decode(frame)
        except MalformedMessage as error:
            tally.rejected[error.defect] += 1
            log(f"{peer.decode()}: {error}")
            return
        kind = type(request)
        tally.received[kind] += 1
        process = self._processes[peer]
        answer: Message
        try:
            call = self._calls.get(kind)
            if call is not None:
                answer = call(process, request) or _DONE
            elif type(request) is m.MmapRam:
                answer = m.Done(self._mmap_ram(peer, request.slot))
            else:
                answer = m.Failed(ENOSYS, f"this kernel has no {kind.__name__}")
        except OSError as error:
            answer = m.Failed(error.errno or 5, error.strerror or "")
        except KeyError as error:
            answer = m.Failed(2, f"no such slot {error}")
        self._inbox.send(peer, answer, m.VFIO_ANSWER, tally)

    def _mmap_ram(self, peer: bytes, slot: str) -> int:
        """User address of a slot, which stays the same. Raises KeyError for none of the process's."""
        mapped = self._mapped[peer]
        if slot not in mapped:
            mapped[slot] = self._processes[peer].map_memory(*self._ram[peer][slot])
        return mapped[slot]

    def release(self, peer: bytes) -> None:
        """The process is gone: the kernel takes back all that it held."""
        self._vfio.release(self._processes.pop(peer))


def _vfio_calls(vfio: Vfio) -> dict[type, Call]:
    def region_info(process: UserProcess, request: m.GetRegionInfo) -> Message:
        info = vfio.region_info(process, request.device, request.region)
        return m.RegionInfo(info.flags, info.size, info.offset)

    def irq_info(process: UserProcess, request: m.GetIrqInfo) -> Message:
        info = vfio.irq_info(process, request.device, request.irq)
        return m.IrqInfo(info.flags, info.count)

    return {
        m.MapDma: lambda p, r: vfio.map_dma(p, r.container, r.flags, r.vaddr, r.iova, r.size),
        m.UnmapDma: lambda p, r: m.Done(vfio.unmap_dma(p, r.container, r.iova, r.size)),
        m.OpenContainer: lambda p, r: m.Done(vfio.open_container(p)),
        m.IommuGroup: lambda p, r: m.Done(vfio.group_of(r.device)),
        m.OpenGroup: lambda p, r: m.Done(vfio.open_group(p, r.group)),
        m.SetContainer: lambda p, r: vfio.set_container(p, r.group, r.container),
        m.SetIommu: lambda p, r: vfio.set_iommu(p, r.container, r.kind),
        m.GetDevice: lambda p, r: m.Done(vfio.get_device(p, r.group, r.device)),
        m.GetRegionInfo: region_info,
        m.GetIrqInfo: irq_info,
        m.RegionRead: lambda p, r: m.Content(vfio.region_read(p, r.device, r.region, r.offset, r.size)),
        m.RegionWrite: lambda p, r: vfio.region_write(p, r.device, r.region, r.offset, r.data),
        m.SetIrqs: lambda p, r: vfio.set_irqs(p, r.device, r.irq, r.start, r.eventfds),
        m.ActOnIrqs: lambda p, r: vfio.act_on_irqs(p, r.device, r.irq, r.action, r.start, r.interrupts),
        m.ResetDevice: lambda p, r: vfio.reset(p, r.device),
        m.MmapRegion: lambda p, r: m.Done(vfio.mmap_region(p, r.device, r.region)),
        m.Eventfd: lambda p, r: m.Done(vfio.eventfd(p)),
        m.CloseHandle: lambda p, r: vfio.close(p, r.handle),
    }


def kvm_calls(kvm: Kvm) -> dict[type, Call]:
    """System calls of hypervisors."""
    return {
        m.CreateVm: lambda p, r: m.Done(kvm.create_vm(p, r.name)),
        m.SetMemory: lambda p, r: m.Content(kvm.set_memory(p, r.vm, r.slot, r.gpa, r.size, r.vaddr)),
        m.SetRoutes: lambda p, r: kvm.set_routes(p, r.vm, list(r.routes)),
        m.BindIrqfd: lambda p, r: kvm.irqfd(p, r.vm, r.eventfd, r.gsi, r.assign),
        m.SignalMsi: lambda p, r: kvm.signal_msi(p, r.vm, r.address, r.data),
    }
