"""One end of a wire whose other end is not trusted, in nothing that it sends or leaves out; the other end listens.

Held for a wire, whatever comes: one frame and one read on the way in, `wire.zmtp.QUEUE` frames on the way out.
"""

from __future__ import annotations

import select

from viommu_actors.actors.runtime import log
from viommu_actors.wire.codec import Codec, MalformedMessage, Message
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.zmtp import PeerLost, ZmtpPeer

#: Lines logged of what the other end gets wrong; from there on one at each tenth power. All of it is counted.
_LOGGED = 10


class PeerWire:
    """Polled for by `poller` as long as it is open; `name` is for people."""

    def __init__(
        self, name: str, address: str, out: Codec, into: Codec, limit: int, tally: Tally, poller: select.epoll
    ) -> None:
        """`limit`: bytes of the longest frame that comes in. It is closed at once where nobody listens."""
        self.name = name
        self.tally = tally
        self._poller = poller
        self._encode = out.encode
        self._decode = into.decode
        #: Something waits for room, and the poller tells of it.
        self._crowded = False
        self._peer: ZmtpPeer | None = None
        try:
            self._peer = ZmtpPeer.to(address, limit)
        except PeerLost as error:
            log(f"{name}: link down: {error}")
            return
        #: What the poller returns for it.
        self.fd = self._peer.fileno()
        poller.register(self.fd, select.EPOLLIN)

    @property
    def open(self) -> bool:
        return self._peer is not None

    @property
    def up(self) -> bool:
        """Whether the other end is there, and takes messages."""
        return self._peer is not None and self._peer.up

    @property
    def behind(self) -> bool:
        """Whether there may be a message that no poll will tell of."""
        return self._peer is not None and self._peer.behind

    @property
    def waits(self) -> bool:
        """Whether something that was sent waits for room."""
        return self._peer is not None and self._peer.waits

    def receive(self) -> Message | None:
        """The next message; None for something that is none, which has been counted.

        Raises BlockingIOError where there is no more, or the wire is closed.
        """
        peer = self._peer
        if peer is None:
            raise BlockingIOError
        try:
            frame = peer.receive()
            message = None if frame is None else self._decode(frame)
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
        """Sends now, or as soon as there is room; False where too much waits for it already, or the wire is closed."""
        peer = self._peer
        self.tally.sent[type(message)] += 1
        if peer is None or not peer.send(self._encode(message)):
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

    def close(self) -> None:
        """Nothing comes or goes any more."""
        if self._peer is not None:
            self._poller.unregister(self.fd)
            self._peer.close()
            self._peer = None
            self._crowded = False

    def _poll_for_room(self) -> None:
        """As long as something waits for it."""
        waits = self.waits
        if waits != self._crowded:
            self._crowded = waits
            self._poller.modify(self.fd, select.EPOLLIN | select.EPOLLOUT if waits else select.EPOLLIN)

    def _lost(self, error: PeerLost) -> None:
        log(f"{self.name}: link down: {error}")
        self.close()

    def _reject(self, error: MalformedMessage) -> None:
        self.tally.rejected[error.defect] += 1
        number = self.tally.malformed
        if number <= _LOGGED:
            log(f"{self.name}: dropped a message: {error}")
        elif is_told(number):
            kinds = ", ".join(f"{defect} {count}" for defect, count in sorted(self.tally.rejected.items()))
            log(f"{self.name}: dropped {number} messages by now: {kinds}")


def is_told(number: int) -> bool:
    """Of what may come without end: the first so many, then every power of ten."""
    return number <= _LOGGED or number == 10 ** (len(str(number)) - 1)
