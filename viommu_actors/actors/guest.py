"""The guest process: a kernel on the machine that a hypervisor and the kernel beneath it make.

What the guest's CPU touches is RAM, a window straight to a device, or a trap. It blocks on exactly
one socket at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from viommu_actors.actors.books import kernel_books
from viommu_actors.actors.control import LAUNCHER, Control
from viommu_actors.actors.hostile_kernel import HostileKernel
from viommu_actors.actors.kernel_commands import KernelCommands
from viommu_actors.actors.latency_commands import KernelLatency
from viommu_actors.actors.runtime import inbox_listener, log, open_slots
from viommu_actors.kernel.drivers.edu import EduDriver
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.memory import PhysicalMemory
from viommu_actors.spec import pci
from viommu_actors.wire import messages as m
from viommu_actors.wire.codec import MalformedMessage
from viommu_actors.wire.sockets import Channel, Inbox, make_context
from viommu_actors.wire.tally import Tally

_TICK_MS = 500


class GuestCpu:
    """`kernel.machine.Machine` over the trap, direct and inject wires."""

    def __init__(self, memory: PhysicalMemory, trap: Channel, direct: Channel, inbox: Inbox, inject: Tally) -> None:
        self.memory = memory
        self._trap = trap
        self._direct = direct
        self._inbox = inbox
        self._inject = inject
        #: (first, end, token) of each window, as an EPT holds what it was filled with
        self._windows: list[tuple[int, int, bytes]] = []
        self._handler: Callable[[int], None] = lambda vector: None
        #: when the last interrupt arrived, on the monotonic clock in nanoseconds
        self.interrupted_at = 0
        #: frames of control messages that came while the kernel waited
        self.backlog: deque[bytes] = deque()

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

    def wait_for_interrupt(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while True:
            try:
                if self.take():
                    return True
            except zmq.Again:
                if time.monotonic() >= deadline:
                    return False

    def set_interrupt_handler(self, handler: Callable[[int], None]) -> None:
        self._handler = handler

    def log(self, line: str) -> None:
        log(line)

    def take(self) -> bool:
        """Receives one message; True where it was an interrupt. Raises zmq.Again after a tick."""
        peer, frame = self._inbox.receive()
        if peer == LAUNCHER:
            self.backlog.append(frame)
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
        name, hypervisor, parent = configuration["name"], configuration["hypervisor"], configuration["parent"]
        context = make_context()
        inbox = Inbox(context, inbox_listener(configuration))
        inbox.socket.setsockopt(zmq.RCVTIMEO, _TICK_MS)
        tallies = [Tally(f"{wire}:{name}", name) for wire in ("trap", "direct", "inject")]
        self._trap = Channel(context, name, hypervisor["address"], m.TRAP, m.TRAP_ANSWER, tallies[0])
        direct = Channel(context, name, parent["address"], m.DIRECT, m.DIRECT_ANSWER, tallies[1])
        memory = PhysicalMemory(open_slots(configuration["ram"], "gpa"))
        self._cpu = GuestCpu(memory, self._trap, direct, inbox, tallies[2])
        self._control = Control(inbox, name, tallies)
        self._kernel = Kernel(self._cpu)
        commands = KernelCommands(self._kernel)
        self._control.register(commands.handlers() | {"counters": lambda: commands.counters() | self._exits()})
        self._control.register({"books": lambda: kernel_books(self._kernel, None)})
        self._control.register(HostileKernel(self._kernel).handlers())
        self._control.register(KernelLatency(self._kernel).handlers() | {"interrupt_latency": self._interrupt_latency})

    def run(self) -> None:
        """Serves until the process ends."""
        backlog = self._cpu.backlog
        while True:
            while backlog:
                command = self._control.decode(backlog.popleft())
                if command is not None:
                    self._control.run(command)
            try:
                self._cpu.take()
            except zmq.Again:
                continue

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
