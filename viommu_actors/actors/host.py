"""The host process: physical memory, PCIe root complex, VT-d unit and the host kernel.

One loop polls the links and the inbox. What belongs to the fabric (DMA, MMIO lent to guests) is
served at once, always. What belongs to the kernel (VFIO, KVM, control) is served one after
another, so that kernel code may block on a device while the fabric goes on.
"""

from __future__ import annotations

import select
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from viommu_actors.actors.books import kernel_books
from viommu_actors.actors.control import LAUNCHER, Control
from viommu_actors.actors.host_fabric import Fabric
from viommu_actors.actors.interrupt_targets import InterruptTargets
from viommu_actors.actors.kernel_commands import KernelCommands
from viommu_actors.actors.kernel_service import KernelService, kvm_calls
from viommu_actors.actors.latency_commands import KernelLatency, PortClock
from viommu_actors.actors.lending import Lending
from viommu_actors.actors.outlet import poll_with
from viommu_actors.actors.runtime import anonymous_slot, inbox_listener, log, open_slots
from viommu_actors.actors.tenants import Tenants
from viommu_actors.apic import PendingInterrupts, accepted
from viommu_actors.firmware.boot import MachineDescription, install, remapping_unit
from viommu_actors.ioapic import IoApic
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.kvm import Kvm
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.memory import PhysicalMemory
from viommu_actors.spec import ioapic, pci, platform
from viommu_actors.spec.vtd import FaultReason
from viommu_actors.spec.vtd_interrupts import Interrupt
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.interrupts import Blocked
from viommu_actors.vtd.unit import RemappingUnit
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.tally import Tally

#: Messages taken from one socket before the others get their turn.
DRAIN = 64
#: Seconds; a kernel with nothing to do waits for as long as it takes.
IDLE = 3600.0


