"""The serving end of an actor's wires: all its trusted peers, each known by its name."""

from __future__ import annotations

import select
import time
from collections import deque
from typing import Final

from viommu_actors.wire.codec import MAX_FRAME, Codec, MalformedMessage, Message
from viommu_actors.wire.sockets import Listener, accept
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.zmtp import ROUTER, PeerLost, ZmtpPeer

#: Connections whose handshake is not over; beyond that the oldest of them goes.
_STRANGERS: Final = 16
#: Descriptors that one look tells of; the others are there at the next.
_EVENTS: Final = 16
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
#: What is handed out for a message that is none, of several frames or too long: no wire has it, so that whoever decodes
#: it counts it.
NO_MESSAGE: Final = b""


class Inbox:
    """A ROUTER whose peers have names, the first by a name as long as it stays.

    `poller` tells of its descriptors, and may tell of others too: those of this inbox are to be `note`d.
    """

    def __init__(self, listener: Listener, poller: select.epoll) -> None:
        self._listening = listener.open()
        self._poller = poller
        self._peers: dict[int, ZmtpPeer] = {}
        self._named: dict[bytes, ZmtpPeer] = {}
        #: by descriptor, those whose handshake is not over; the oldest first
        self._strangers: dict[int, ZmtpPeer] = {}
        #: those that there may be a message of
        self._noted: deque[ZmtpPeer] = deque()
        #: descriptors that are polled for room
        self._crowded: set[int] = set()
        poller.register(self._listening.fileno(), _IN)

    def receive(self) -> tuple[bytes, bytes]:
        """(peer, frame) of the next message; waits for it. For who has nothing else to wait for."""
        while (message := self.take()) is None:
            self._look(None)
        return message

    def receive_within(self, seconds: float) -> tuple[bytes, bytes] | None:
        """The same, for so long at most; None where nothing came."""
        message = self.take()
        deadline = time.monotonic() + seconds
        while message is None:
            left = deadline - time.monotonic()
            self._look(max(0.0, left))
            message = self.take()
            if left <= 0:
                break
        return message

    def note(self, fd: int, events: int) -> None:
        """The poller has told of a descriptor of this inbox."""
        peer = self._peers.get(fd)
        if peer is None:
            self._accept()
            return
        if events & _OUT:
            peer.flush()
            self._poll_for_room(fd, peer)
        if events & ~_OUT and peer not in self._noted:
            self._noted.append(peer)

    def take(self) -> tuple[bytes, bytes] | None:
        """The next message of what was noted, one of each peer in turn; None where there is none."""
        noted = self._noted
        while noted:
            peer = noted.popleft()
            try:
                frame = peer.receive() if peer.name or self._greet(peer) else None
            except BlockingIOError:
                continue
            except MalformedMessage:
                frame = NO_MESSAGE
            except PeerLost:
                self._drop(peer)
                continue
            if peer.behind:
                noted.append(peer)
            if frame is not None:
                return peer.name, frame
        return None

    @property
    def behind(self) -> bool:
        """Whether there may be a message that no poll will tell of."""
        return bool(self._noted)

    def send(self, name: bytes, message: Message, codec: Codec, tally: Tally) -> bool:
        """False where the peer is gone or takes no more, and the message does not count; never blocks."""
        peer = self._named.get(name)
        if peer is None:
            return False
        tally.sent[type(message)] += 1
        if not peer.send(codec.encode(message)):
            tally.sent[type(message)] -= 1
            return False
        if peer.waits:
            self._poll_for_room(peer.fileno(), peer)
        return True

    def close(self) -> None:
        """Lets go of all peers, and of the listener."""
        self._poller.unregister(self._listening.fileno())
        self._listening.close()
        for peer in list(self._peers.values()):
            self._drop(peer)

    def _look(self, seconds: float | None) -> None:
        for fd, events in self._poller.poll(seconds, _EVENTS):
            self.note(fd, events)

    def _accept(self) -> None:
        connection = accept(self._listening)
        if connection is None:
            return
        peer = ZmtpPeer(connection, MAX_FRAME, ROUTER)
        fd = peer.fileno()
        self._peers[fd] = self._strangers[fd] = peer
        self._poller.register(fd, _IN)
        if len(self._strangers) > _STRANGERS:
            self._drop(next(iter(self._strangers.values())))

    def _greet(self, peer: ZmtpPeer) -> bool:
        """Goes on with the handshake; whether the peer is one of this inbox now. Raises PeerLost."""
        if not peer.shake_hands():
            return False
        if not peer.name or peer.name in self._named:
            raise PeerLost("without a name of its own")
        del self._strangers[peer.fileno()]
        self._named[peer.name] = peer
        return peer.behind

    def _drop(self, peer: ZmtpPeer) -> None:
        fd = peer.fileno()
        self._poller.unregister(fd)
        del self._peers[fd]
        self._crowded.discard(fd)
        if peer in self._noted:
            self._noted.remove(peer)
        if self._strangers.pop(fd, None) is None:
            del self._named[peer.name]
        peer.close()

    def _poll_for_room(self, fd: int, peer: ZmtpPeer) -> None:
        """As long as something waits for it."""
        if peer.waits != (fd in self._crowded):
            self._crowded ^= {fd}
            self._poller.modify(fd, _IN | _OUT if peer.waits else _IN)
