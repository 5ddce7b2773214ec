"""The device process: a PCI Express function behind its one link, honest until told otherwise.

It is the untrusted party, so it confines itself before anything reaches it. It never opens a socket of its own: its
link and its control channel are listeners that it was given; a cable to another nic is a socket pair.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import zmq

from viommu_actors.actors.cable import Cable
from viommu_actors.actors.control import LATER, Control, Later
from viommu_actors.actors.device_latency import DeviceLatency
from viommu_actors.actors.hostile_link import HostileLink
from viommu_actors.actors.runtime import inbox_listener, log
from viommu_actors.confine.sandbox import Sandbox
from viommu_actors.devices.edu import Edu
from viommu_actors.devices.endpoint import Endpoint, FunctionState
from viommu_actors.devices.nic import Nic
from viommu_actors.devices.rogue import Rogue, StepResult
from viommu_actors.devices.rogue_plan import parse_plan
from viommu_actors.devices.script import Script
from viommu_actors.wire.codec import Defect, MalformedMessage, Message
from viommu_actors.wire.link import LINK_DOWN, LINK_UP
from viommu_actors.wire.sockets import Inbox, bind_link, make_context, receive_frame, send_frame
from viommu_actors.wire.tally import Tally

_DRAIN = 64
#: A link silent for so long while completions are due: they will not come (PCIe section 2.8).
_COMPLETION_TIMEOUT_MS = 1000
#: A link that takes nothing for so long is down.
_LINK_DOWN_MS = 5000


class DeviceActor:
    """Link, control and cable around one endpoint."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        name = configuration["name"]
        sandbox = Sandbox(configuration["sandbox"])
        sandbox.enter(_given(configuration))
        context = make_context()
        self._inbox = Inbox(context, inbox_listener(configuration))
        self._link = bind_link(context, inbox_listener(configuration, "link"))
        self._link.setsockopt(zmq.SNDTIMEO, _LINK_DOWN_MS)
        self._link_down = False
        self._tally = Tally(f"link:{name}", name)
        self._poller = zmq.Poller()
        self._poller.register(self._link, zmq.POLLIN)
        self._poller.register(self._inbox.socket, zmq.POLLIN)
        self._cable: Cable | None = None
        tallies = [self._tally]
        if configuration["cable"] is not None:
            self._cable = Cable(configuration["cable"], name)
            self._poller.register(self._cable.fd, zmq.POLLIN)
            tallies.append(self._cable.tally)
        confinement = sandbox.seal()
        self._endpoint = self._make(configuration)
        self._rogue = Rogue(self._endpoint, HostileLink(self._endpoint, self._link, self._tally, self._take))
        self._control = Control(self._inbox, name, tallies)
        self._control.register(
            {
                "attack": self._attack,
                "counters": lambda: dict(self._endpoint.counters),
                "confinement": lambda: asdict(confinement),
                "state": self._endpoint.state,
                "adopt": lambda state: self._endpoint.adopt(FunctionState.of(state)),
                "script": Script(self._endpoint, self._turn).run,
            }
        )
        self._control.register(DeviceLatency(self._endpoint, self._control).handlers())

    def run(self) -> None:
        """Serves until the process ends."""
        while True:
            self._turn()

    def _turn(self) -> None:
        """One wake of the loop."""
        endpoint = self._endpoint
        waiting = endpoint.engine.busy
        ready = self._poller.poll(_COMPLETION_TIMEOUT_MS if waiting else None)
        if not ready:
            for tag in endpoint.outstanding:
                endpoint.expire(tag)
        for source, _ in ready:
            if source is self._link:
                self._drain_link()
            elif source is self._inbox.socket:
                self._drain_inbox()
            elif self._cable is not None:
                self._drain_cable(self._cable)

    def _make(self, configuration: dict[str, Any]) -> Endpoint:
        payload, ats = configuration["max_payload"], configuration["ats"]
        if configuration["model"] == "edu":
            return Edu(self._send, log, max_payload=payload, dma_bits=configuration["dma_mask_bits"], ats=ats)
        mac = bytes.fromhex(configuration["mac"])
        transmit = None if self._cable is None else self._cable.transmit
        return Nic(self._send, log, mac=mac, max_payload=payload, ats=ats, send_frame=transmit)

    def _send(self, message: Message) -> None:
        """To the root port; waits while it takes no more, as flow control does. On a link that is down it is lost."""
        self._tally.sent[type(message)] += 1
        try:
            send_frame(self._link, LINK_UP.encode(message), zmq.NOBLOCK if self._link_down else 0)
        except zmq.Again:
            self._tally.sent[type(message)] -= 1
            self._link_down = True
        else:
            self._link_down = False

    def _drain_link(self) -> None:
        for _ in range(_DRAIN):
            try:
                frame = receive_frame(self._link, zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(frame)

    def _take(self, frame: bytes | None) -> None:
        try:
            if frame is None:
                raise MalformedMessage(Defect.FRAMES, "several frames")
            message = LINK_DOWN.decode(frame)
        except MalformedMessage as error:
            self._tally.rejected[error.defect] += 1
            log(f"link: {error}")
            return
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

    def _drain_cable(self, cable: Cable) -> None:
        assert isinstance(self._endpoint, Nic)
        for frame in cable.receive():
            if frame is None:
                self._poller.unregister(cable.fd)
                self._endpoint.set_link(False)
                return
            self._endpoint.receive_frame(frame)

    def _attack(self, steps: Any) -> Later:
        """Plays a plan (`devices.rogue.parse_plan`); answered when it is over."""
        number = self._control.number

        def over(results: list[StepResult]) -> None:
            self._control.answer(number, [result.__dict__ for result in results])

        self._rogue.play(parse_plan(steps), over)
        return LATER


def _given(configuration: dict[str, Any]) -> list[int]:
    """The descriptors that this process was given to have."""
    cable = configuration["cable"]
    held = [configuration["inbox"]["fd"], configuration["link"]["fd"], configuration["lifeline"]]
    return held if cable is None else [*held, cable["fd"]]
