"""Channels of who polls: the launcher's to its actors, and what a kernel tells others of its own accord."""

from __future__ import annotations

from collections import deque

from viommu_actors.wire.codec import MAX_FRAME, Codec, Defect, MalformedMessage, Message
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.zmtp import PeerLost, ZmtpPeer


class PolledChannel:
    """Towards an inbox, as a `sockets.Channel`, but that it never blocks. Its owner need not be trusted."""

    def __init__(self, name: str, address: str, out: Codec, answer: Codec, tally: Tally) -> None:
        """Raises PeerLost where nobody listens."""
        self._peer = ZmtpPeer.to(address, MAX_FRAME, name.encode())
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

    @property
    def up(self) -> bool:
        """Whether the peer has shaken hands; until then what waits is flushed when the socket is readable."""
        return self._peer.up

    def offer(self, message: Message) -> bool:
        """Sends if there is room; False where there is none, or no peer, and the message does not count."""
        peer, sent = self._peer, self.tally.sent
        if not peer.up:
            self._shake_hands()
        sent[type(message)] += 1
        if peer.send(self._encode(message)):
            return True
        sent[type(message)] -= 1
        if peer.gone:
            self.lost = PeerLost("the other end has closed")
        return False

    def post(self, message: Message) -> None:
        """Sends now, or once the peer is up and takes it."""
        self._waiting.append(message)
        self.flush()

    def flush(self) -> None:
        """Sends what waits, as far as the peer takes it. To be called when something has happened at the socket."""
        if not self._peer.up:
            self._shake_hands()
        self._peer.flush()
        waiting = self._waiting
        while waiting and self.offer(waiting[0]):
            waiting.popleft()

    def _shake_hands(self) -> None:
        try:
            self._peer.shake_hands()
        except PeerLost as error:
            self.lost = error

    def receive(self) -> Message:
        """Raises BlockingIOError where there is none, MalformedMessage. What has been `lost` says nothing any more.

        Whatever more there is of a message that was malformed is so too, but not counted again: whoever drains this
        channel has its say in between.
        """
        try:
            frame = self._peer.receive()
        except PeerLost as error:
            self.lost = error
            raise BlockingIOError from None
        except MalformedMessage as error:
            self.tally.rejected[error.defect] += 1
            raise
        if frame is None:
            raise MalformedMessage(Defect.FRAMES, "more of the same")
        message = self._decode(frame)
        self.tally.received[type(message)] += 1
        return message

    def close(self) -> None:
        """Lets go of the connection."""
        self._peer.close()
