"""The guest process: a kernel on the machine that a hypervisor and the kernel beneath it make.

What the guest's CPU touches is RAM, a window straight to a device, or a trap. It blocks on exactly
one socket at a time.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Collection
from errno import EFAULT
from typing import Any

from viommu_actors.actors.app_calls import AppCalls
from viommu_actors.actors.books import kernel_books
from viommu_actors.actors.control import LAUNCHER, Control
from viommu_actors.actors.hostile_kernel import HostileKernel
from viommu_actors.actors.kernel_commands import KernelCommands
from viommu_actors.actors.kernel_service import KernelService, kvm_calls
from viommu_actors.actors.latency_commands import KernelLatency
from viommu_actors.actors.lending_on import Channel as Lent
from viommu_actors.actors.lending_on import LendingOn
from viommu_actors.actors.outlet import Outlet
from viommu_actors.actors.runtime import inbox_listener, log, open_slots
from viommu_actors.actors.tenants import Tenants
from viommu_actors.kernel.drivers.edu import EduDriver
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.kvm import Kvm
from viommu_actors.kernel.sysfs import Sysfs
from viommu_actors.kernel.uio import Uio
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.memory import PhysicalMemory
from viommu_actors.spec import pci
from viommu_actors.spec.privileges import Capability
from viommu_actors.wire import messages as m
from viommu_actors.wire.codec import MalformedMessage
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.sockets import Channel
from viommu_actors.wire.tally import Tally

#: Seconds.
_TICK = 0.5


class GuestCpu:
    """`kernel.machine.Machine` over the trap, direct and inject wires."""

    def __init__(
        self,
        memory: PhysicalMemory,
        trap: Channel,
        direct: Channel,
        inbox: Inbox,
        inject: Tally,
        users: Collection[bytes],
    ) -> None:
        """`users` are the peers that are user processes of this kernel."""
        self.memory = memory
        self._users = users
        self._trap = trap
        self._direct = direct
        self._inbox = inbox
        self._inject = inject
        #: (first, end, token) of each window, as an EPT holds what it was filled with
        self._windows: list[tuple[int, int, bytes]] = []
        self._handler: Callable[[int], None] = lambda vector: None
        #: when the last interrupt arrived, on the monotonic clock in nanoseconds
        self.interrupted_at = 0
        #: (peer, frame) of commands and system calls that came while the kernel waited
        self.backlog: deque[tuple[bytes, bytes]] = deque()

    def mmio_read(self, address: int, size: int) -> int:
        for first, end, token in self._windows:
            if first <= address and address + size <= end:
                value = self._direct.call(m.DirectRead(token, address - first, size))
                return int(value[0])
        answer = self._trap.call(m.TrapRead(address, size))
        if type(answer) is m.TrapDirect:
            self._windows.append((answer.base, answer.base + answer.size, answer.token))
            return self.mmio_read(address, size)
        return int(answer[0])

    def mmio_write(self, address: int, size: int, value: int) -> None:
        for first, end, token in self._windows:
            if first <= address and address + size <= end:
                self._direct.post(m.DirectWrite(token, address - first, size, value))
                return
        answer = self._trap.call(m.TrapWrite(address, size, value))
        if type(answer) is m.TrapDirect:
            self._windows.append((answer.base, answer.base + answer.size, answer.token))
            self.mmio_write(address, size, value)
        elif answer[0]:
            self._windows.clear()

    def channel(self, address: int) -> Lent:
        """See `lending_on.Channels`."""
        for window in self._windows:
            if window[0] <= address < window[1]:
                return Lent(*window)
        answer = self._trap.call(m.TrapLend(address))
        if type(answer) is m.TrapLent and answer.token:
            return Lent(answer.base, answer.base + answer.size, answer.token, emulated=True)
        if type(answer) is not m.TrapDirect:
            raise OSError(EFAULT, f"{address:#x} is in no BAR")
        self._windows.append((answer.base, answer.base + answer.size, answer.token))
        return Lent(*self._windows[-1])

    def wait_for_interrupt(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while True:
            if self.take():
                return True
            if time.monotonic() >= deadline:
                return False

    def set_interrupt_handler(self, handler: Callable[[int], None]) -> None:
        self._handler = handler

    def log(self, line: str) -> None:
        log(line)

    def take(self) -> bool:
        """Waits for a message, for a tick at most; True where it was an interrupt."""
        came = self._inbox.receive_within(_TICK)
        if came is None:
            return False
        peer, frame = came
        if peer == LAUNCHER or peer in self._users:
            self.backlog.append((peer, frame))
            return False
        try:
            message = m.INJECT.decode(frame)
        except MalformedMessage as error:
            self._inject.rejected[error.defect] += 1
            log(f"inject: {error}")
            return False
        self._inject.received[type(message)] += 1
        self.interrupted_at = time.perf_counter_ns()
        self._handler(message[0])
        return True


class GuestActor:
    """A kernel, the commands that reach it, and the CPU it runs on."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        name, hypervisor, fabric = configuration["name"], configuration["hypervisor"], configuration["fabric"]
        self._name, self._apps = name, configuration["apps"]
        self._inbox = inbox = Inbox(inbox_listener(configuration), select.epoll())
        tallies = [Tally(f"{wire}:{name}", name) for wire in ("trap", "direct", "inject")]
        self._trap = Channel(name, hypervisor["address"], m.TRAP, m.TRAP_ANSWER, tallies[0])
        direct = Channel(name, fabric["address"], m.DIRECT, m.DIRECT_ANSWER, tallies[1])
        memory = PhysicalMemory(open_slots(configuration["ram"], "gpa"))
        vms = configuration["vms"]
        users = {app["name"].encode() for app in self._apps} | {vm["hypervisor"].encode() for vm in vms}
        self._cpu = GuestCpu(memory, self._trap, direct, inbox, tallies[2], users)
        self._tallies = tallies
        self._control = Control(inbox, name, tallies)
        self._vfio: Vfio | None = None
        self._service: KernelService | None = None
        self._tenants = Tenants(name, vms)
        #: one-way messages to user processes and guests, by name
        self._outlets = self._tenants.outlets
        self._kernel = Kernel(self._cpu)
        self._commands = commands = KernelCommands(self._kernel)
        self._control.register(commands.handlers() | {"counters": lambda: commands.counters() | self._exits()})
        self._control.register({"books": lambda: kernel_books(self._kernel, self._vfio)})
        self._control.register({"reclaim": self._reclaim})
        self._control.register({"boot": self._boot, "gone": self._gone, "taints": lambda: sorted(self._kernel.taints)})
        self._control.register(HostileKernel(self._kernel).handlers())
        self._control.register(KernelLatency(self._kernel).handlers() | {"interrupt_latency": self._interrupt_latency})

    def run(self) -> None:
        """Serves until the process ends."""
        backlog = self._cpu.backlog
        while True:
            while backlog:
                self._serve(*backlog.popleft())
            self._cpu.take()
            for outlet in self._outlets.values():
                outlet.flush()

    def _serve(self, peer: bytes, frame: bytes) -> None:
        if peer == LAUNCHER:
            command = self._control.decode(frame)
            if command is not None:
                self._control.run(command)
        elif self._service is not None and self._service.serves(peer):
            self._service.serve(peer, frame)
        else:
            log(f"a system call of {peer!r:.80}, which is no process of this kernel")

    def _boot(self) -> dict[str, Any]:
        booted = self._commands.boot()
        kernel = self._kernel
        self._vfio, uio = Vfio(kernel), Uio(kernel)
        calls = AppCalls(self._vfio, uio, Sysfs(kernel, self._vfio, uio), self._cpu)
        lending = LendingOn(self._cpu, lambda: kernel.pci, self._tenants.inject)
        system_calls = {**calls.calls, **kvm_calls(Kvm(lending, self._tenants.vm_of))}
        self._service = KernelService(self._inbox, self._vfio, system_calls, self._tenants.notify)
        self._tallies += self._tenants.add_all(self._service, "gpa")
        for app in self._apps:
            name, slot = app["name"], app["hugepages"]
            tally, notify = Tally(f"vfio:{name}", self._name), Tally(f"notify:{name}", self._name)
            ram = {slot["name"]: (slot["gpa"], slot["size"])}
            capabilities = frozenset(Capability) if app["root"] else frozenset[Capability]()
            process = self._service.add_process(name.encode(), tally, ram, capabilities)
            process.mmu_notifiers.append(calls.area_gone)
            self._outlets[name] = Outlet(self._name, app["address"], m.NOTIFY, notify)
            self._tallies += [tally, notify]
        return booted

    def _gone(self, name: str) -> None:
        """A user process or a guest died and the rest goes on: the kernel takes back what it held."""
        if self._service is not None and self._service.serves(name.encode()):
            self._service.release(name.encode())
        if name in self._outlets:
            self._outlets[name].close()

    def _reclaim(self, bdf: str) -> None:
        """Takes a device from vfio-pci, whose user is gone, for the kernel's own driver. Raises OSError(EBUSY)."""
        assert self._vfio is not None, "nobody has a device before the boot"
        self._vfio.unbind(pci.parse_bdf(bdf))
        self._kernel.bind(pci.parse_bdf(bdf))

    def _interrupt_latency(self, bdf: str, count: int) -> list[int]:
        """Nanoseconds from the write that makes an edu raise its interrupt to its arrival, `count` times."""
        driver = self._kernel.drivers[pci.parse_bdf(bdf)]
        if not isinstance(driver, EduDriver):
            raise ValueError(f"{bdf} is no edu")
        taken = []
        for _ in range(count):
            began = time.perf_counter_ns()
            driver.ring()
            taken.append(self._cpu.interrupted_at - began)
        return taken

    def _exits(self) -> dict[str, int]:
        return {"traps": sum(self._trap.tally.sent.values())}