class HostMachine:
    """`kernel.machine.Machine`: the registers are in this process, devices are behind the fabric."""

    def __init__(
        self,
        memory: PhysicalMemory,
        unit: RemappingUnit,
        ioapic: IoApic,
        fabric: Fabric,
        pump: Callable[[float | None], None],
    ) -> None:
        self.memory = memory
        self._ioapic = ioapic
        self._unit = unit
        self._fabric = fabric
        self._pump = pump
        self._handler: Callable[[int], None] = lambda vector: None
        self.counters: Counter[str] = Counter()
        self.pending = PendingInterrupts(time.monotonic, self.counters)
        #: interrupts that the local APIC took, by vector
        self.delivered: Counter[int] = Counter()
        self._taken = 0

    def mmio_read(self, address: int, size: int) -> int:
        offset = address - platform.REMAPPING_UNIT_BASE
        if 0 <= offset < platform.REMAPPING_UNIT_SIZE:
            # A CPU that polls a unit which waits for a device: the links go on, until that answers or is too late.
            while self._unit.awaits_devices:
                self._pump(None)
            return self._unit.read(offset, size)
        if 0 <= (offset := address - platform.IOAPIC_BASE) < ioapic.SIZE:
            return self._ioapic.read(offset, size)
        answer: list[int] = []
        self._fabric.read(address, size, answer.append)
        while not answer:
            self._pump(None)
        return answer[0]

    def mmio_write(self, address: int, size: int, value: int) -> None:
        offset = address - platform.REMAPPING_UNIT_BASE
        if 0 <= offset < platform.REMAPPING_UNIT_SIZE:
            self._unit.write(offset, size, value)
            return
        if 0 <= (offset := address - platform.IOAPIC_BASE) < ioapic.SIZE:
            self._ioapic.write(offset, size, value)
            return
        done: list[bool] = []
        self._fabric.write(address, size, value, lambda: done.append(True))
        while not done:
            self._pump(None)

    def wait_for_interrupt(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        before = self._taken
        self.take_interrupts()
        while self._taken == before:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._pump(left)
        return True

    def set_interrupt_handler(self, handler: Callable[[int], None]) -> None:
        self._handler = handler

    def deliver(self, interrupt: Interrupt, by_device: bool = True) -> None:
        """An interrupt at the local APIC; taken when the kernel next lets interrupts in."""
        vector = accepted(interrupt)
        if vector is None:
            return
        if self.pending.raise_by_device(vector) if by_device else self.pending.raise_by_machine(vector):
            self.delivered[vector] += 1

    def take_interrupts(self) -> None:
        """Runs the handler for what is pending."""
        while (vector := self.pending.take()) is not None:
            self._taken += 1
            self._handler(vector)

    def log(self, line: str) -> None:
        log(line)


class HostActor:
    """Wires the host's cores to its sockets."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        name = configuration["name"]
        self._poller = select.epoll()
        self._inbox = Inbox(inbox_listener(configuration), self._poller)
        low, high = configuration["low_memory"], configuration["high_memory"]
        own = [anonymous_slot("low", 0, low), anonymous_slot("high", configuration["high_base"], high)]
        lent = [slot for vm in configuration["vms"] for slot in open_slots(vm["ram"], "hpa")]
        memory = PhysicalMemory(own + lent)
        self._unit = RemappingUnit(
            UnitConfig(**configuration["iommu"]),
            memory,
            self._interrupt_message,
            invalidate_device=lambda *request: self._fabric.invalidate_device(*request),
        )
        ports, links = configuration["ports"], configuration["links"]
        lines = IoApic(lambda address, data: self._msi(platform.IOAPIC_SOURCE_ID, address, data))
        self._fabric = Fabric(self._poller, memory, self._unit, self._msi, ports, links, lines.set_line)
        self._machine = HostMachine(memory, self._unit, lines, self._fabric, self._pump)
        self._kernel = Kernel(self._machine)
        self._tenants = Tenants(name, configuration["vms"])
        self._lending = Lending(self._fabric, self._inbox, self._tenants.inject)
        self._configuration = configuration
        #: one-way messages to guests and hypervisors, by name
        self._outlets = self._tenants.outlets
        #: frames for the kernel, in order of arrival
        self._requests: deque[tuple[bytes, bytes]] = deque()
        self._tallies: list[Tally] = [*self._fabric.tallies]
        self._control = Control(self._inbox, name, self._tallies)
        install(
            memory,
            MachineDescription(
                ram=tuple((slot.base, slot.size) for slot in own),
                command_line=configuration["cmdline"],
                dmar=remapping_unit(configuration["iommu"]["aw_bits"], configuration["iommu"]["intremap"]),
            ),
        )
        self._service: KernelService | None = None
        commands = KernelCommands(self._kernel)
        self._commands = commands
        targets = InterruptTargets(self._kernel, self._machine.delivered)
        self._control.register(commands.handlers() | self._fabric.handlers() | targets.handlers())
        self._control.register(KernelLatency(self._kernel).handlers() | PortClock(self._fabric.ports).handlers())
        self._vfio: Vfio | None = None
        self._control.register({"books": lambda: kernel_books(self._kernel, self._vfio)})
        self._control.register({"train": self._fabric.train, "boot": self._boot})
        self._control.register({"counters": self._counters, "gone": self._gone})
        self._control.register({"plug": self._plug, "pull": self._pull, "settle_slot": self._settle_slot})

    def run(self) -> None:
        """Serves until the process ends."""
        while True:
            while self._requests:
                self._serve_request(*self._requests.popleft())
                self._machine.take_interrupts()
            self._pump(IDLE)

    # --- the loop

    def _pump(self, idle: float | None) -> None:
        """One wake of the poll. `idle`: the kernel lets interrupts in, and waits for so many seconds at most."""
        fabric = self._fabric
        awaits = fabric.awaits_devices
        now = time.monotonic() if awaits else 0.0
        seconds = min(IDLE, fabric.due(now)) if awaits else IDLE
        if idle is not None:
            due = self._machine.pending.due
            seconds = min(seconds, idle if due is None else min(idle, due))
        inbox = self._inbox
        if fabric.behind or inbox.behind:
            seconds = 0.0
        links = list(fabric.behind)
        for fd, what in poll_with(self._poller, seconds, self._outlets.values()):
            if not fabric.polls(fd):
                inbox.note(fd, what)
            elif fd not in links:
                links.append(fd)
        for fd in links:
            fabric.drain(fd, DRAIN, None if idle is None else self._machine.take_interrupts)
        for _ in range(DRAIN):
            if (message := inbox.take()) is None:
                break
            if self._lending.serves(message[0]):
                self._lending.serve(*message)
            else:
                self._requests.append(message)
        if awaits:
            # What this process was too busy to take is not late.
            fabric.expire(now)
        if idle is not None:
            self._machine.take_interrupts()

    def _serve_request(self, peer: bytes, frame: bytes) -> None:
        if peer == LAUNCHER:
            command = self._control.decode(frame)
            if command is not None:
                self._control.run(command)
        elif self._service is not None and self._service.serves(peer):
            self._service.serve(peer, frame)
        else:
            log(f"a request of {peer!r:.80}, which is no process of this kernel")

    # --- interrupts

    def _msi(self, requester: int, address: int, data: int) -> FaultReason | None:
        outcome = self._unit.remap_interrupt(requester, address, data)
        if isinstance(outcome, Blocked):
            return outcome.reason
        self._machine.deliver(outcome.interrupt)
        return None

    def _interrupt_message(self, address: int, data: int) -> None:
        """The unit's own interrupts are not remapped (VT-d section 7.4)."""
        self._machine.deliver(Interrupt.of_message(address, data), by_device=False)

    # --- commands

    def _boot(self) -> dict[str, Any]:
        booted = self._commands.boot()
        self._vfio = vfio = Vfio(self._kernel)
        kvm = Kvm(self._lending, self._tenants.vm_of)
        self._service = KernelService(self._inbox, vfio, kvm_calls(kvm), self._tenants.notify)
        self._tallies += self._tenants.add_all(self._service, "hpa")
        for vm in self._configuration["vms"]:
            for peer in (vm["guest"], *vm["deeper"]):
                direct = Tally(f"direct:{peer}", "host")
                self._lending.add_guest(peer.encode(), direct)
                self._tallies.append(direct)
        return booted

    def _gone(self, name: str) -> None:
        """A process died and the rest goes on: the kernel takes back what it held."""
        peer = name.encode()
        if self._service is not None and self._service.serves(peer):
            self._service.release(peer)
            self._outlets[name].close()
        elif self._lending.serves(peer):
            if name in self._outlets:
                self._outlets[name].close()
        else:
            self._fabric.unplug(name)

    def _plug(self, link: str, device: str, address: str) -> list[dict[str, str]]:
        """A device comes into an empty slot: the functions that the kernel found, and who drives them."""
        self._fabric.plug(link, device, address)
        self._tallies.append(self._fabric.tally(link))
        return [
            {"bdf": pci.format_bdf(found.bdf), "driver": driver.name if driver is not None else ""}
            for found in self._kernel.hotplug()
            for driver in [self._kernel.drivers.get(found.bdf)]
        ]

    def _pull(self, link: str) -> None:
        """A device is pulled out of its slot; the kernel lets go of it, as soon as its user has."""
        self._tallies.remove(self._fabric.tally(link))
        self._fabric.pull(link)
        self._kernel.hotplug()

    def _settle_slot(self, slot: int) -> bool:
        """Whether the kernel has let go of the device that was pulled out of a slot."""
        self._kernel.hotplug()
        return self._kernel.slot_settled(slot)

    def _counters(self) -> dict[str, int]:
        counters: Counter[str] = Counter(self._commands.counters())
        counters.update(self._machine.counters)
        counters.update({f"iommu_{name}": n for name, n in self._unit.counters.items()})
        return dict(counters)
