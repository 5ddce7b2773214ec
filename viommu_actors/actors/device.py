"""The device process: a PCI Express function behind its one link, honest until told otherwise.

It is the untrusted party, so it confines itself before anything reaches it. It never opens a socket of its own: its
link and its control channel are listeners that it was given; a cable to another nic is a socket pair.
"""

from __future__ import annotations

import select
from dataclasses import asdict
from typing import Any

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
from viommu_actors.wire.codec import MalformedMessage, Message
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.link import LINK_DOWN, LINK_UP
from viommu_actors.wire.link_end import LinkEnd
from viommu_actors.wire.tally import Tally

_DRAIN = 64
#: Seconds; a link silent for so long while completions are due: they will not come (PCIe section 2.8).
_COMPLETION_TIMEOUT = 1.0


class DeviceActor:
    """Link, control and cable around one endpoint."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        name = configuration["name"]
        sandbox = Sandbox(configuration["sandbox"])
        sandbox.enter(_given(configuration))
        self._poller = select.epoll()
        self._inbox = Inbox(inbox_listener(configuration), self._poller)
        self._link = LinkEnd(inbox_listener(configuration, "link"), self._poller)
        self._tally = Tally(f"link:{name}", name)
        self._cable: Cable | None = None
        tallies = [self._tally]
        if configuration["cable"] is not None:
            self._cable = Cable(configuration["cable"], name)
            self._poller.register(self._cable.fd, select.EPOLLIN)
            tallies.append(self._cable.tally)
        confinement = sandbox.seal()
        self._endpoint = self._make(configuration)
        self._rogue = Rogue(self._endpoint, HostileLink(self._link, self._tally))
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
        endpoint, link, inbox = self._endpoint, self._link, self._inbox
        # A rogue's script may wait for what it has sent while it was told of a message.
        link.flush()
        waiting = endpoint.engine.busy
        behind = link.behind or inbox.behind
        events = self._poller.poll(0 if behind else _COMPLETION_TIMEOUT if waiting else None)
        if not (events or behind):
            for tag in endpoint.outstanding:
                endpoint.expire(tag)
        for fd, what in events:
            if fd == link.fd:
                self._drain_link()
            elif self._cable is not None and fd == self._cable.fd:
                self._drain_cable(self._cable)
            else:
                inbox.note(fd, what)
        if link.behind:
            self._drain_link()
        self._drain_inbox()

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
        if not self._link.send(LINK_UP.encode(message)):
            self._tally.sent[type(message)] -= 1

    def _drain_link(self) -> None:
        """What is sent meanwhile goes out together."""
        link = self._link
        link.gather()
        for _ in range(_DRAIN):
            try:
                frame = link.receive()
            except BlockingIOError:
                break
            except MalformedMessage as error:
                self._reject(error)
            else:
                if frame is not None:
                    self._take(frame)
            if not link.behind:
                break
        link.flush()

    def _take(self, frame: bytes) -> None:
        try:
            message = LINK_DOWN.decode(frame)
        except MalformedMessage as error:
            self._reject(error)
            return
        self._tally.received[type(message)] += 1
        self._endpoint.receive(message)

    def _reject(self, error: MalformedMessage) -> None:
        self._tally.rejected[error.defect] += 1
        log(f"link: {error}")

    def _drain_inbox(self) -> None:
        while (message := self._inbox.take()) is not None:
            command = self._control.decode(message[1])
            if command is not None:
                self._control.run(command)

    def _drain_cable(self, cable: Cable) -> None:
        assert isinstance(self._endpoint, Nic)
        for frame in cable.receive():
            if frame is None:
                self._poller.unregister(cable.fd)
                self._cable = None
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
