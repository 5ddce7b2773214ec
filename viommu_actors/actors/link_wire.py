"""The host's end of one link. The device at the other end is not trusted, in nothing that it sends or leaves out.

Held for a link, whatever comes: one frame and one read on the way in, `wire.zmtp.QUEUE` frames on the way out.
"""

from __future__ import annotations

import select
import time

import zmq

from viommu_actors.actors.runtime import log
from viommu_actors.pci.link import Link
from viommu_actors.wire.codec import MalformedMessage, Message
from viommu_actors.wire.messages import LINK_DOWN, LINK_FRAME, LINK_UP
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.zmtp import PeerLost, ZmtpPeer

#: Lines logged of what a device gets wrong; from there on one at each tenth power. All of it is counted.
_LOGGED = 10


class LinkWire:
    """Messages of one link, polled for by `poller` as long as it is open."""

    def __init__(self, link: Link, address: str, tally: Tally, poller: zmq.Poller) -> None:
        self.tally = tally
        self._link = link
        self._poller = poller
        self._timeouts = 0
        #: Something waits for room, and the poller tells of it.
        self._crowded = False
        self._peer: ZmtpPeer | None = None
        try:
            self._peer = ZmtpPeer(address, LINK_FRAME)
        except PeerLost as error:
            log(f"{link.name}: link down: {error}")
            return
        #: What the poller returns for it.
        self.fd = self._peer.fileno()
        poller.register(self.fd, zmq.POLLIN)

    @property
    def open(self) -> bool:
        return self._peer is not None

    @property
    def behind(self) -> bool:
        """Whether there may be a message that no poll will tell of."""
        return self._peer is not None and self._peer.behind

    def train(self, deadline: float) -> bool:
        """Waits until the other end is there; one that is not by `deadline` (monotonic seconds) is left alone."""
        peer = self._peer
        try:
            while peer is not None and not peer.shake_hands():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise PeerLost("nobody shook hands")
                select.select([peer], [], [], left)
        except PeerLost as error:
            self._lost(error)
        return self.open

    def receive(self) -> Message | None:
        """The next message; None for something that is none, which has been counted.

        Raises BlockingIOError where there is no more, or the link is down.
        """
        peer = self._peer
        if peer is None:
            raise BlockingIOError
        try:
            frame = peer.receive()
            message = None if frame is None else LINK_UP.decode(frame)
        except MalformedMessage as error:
            self._reject(error)
            return None
        except PeerLost as error:
            self._lost(error)
            raise BlockingIOError from None
        if message is not None:
            self.tally.received[type(message)] += 1
        return message

    def send(self, message: Message) -> bool:
        """Sends now, or as soon as there is room; False where too much waits for it already, or the link is down."""
        peer = self._peer
        self.tally.sent[type(message)] += 1
        if peer is None or not peer.send(LINK_DOWN.encode(message)):
            self.tally.sent[type(message)] -= 1
            return False
        if peer.waits and not peer.gathers:
            self._poll_for_room()
        return True

    def gather(self) -> None:
        """What is sent from here on goes out in few writes, the last of it with `flush`."""
        if self._peer is not None:
            self._peer.gathers = True

    def flush(self) -> None:
        """Sends what waits, as far as there is room."""
        peer = self._peer
        if peer is not None:
            peer.gathers = False
            peer.flush()
            self._poll_for_room()

    def _poll_for_room(self) -> None:
        """As long as something waits for it."""
        waits = self._peer is not None and self._peer.waits
        if waits != self._crowded:
            self._crowded = waits
            self._poller.modify(self.fd, zmq.POLLIN | zmq.POLLOUT if waits else zmq.POLLIN)

    def timed_out(self) -> None:
        """The device let a request wait for too long."""
        self._timeouts += 1
        if _is_told(self._timeouts):
            log(f"{self._link.name}: completion timeout, number {self._timeouts}")

    def close(self) -> None:
        """The link is down."""
        if self._peer is not None:
            self._poller.unregister(self.fd)
            self._peer.close()
            self._peer = None
            self._crowded = False

    def _lost(self, error: PeerLost) -> None:
        log(f"{self._link.name}: link down: {error}")
        self.close()

    def _reject(self, error: MalformedMessage) -> None:
        self.tally.rejected[error.defect] += 1
        self._link.reject(error.defect)
        number = self.tally.malformed
        if number <= _LOGGED:
            log(f"{self._link.name}: dropped a message: {error}")
        elif _is_told(number):
            kinds = ", ".join(f"{defect} {count}" for defect, count in sorted(self.tally.rejected.items()))
            log(f"{self._link.name}: dropped {number} messages by now: {kinds}")


def _is_told(number: int) -> bool:
    """The first so many, then every power of ten."""
    return number <= _LOGGED or number == 10 ** (len(str(number)) - 1)
