"""The end of a link that listens: a device's."""

from __future__ import annotations

import select
import time
from typing import Final

from viommu_actors.wire.codec import MAX_FRAME
from viommu_actors.wire.sockets import Listener, accept
from viommu_actors.wire.zmtp import PeerLost, ZmtpPeer

#: Seconds; a link that takes nothing for so long is down.
_DOWN: Final = 5.0
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


class LinkEnd:
    """One connection at a time; who comes next waits until it has ended. `poller` polls for it."""

    def __init__(self, listener: Listener, poller: select.epoll) -> None:
        self._listening = listener.open()
        self._poller = poller
        self._peer: ZmtpPeer | None = None
        #: The other end took nothing for too long: what is sent is lost, until there is room, for which it is polled.
        self._down = False
        #: What the poller returns for it.
        self.fd = self._listening.fileno()
        poller.register(self.fd, _IN)

    @property
    def behind(self) -> bool:
        """Whether there may be a message that no poll will tell of."""
        return self._peer is not None and self._peer.behind

    def receive(self) -> bytes | None:
        """As `zmtp.ZmtpPeer.receive`, but that the next connection is waited for where one is lost."""
        peer = self._peer
        try:
            if peer is None:
                peer = self._connected()
            return peer.receive()
        except PeerLost:
            self._listen()
            raise BlockingIOError from None

    def gather(self) -> None:
        """What is sent from here on goes out in few writes, the last of it with `flush`."""
        if self._peer is not None:
            self._peer.gathers = True

    def flush(self) -> None:
        """Sends what waits; waits for room too, where the link is not down already."""
        peer = self._peer
        if peer is not None:
            peer.gathers = False
            peer.flush()
            if self._down:
                self._set_down(peer.waits)
            elif peer.waits:
                self._wait_for_room(peer)

    def send(self, frame: bytes) -> bool:
        """Waits for room, as flow control does; False on a link that is down, and the frame is lost."""
        peer = self._peer
        if peer is None or (self._down and self._stays_down(peer)):
            return False
        if not (peer.send(frame) or (peer.waits and self._wait_for_room(peer) and peer.send(frame))):
            return False
        if peer.waits and not peer.gathers:
            self._wait_for_room(peer)
        return True

    def write(self, data: bytes) -> bool:
        """Bytes of the stream itself, beneath all messages; False on a link that is down."""
        peer = self._peer
        if peer is None or (self._down and self._stays_down(peer)):
            return False
        return self._wait_for_room(peer) and peer.put(data) and self._wait_for_room(peer)

    def close(self) -> None:
        """Lets go of the connection and of the listener."""
        self._poller.unregister(self.fd)
        if self._peer is not None:
            self._peer.close()
        self._listening.close()

    def _stays_down(self, peer: ZmtpPeer) -> bool:
        peer.flush()
        self._set_down(peer.waits)
        return self._down

    def _set_down(self, down: bool) -> None:
        if down != self._down:
            self._down = down
            self._poller.modify(self.fd, _IN | _OUT if down else _IN)

    def _wait_for_room(self, peer: ZmtpPeer) -> bool:
        """Until nothing waits for it; False where that takes too long, or the other end has closed."""
        deadline = time.monotonic() + _DOWN
        while peer.waits:
            left = deadline - time.monotonic()
            if left <= 0:
                self._set_down(True)
                return False
            select.select([], [peer], [], left)
            peer.flush()
        return not peer.gone

    def _connected(self) -> ZmtpPeer:
        """Raises BlockingIOError where nobody calls."""
        connection = accept(self._listening)
        if connection is None:
            raise BlockingIOError
        self._peer = peer = ZmtpPeer(connection, MAX_FRAME)
        self._poll(peer.fileno())
        return peer

    def _listen(self) -> None:
        """The connection has ended."""
        assert self._peer is not None
        self._poll(self._listening.fileno())
        self._peer.close()
        self._peer, self._down = None, False

    def _poll(self, fd: int) -> None:
        """Instead of what was polled."""
        self._poller.unregister(self.fd)
        self._poller.register(fd, _IN)
        self.fd = fd
