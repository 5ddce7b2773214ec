"""The vhost wires of a hypervisor: each emulated network card with the virtual switch that serves it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import zmq

from viommu_actors.actors.peer_wire import PeerWire
from viommu_actors.hypervisor.virtio.front_end import FrontEnd
from viommu_actors.wire.codec import Message
from viommu_actors.wire.sockets import Inbox
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.vhost import VHOST_DOWN, VHOST_FRAME, VHOST_UP
from viommu_actors.wire.zmtp import PeerLost

#: Messages of one back end that are served before others have their turn.
_DRAIN = 64
#: Seconds in which a back end is to answer what the guest's CPU waits for: all of it, until the inbox has its turn.
PATIENCE = 1.0


class VhostWire(PeerWire):
    """One connection to a back end, `front_end.BackEnd`; the front end hears of it once the other end is there."""

    def __init__(
        self,
        name: str,
        address: str,
        tally: Tally,
        poller: zmq.Poller,
        front_end: FrontEnd,
        wait: Callable[[Callable[[], bool]], None],
    ) -> None:
        super().__init__(name, address, VHOST_DOWN, VHOST_UP, VHOST_FRAME, tally, poller)
        self.wait = wait
        self._front_end = front_end
        self._known = False

    def send(self, message: Message) -> bool:
        """False where the back end takes no more. To one that is gone everything may be said."""
        sent = super().send(message)
        if not sent and (self._peer is None or self._peer.gone):
            self._lost(PeerLost("the other end has closed"))
            return True
        return sent

    def drain(self) -> None:
        """Serves what has come, up to a limit."""
        self.gather()
        self._front_end.gather()
        try:
            for _ in range(_DRAIN):
                message = self.receive()
                if not self._known and self.up:
                    self._introduce()
                if message is not None:
                    self._front_end.receive(message)
        except BlockingIOError:
            if not self._known and self.up:
                self._introduce()
        self._front_end.flush()
        self.flush()
        if not self.waits:
            self._front_end.room()

    def _lost(self, error: PeerLost) -> None:
        super()._lost(error)
        if self._known:
            self._known = False
            self._front_end.lost()

    def _introduce(self) -> None:
        self._known = True
        self._front_end.connected(self)


class VhostWires:
    """All of them, and the inbox beside them."""

    def __init__(self, inbox: Inbox, tallies: Mapping[str, Tally]) -> None:
        """`tallies` by the name of the card."""
        self._inbox = inbox
        self._tallies = tallies
        self._poller = zmq.Poller()
        self._poller.register(inbox.socket, zmq.POLLIN)
        self._wires: dict[str, VhostWire] = {}
        #: how long each card's back end was waited for since the inbox was looked at, in seconds
        self._waited: dict[str, float] = {}

    def connect(self, name: str, address: str, front_end: FrontEnd) -> None:
        """The card's back end listens at an address, instead of where it did."""
        before = self._wires.pop(name, None)
        if before is not None:
            before.close()
            front_end.lost()
            self._tallies[name].start_over()
        self._wires[name] = VhostWire(
            f"vhost:{name}", address, self._tallies[name], self._poller, front_end, partial(self._wait, name)
        )

    def serve(self, timeout: int | None) -> None:
        """Waits for messages, for `timeout` milliseconds at most, and serves those of back ends."""
        self._waited.clear()
        self._drain(self._poller.poll(0 if self._behind() else timeout))

    def _wait(self, name: str, until: Callable[[], bool]) -> None:
        """See `front_end.BackEnd`; what is in the inbox waits as long as the guest's CPU does."""
        start = time.monotonic()
        waited = self._waited.get(name, 0.0)
        deadline = start + PATIENCE - waited
        self._poller.unregister(self._inbox.socket)
        try:
            while not until() and (left := deadline - time.monotonic()) > 0:
                self._drain(self._poller.poll(0 if self._behind() else int(left * 1000) + 1))
        finally:
            self._poller.register(self._inbox.socket, zmq.POLLIN)
            self._waited[name] = waited + time.monotonic() - start

    def _behind(self) -> bool:
        return any(wire.behind for wire in self._wires.values())

    def _drain(self, events: list[tuple[Any, int]]) -> None:
        ready = {source for source, _ in events}
        for wire in self._wires.values():
            if wire.open and (wire.fd in ready or wire.behind):
                wire.drain()
