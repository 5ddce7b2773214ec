"""A channel towards an inbox whose owner is not trusted: the launcher's to a device."""

from __future__ import annotations

import select
import time
from typing import Final

import zmq

from viommu_actors.wire.codec import MAX_FRAME, Codec, Defect, MalformedMessage, Message
from viommu_actors.wire.sockets import PeerGone
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.zmtp import PeerLost, ZmtpPeer

#: Seconds that a peer may take to come up, and to take what it is sent.
_PATIENCE: Final = 30.0


class GuardedChannel:
    """As a `sockets.Channel`, but that nothing the peer sends makes it grow."""

    def __init__(self, name: str, address: str, out: Codec, answer: Codec, tally: Tally, ended: int) -> None:
        """`ended` is a descriptor that becomes readable when the peer's process has ended. Raises PeerLost."""
        self._peer = ZmtpPeer(address, MAX_FRAME, name.encode())
        #: To be polled.
        self.socket = self._peer.fileno()
        self.tally = tally
        #: Why nothing comes any more.
        self.lost: PeerLost | None = None
        self._ended = ended
        self._encode = out.encode
        self._decode = answer.decode

    @property
    def behind(self) -> bool:
        """Whether there may be a message that no poll will tell of."""
        return self.lost is None and self._peer.behind

    def post(self, message: Message) -> None:
        """Sends and goes on; waits while the peer takes no more. To a process that has ended it is lost.

        Raises PeerGone where it takes nothing for too long.
        """
        peer, deadline = self._peer, time.monotonic() + _PATIENCE
        try:
            while not peer.shake_hands():
                if not self._wait(deadline, for_room=False):
                    return
        except PeerLost as error:
            self.lost = error
            return
        if peer.send(self._encode(message)):
            self.tally.sent[type(message)] += 1
        while peer.waits and self._wait(deadline, for_room=True):
            peer.flush()

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

    def _wait(self, deadline: float, for_room: bool) -> bool:
        """Until something happens at the socket; False where the process has ended first."""
        poller = select.poll()
        poller.register(self._ended, select.POLLIN)
        poller.register(self.socket, select.POLLOUT if for_room else select.POLLIN)
        ready = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            raise PeerGone("the peer takes no messages")
        return self._ended not in (descriptor for descriptor, _ in ready)
