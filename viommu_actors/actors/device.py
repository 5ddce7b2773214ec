"""The device process: a PCI Express function behind its one link, honest until told otherwise.

It never opens a socket of its own. Its link and its control channel are listeners that it was
given; a cable to another nic is a socket pair.
"""

from __future__ import annotations

import socket
from typing import Any

import zmq

from viommu_actors.actors.control import LATER, Control, Later
from viommu_actors.actors.runtime import inbox_listener, log
from viommu_actors.devices.edu import Edu
from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.devices.nic import Nic
from viommu_actors.devices.rogue import Rogue
from viommu_actors.spec.nic import MAX_FRAME
from viommu_actors.wire.codec import MalformedMessage, Message
from viommu_actors.wire.messages import LINK_DOWN, LINK_UP
from viommu_actors.wire.sockets import Inbox, bind_link, make_context, receive_frame
from viommu_actors.wire.tally import Tally

_DRAIN = 64
#: A link silent for so long while completions are due: they will not come (PCIe section 2.8).
_COMPLETION_TIMEOUT_MS = 1000


class DeviceActor:
    """Link, control and cable around one endpoint."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        name = configuration["name"]
        context = make_context()
        self._inbox = Inbox(context, inbox_listener(configuration))
        self._link = bind_link(context, inbox_listener(configuration, "link"))
        self._tally = Tally(f"link:{name}", name)
        tallies = [self._tally]
        self._poller = zmq.Poller()
        self._poller.register(self._link, zmq.POLLIN)
        self._poller.register(self._inbox.socket, zmq.POLLIN)
        self._cable: socket.socket | None = None
        if configuration["cable"] is not None:
            self._cable = socket.socket(fileno=configuration["cable"])
            self._poller.register(self._cable, zmq.POLLIN)
        self._endpoint = self._make(configuration)
        self._rogue = Rogue(self._endpoint)
        self._control = Control(self._inbox, name, tallies)
        self._control.register({"attack": self._attack, "counters": lambda: dict(self._endpoint.counters)})

    def run(self) -> None:
        """Serves until the process ends."""
        endpoint = self._endpoint
        while True:
            waiting = bool(endpoint.outstanding)
            ready = self._poller.poll(_COMPLETION_TIMEOUT_MS if waiting else None)
            if not ready:
                for tag in endpoint.outstanding:
                    endpoint.expire(tag)
            for source, _ in ready:
                if source is self._link:
                    self._drain_link()
                elif source is self._inbox.socket:
                    self._drain_inbox()
                else:
                    self._drain_cable()

    def _make(self, configuration: dict[str, Any]) -> Endpoint:
        if configuration["model"] == "edu":
            return Edu(self._send, log, configuration["max_payload"], configuration["dma_mask_bits"])
        return Nic(self._send, log, configuration["max_payload"], self._transmit if self._cable else None)

    def _send(self, message: Message) -> None:
        """To the root port; waits while it takes no more, as flow control does."""
        self._link.send(LINK_UP.encode(message))
        self._tally.sent[type(message)] += 1

    def _drain_link(self) -> None:
        for _ in range(_DRAIN):
            try:
                frame = receive_frame(self._link, zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                if frame is None:
                    raise MalformedMessage("several frames")
                message = LINK_DOWN.decode(frame)
            except MalformedMessage as error:
                self._tally.malformed += 1
                log(f"link: {error}")
                continue
            self._tally.received[type(message)] += 1
            self._endpoint.receive(message)

    def _drain_inbox(self) -> None:
        while True:
            try:
                _, frame = self._inbox.receive(zmq.NOBLOCK)
            except zmq.Again:
                return
            command = self._control.decode(frame)
            if command is not None:
                self._control.run(command)
