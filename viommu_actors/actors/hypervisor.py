"""The hypervisor process: answers its guest's traps, one after another."""

from __future__ import annotations

import errno
import select
from typing import Any

from viommu_actors.actors.back_end_watch import BackEndWatch
from viommu_actors.actors.books import shadow_books
from viommu_actors.actors.control import LAUNCHER, Control
from viommu_actors.actors.emulated_bars import EmulatedBars
from viommu_actors.actors.parent_kernel import RemoteKernel
from viommu_actors.actors.runtime import inbox_listener, log, open_slots
from viommu_actors.actors.vhost_wire import VhostWires
from viommu_actors.hypervisor.assigned import Edit
from viommu_actors.hypervisor.bars import BarWindow
from viommu_actors.hypervisor.machine import Assignment, GuestMachine, VmConfig, is_config_space
from viommu_actors.hypervisor.virtio.function import VirtioNet
from viommu_actors.memory import PhysicalMemory
from viommu_actors.spec.pci import parse_bdf
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.wire import messages as m
from viommu_actors.wire.codec import MalformedMessage, Message
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.sockets import Channel
from viommu_actors.wire.tally import Tally

#: Messages of the inbox that are served before back ends have their turn.
_DRAIN = 16


class HypervisorActor:
    """One inbox brings traps, signals of eventfds, and control; back ends of emulated cards have wires of their own."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        name, parent, guest = configuration["name"], configuration["parent"], configuration["guest"]
        poller = select.epoll()
        self._inbox = Inbox(inbox_listener(configuration), poller)
        self._trap = Tally(f"trap:{guest}", name)
        self._notify = Tally(f"notify:{name}", name)
        vfio = Tally(f"vfio:{name}", name)
        self._channel = Channel(name, parent["address"], m.VFIO, m.VFIO_ANSWER, vfio)
        self._guest, self._parent = guest.encode(), parent["name"].encode()
        memory = PhysicalMemory(open_slots(configuration["ram"], "gpa"))
        self._machine = GuestMachine(_vm_config(configuration), memory, RemoteKernel(self._channel), log)
        #: where the back ends of emulated cards listen, by the card's name
        self._addresses: dict[str, str] = {card["name"]: card["backend"] for card in configuration["vm"]["virtio"]}
        vhost = {card: Tally(f"vhost:{card}", name) for card in self._addresses}
        self._back_ends = VhostWires(poller.fileno(), vhost)
        self._emulated = EmulatedBars(self._machine, self._inbox, name, configuration["apps"])
        tallies = [self._trap, self._notify, vfio, *vhost.values(), *self._emulated.tallies]
        self._control = Control(self._inbox, name, tallies)
        self._control.register(
            {
                "build": self._build,
                "counters": self._counters,
                "decisions": lambda bdf: [each._asdict() for each in self._machine.decisions(parse_bdf(bdf))],
                "open_again": self._open_again,
                "books": lambda: shadow_books(self._machine.shadows),
                "connect_backend": self._connect_backend,
                "links": lambda: {name: card.link_up for name, card in self._machine.virtio.items()},
                **BackEndWatch(self._machine.virtio).handlers(),
            }
        )

    def run(self) -> None:
        """Serves until the process ends."""
        inbox, machine = self._inbox, self._machine
        while True:
            if machine.behind:
                # What a guest has put into its queue is its own time to wait for, and nobody else's.
                machine.go_on()
            if self._addresses:
                self._back_ends.serve(0.0 if machine.behind or inbox.behind else None)
                self._drain_inbox()
            elif not machine.behind:
                self._serve(*inbox.receive())
            elif (message := inbox.receive_within(0.0)) is not None:
                self._serve(*message)

    def _drain_inbox(self) -> None:
        for _ in range(_DRAIN):
            message = self._inbox.receive_within(0.0)
            if message is None:
                return
            self._serve(*message)

    def _serve(self, peer: bytes, frame: bytes) -> None:
        if peer == self._guest:
            self._serve_trap(frame)
        elif peer == LAUNCHER:
            command = self._control.decode(frame)
            if command is not None:
                self._control.run(command)
        elif peer == self._parent:
            self._serve_signal(frame)
        elif self._emulated.serves(peer):
            self._emulated.serve(peer, frame)

    def _serve_signal(self, frame: bytes) -> None:
        try:
            signal = m.NOTIFY.decode(frame)
        except MalformedMessage as error:
            self._notify.rejected[error.defect] += 1
            log(f"notify: {error}")
            return
        assert isinstance(signal, m.EventfdSignal)
        self._notify.received[m.EventfdSignal] += 1
        self._machine.eventfd_signalled(signal.eventfd)

    def _serve_trap(self, frame: bytes) -> None:
        tally = self._trap
        try:
            trap = m.TRAP.decode(frame)
        except MalformedMessage as error:
            tally.rejected[error.defect] += 1
            log(f"trap: {error}")
            return
        tally.received[type(trap)] += 1
        answer: Message
        if type(trap) is m.TrapWrite:
            outcome = self._machine.write(trap.address, trap.size, trap.value)
            answer = _direct(outcome) if isinstance(outcome, BarWindow) else m.TrapDone(outcome)
            if is_config_space(trap.address):
                self._emulated.settle()
        elif type(trap) is m.TrapLend:
            window = self._machine.window(trap.address)
            answer = self._emulated.lend(trap.address) if window is None else _direct(window)
        else:
            assert type(trap) is m.TrapRead
            value = self._machine.read(trap.address, trap.size)
            answer = _direct(value) if isinstance(value, BarWindow) else m.TrapValue(value)
        self._inbox.send(self._guest, answer, m.TRAP_ANSWER, tally)

    def _build(self) -> dict[str, Any]:
        self._machine.build()
        for device, address in self._addresses.items():
            self._connect_backend(device, address)
        return {"counters": dict(self._machine.counters)}

    def _connect_backend(self, device: str, address: str) -> None:
        """The back end of an emulated card listens there from now on. It is connected when `links` says so."""
        self._back_ends.connect(device, address, self._machine.virtio[device].front_end)

    def _open_again(self, device: str) -> str:
        """Tries to open a device's group a second time; the errno's name, or what happened instead."""
        kernel = RemoteKernel(self._channel)
        try:
            group = kernel.open_group(kernel.iommu_group(device))
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error.errno))
        kernel.close(group)
        return "opened"

    def _counters(self) -> dict[str, int]:
        counters = dict(self._machine.counters)
        counters["traps"] = sum(self._trap.received.values()) + self._emulated.traps
        # Leaves of the guest's tables that lead out of its memory.
        counters["sync_rejected"] = sum(shadow.counters["outside_ram"] for shadow in self._machine.shadows)
        return counters


def _direct(window: BarWindow) -> m.TrapDirect:
    return m.TrapDirect(window.address, window.size, window.token)


def _vm_config(configuration: dict[str, Any]) -> VmConfig:
    vm = configuration["vm"]
    viommu = vm["viommu"]
    return VmConfig(
        name=vm["name"],
        cmdline=vm["cmdline"],
        viommu=None if viommu is None else UnitConfig(**viommu),
        irqfd=vm["irqfd"],
        assignments=tuple(
            Assignment(each["host"], each["slot"], tuple(Edit(**edit) for edit in each["edits"]), each["bypass_iommu"])
            for each in vm["assign"]
        ),
        virtio=tuple(VirtioNet(each["name"], each["slot"], bytes.fromhex(each["mac"])) for each in vm["virtio"]),
    )
