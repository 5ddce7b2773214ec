"""The process of a virtual switch on the host, in the place of OVS-DPDK: the back end of guests' network devices.

It is no part of what protects a guest, so it is confined as a device is. It has its listeners and no memory: what it
does to a guest's goes through the guest's hypervisor, message by message.
"""

from __future__ import annotations

import math
import select
import time
from dataclasses import asdict
from typing import Any

import zmq

from viommu_actors.actors.control import LATER, Control, Later
from viommu_actors.actors.hostile_port import HostilePort
from viommu_actors.actors.port_wire import PortWire
from viommu_actors.actors.runtime import inbox_listener, log
from viommu_actors.confine.sandbox import Sandbox
from viommu_actors.vswitch.port import Port
from viommu_actors.vswitch.rogue import Rogue, parse_plan
from viommu_actors.vswitch.switch import Switch
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.libzmq import make_context
from viommu_actors.wire.sockets import Listener

#: Messages taken from one port before the others get their turn.
_DRAIN = 64


class VswitchActor:
    """Control and ports around one switch. `ports` of the configuration: [{"name", "fd", "address"}]."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        name = configuration["name"]
        sandbox = Sandbox(configuration["sandbox"])
        sandbox.enter(_given(configuration))
        context = make_context()
        commands = select.epoll()
        self._inbox = Inbox(inbox_listener(configuration), commands)
        self._poller = zmq.Poller()
        self._poller.register(commands, zmq.POLLIN)
        self._switch = Switch(time.monotonic, log)
        self._ports: dict[Any, tuple[PortWire, Port]] = {}
        #: a compromised switch's, by the port
        self._rogues: dict[str, Rogue] = {}
        for told in configuration["ports"]:
            wire = PortWire(context, self._poller, Listener(told["fd"], told["address"]), told["name"], name)
            port = self._switch.add(told["name"], wire.send, lambda wire=wire: wire.waits)  # type: ignore[misc]
            self._ports[wire.socket] = wire, port
            self._rogues[port.name] = Rogue(port, wire.send, HostilePort(wire))
        confinement = sandbox.seal()
        self._control = Control(self._inbox, name, [wire.tally for wire, _ in self._ports.values()])
        self._control.register(
            {
                "confinement": lambda: asdict(confinement),
                "statistics": lambda: {port.name: port.statistics() for _, port in self._ports.values()},
                "state": self._switch.state,
                "attack": self._attack,
            }
        )

    def run(self) -> None:
        """Serves until the process ends."""
        while True:
            self._turn()

    def _turn(self) -> None:
        """One wake of the loop."""
        seconds = self._switch.expire()
        for source, events in self._poller.poll(None if seconds is None else math.ceil(seconds * 1000)):
            if source not in self._ports:
                self._drain_inbox()
                continue
            wire, port = self._ports[source]
            if events & zmq.POLLOUT:
                wire.flush()
                if not wire.waits:
                    port.has_room()
            if events & zmq.POLLIN:
                _drain(wire, port)

    def _attack(self, port: str, steps: Any) -> Later:
        """Plays a plan (`vswitch.rogue.parse_plan`) at a port; answered when it is over."""
        number = self._control.number
        self._rogues[port].play(parse_plan(steps), lambda told: self._control.answer(number, told))
        return LATER

    def _drain_inbox(self) -> None:
        while (message := self._inbox.receive_within(0.0)) is not None:
            command = self._control.decode(message[1])
            if command is not None:
                self._control.run(command)


def _drain(wire: PortWire, port: Port) -> None:
    for _ in range(_DRAIN):
        if not wire.ready:
            return
        message = wire.receive()
        if message is not None:
            port.receive(message)


def _given(configuration: dict[str, Any]) -> list[int]:
    """The descriptors that this process was given to have."""
    ports = [port["fd"] for port in configuration["ports"]]
    return [configuration["inbox"]["fd"], *ports, configuration["lifeline"]]
