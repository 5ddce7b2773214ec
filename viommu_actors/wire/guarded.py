"""A channel towards an inbox whose owner is not trusted: the launcher's to a device."""

from __future__ import annotations

from collections import deque

import zmq

from viommu_actors.wire.codec import MAX_FRAME, Codec, Defect, MalformedMessage, Message
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.zmtp import PeerLost, ZmtpPeer


class GuardedChannel:
    """As a `sockets.Channel`, but that nothing the peer sends makes it grow."""

    def __init__(self, name: str, address: str, out: Codec, answer: Codec, tally: Tally) -> None:
        """Raises PeerLost where nobody listens."""
        self._peer = ZmtpPeer(address, MAX_FRAME, name.encode())
        #: To be polled.
        self.socket = self._peer.fileno()
        self.tally = tally
        #: Why nothing comes any more.
        self.lost: PeerLost | None = None
        #: what the peer could not be sent yet
        self._waiting: deque[Message] = deque()
        self._encode = out.encode
        self._decode = answer.decode

    @property
    def behind(self) -> bool:
        """Whether there may be a message that no poll will tell of."""
        return self.lost is None and self._peer.behind

    @property
    def wants_room(self) -> bool:
        """Whether there is something to be flushed as soon as the socket is writable."""
        return self._peer.up and self._peer.waits

    def post(self, message: Message) -> None:
        """Sends now, or once the peer is up and takes it; never blocks."""
        self._waiting.append(message)
        self.flush()

    def flush(self) -> None:
        """Sends what waits, as far as the peer takes it. To be called when something has happened at the socket."""
        peer, waiting = self._peer, self._waiting
        try:
            if not peer.shake_hands():
                return
        except PeerLost as error:
            self.lost = error
            return
        peer.flush()
        while waiting and peer.send(self._encode(waiting[0])):
            self.tally.sent[type(waiting.popleft())] += 1

    def receive(self, flags: int = zmq.NOBLOCK) -> Message:
        """Raises zmq.Again where there is none, MalformedMessage. What has been `lost` says nothing any more.

        Each further frame of a message that was malformed is so too, but not counted again: whoever drains this channel
        has its say in between.
        """
        try:
            frame = self._peer.receive()
        except BlockingIOError:
            raise zmq.Again from None
        except PeerLost as error:
            self.lost = error
            raise zmq.Again from None
        except MalformedMessage as error:
            self.tally.rejected[error.defect] += 1
            raise
        if frame is None:
            raise MalformedMessage(Defect.FRAMES, "a further frame")
        message = self._decode(frame)
        self.tally.received[type(message)] += 1
        return message

    def close(self) -> None:
        """Lets go of the connection."""
        self._peer.close()
