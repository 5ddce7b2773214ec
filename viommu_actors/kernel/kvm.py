"""KVM as far as assignment needs it: memory slots of a VM, MSI routes, irqfds (virt/kvm, arch/x86/kvm/irq_comm.c).

A guest's CPU is another process, so a slot over RAM is only recorded: guest and hypervisor share that RAM already. A
slot over a BAR lends the guest the BAR's own channel, so that its accesses go to the device without an exit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from errno import EBUSY, EEXIST, EFAULT, EINVAL, EPERM
from typing import NamedTuple, Protocol

from viommu_actors.apic import accepted
from viommu_actors.kernel.process import EventFd, UserProcess, Vma
from viommu_actors.spec.kvm import ROUTE_LIMIT, SLOT_LIMIT
from viommu_actors.spec.vfio import ADDRESS_LIMIT, PAGE_SIZE
from viommu_actors.spec.vtd import INTERRUPT_FIRST, INTERRUPT_LAST
from viommu_actors.spec.vtd_interrupts import Interrupt


class KvmPorts(Protocol):
    """What the actor around a kernel does for KVM. `inject` may not block."""

    def lend_bar(self, physical_address: int, size: int) -> bytes:
        """A token for the channel to a BAR, at most 16 bytes."""
        ...

    def revoke(self, token: bytes) -> None:
        """The channel is dead from here on."""
        ...

    def inject(self, vm_name: str, vector: int) -> None:
        """An interrupt for the guest."""
        ...


class MemorySlot(NamedTuple):
    """KVM_SET_USER_MEMORY_REGION. `token` is empty for RAM."""

    gpa: int
    size: int
    vaddr: int
    token: bytes


class Vm:
    """One virtual machine: an open VM descriptor."""

    def __init__(self, name: str, ports: KvmPorts) -> None:
        self.name = name
        self.slots: dict[int, MemorySlot] = {}
        self.irqfds: dict[EventFd, int] = {}
        self._routes: dict[int, int | None] = {}
        self._ports = ports

    def set_memory(self, process: UserProcess, slot: int, gpa: int, size: int, vaddr: int) -> bytes:
        """See `Kvm.set_memory`."""
        if not 0 <= slot < SLOT_LIMIT or (gpa | size | vaddr) % PAGE_SIZE or gpa < 0 or size < 0:
            raise OSError(EINVAL, f"slot {slot}: gpa {gpa:#x} size {size:#x} vaddr {vaddr:#x}")
        if gpa + size > ADDRESS_LIMIT or vaddr + size > ADDRESS_LIMIT:
            raise OSError(EINVAL, f"slot {slot}: gpa {gpa:#x} size {size:#x} wraps")
        old = self.slots.get(slot)
        if size == 0:
            if old is None:
                raise OSError(EINVAL, f"there is no slot {slot}")
            self._drop(slot)
            return b""
        if old is not None and (old.size != size or old.vaddr != vaddr):
            raise OSError(EINVAL, f"slot {slot} can move, but not change: take it away first")
        for number, other in self.slots.items():
            if number != slot and gpa < other.gpa + other.size and other.gpa < gpa + size:
                raise OSError(EEXIST, f"slot {slot} at {gpa:#x} overlaps slot {number}")
        token = old.token if old is not None else self._lend(process, vaddr, size)
        self.slots[slot] = MemorySlot(gpa, size, vaddr, token)
        return token

    def set_routes(self, routes: Iterable[tuple[int, int, int]]) -> None:
        """See `Kvm.set_routes`."""
        table: dict[int, int | None] = {}
        for gsi, address, data in routes:
            if gsi in table or not 0 <= gsi < ROUTE_LIMIT:
                raise OSError(EINVAL, f"gsi {gsi} is routed twice, or beyond {ROUTE_LIMIT}")
            table[gsi] = _vector(address, data)
        self._routes = table

    def bind(self, eventfd: EventFd, gsi: int) -> None:
        """See `Kvm.irqfd`."""
        if not 0 <= gsi < ROUTE_LIMIT:
            raise OSError(EINVAL, f"gsi {gsi} is beyond {ROUTE_LIMIT}")
        if eventfd.irqfd is not None:
            raise OSError(EBUSY, "the eventfd has an irqfd")
        self.irqfds[eventfd] = gsi
        eventfd.irqfd = lambda: self.inject(gsi)
        if eventfd.read():
            self.inject(gsi)

    def unbind(self, eventfd: EventFd) -> None:
        """The process is woken by the eventfd again."""
        if self.irqfds.pop(eventfd, None) is not None:
            eventfd.irqfd = None

    def inject(self, gsi: int) -> None:
        """An interrupt as the route of `gsi` says; without one it is lost."""
        self._deliver(self._routes.get(gsi))

    def signal_msi(self, address: int, data: int) -> None:
        """See `Kvm.signal_msi`."""
        self._deliver(_vector(address, data))

    def area_gone(self, area: Vma) -> None:
        """MMU notifier: a guest may not keep what its hypervisor has lost."""
        for slot, memory in list(self.slots.items()):
            if memory.token and area.start <= memory.vaddr < area.end:
                self._drop(slot)

    def close(self, process: UserProcess) -> None:
        """The VM ends: its BARs are revoked, its irqfds unbound."""
        process.mmu_notifiers.remove(self.area_gone)
        for eventfd in list(self.irqfds):
            self.unbind(eventfd)
        for slot in list(self.slots):
            self._drop(slot)

    def _lend(self, process: UserProcess, vaddr: int, size: int) -> bytes:
        """The token of a BAR, nothing for RAM. Raises EFAULT unless the range is all RAM or within one BAR."""
        area = process.area(vaddr, 1)
        if area.device is not None:
            area = process.area(vaddr, size)
            return self._ports.lend_bar(area.physical + vaddr - area.start, size)
        end = vaddr + size
        while area.end < end:
            area = process.area(area.end, 1)
            if area.device is not None:
                raise OSError(EFAULT, f"{vaddr:#x}+{size:#x} is partly RAM and partly a BAR")
        return b""

    def _deliver(self, vector: int | None) -> None:
        if vector is not None:
            self._ports.inject(self.name, vector)

    def _drop(self, slot: int) -> None:
        token = self.slots.pop(slot).token
        if token:
            self._ports.revoke(token)


class Kvm:
    """The VMs of one kernel's processes. Every method raises OSError with Linux's errno and a reason."""

    def __init__(self, ports: KvmPorts, vm_of: Mapping[str, str]) -> None:
        """`vm_of`: by the name of a process that is a hypervisor, the VM that it runs."""
        self._ports = ports
        self._vm_of = vm_of

    def create_vm(self, process: UserProcess, name: str) -> int:
        """A descriptor of the VM that the process runs. Raises EPERM for any other: its guest is another process, and
        whoever has the VM interrupts that one."""
        if self._vm_of.get(process.name) != name:
            raise OSError(EPERM, f"{process.name} is not the hypervisor of a VM {name}")
        vm = Vm(name, self._ports)
        process.mmu_notifiers.append(vm.area_gone)
        return process.install(vm)

    def set_memory(self, process: UserProcess, vm: int, slot: int, gpa: int, size: int, vaddr: int) -> bytes:
        """Puts user memory into the guest's address space, or with `size` 0 takes the slot away.

        Returns the channel's token for a BAR, nothing for RAM. Raises EINVAL (not whole pages, no such slot, a slot
        resized), EEXIST (overlap) and EFAULT (no such user memory).
        """
        return process.file(vm, Vm).set_memory(process, slot, gpa, size, vaddr)

    def set_routes(self, process: UserProcess, vm: int, routes: Iterable[tuple[int, int, int]]) -> None:
        """Replaces all MSI routes (gsi, address, data). Raises EINVAL for a gsi that comes twice or is out of range.

        As at a local APIC, a message that is no interrupt (another delivery mode, an exception's vector) is lost.
        """
        process.file(vm, Vm).set_routes(routes)

    def irqfd(self, process: UserProcess, vm: int, eventfd: int, gsi: int, assign: bool = True) -> None:
        """From here on a signal of `eventfd` is an interrupt as routed for `gsi`, and does not wake the process.

        Raises EBUSY where the eventfd has an irqfd. With `assign` False that ends.
        """
        file = process.file(eventfd, EventFd, mismatch=EINVAL)
        if assign:
            process.file(vm, Vm).bind(file, gsi)
        else:
            process.file(vm, Vm).unbind(file)

    def signal_msi(self, process: UserProcess, vm: int, address: int, data: int) -> None:
        """An MSI of a device that the hypervisor emulates."""
        process.file(vm, Vm).signal_msi(address, data)

    def release(self, process: UserProcess) -> None:
        """The end of a process: see `UserProcess.exit`."""
        process.exit()


def _vector(address: int, data: int) -> int | None:
    """The vector that a message means for the guest's one CPU; None for what a local APIC takes no interrupt from."""
    message = INTERRUPT_FIRST <= address <= INTERRUPT_LAST
    return accepted(Interrupt.of_message(address, data)) if message else None
