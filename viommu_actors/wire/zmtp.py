"""ZMTP peers of our own: the ends of nearly all wires.

libzmq bounds how long a frame is and how many messages wait, but not how many frames a message has: it keeps them until
the last has come, so that whoever writes ZMTP by himself fills the memory of who reads it. Here a message of
several frames does not exist. Whatever comes in, a peer keeps one frame and one read of its socket.

And libzmq has a thread that does the I/O, which is to be woken for every message and wakes who waits for it: on one
CPU that is more than half of what a message costs. A peer has none: whoever waits for a message sleeps on the very
socket that it arrives at.

ZMTP 3.0 with the NULL mechanism (https://rfc.zeromq.org/spec/23), as libzmq of any version since 4.0 speaks it.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Iterable
from typing import Final, Self

from viommu_actors.wire.codec import Defect, MalformedMessage

#: Frames that wait for room before the next is refused: as many as between two sockets of libzmq.
QUEUE: Final = 128
#: Frames that are gathered for one write: it saves the other end wakes, and lets it start before all of them are made.
_GATHERED: Final = 8
_READ: Final = 1 << 16
_MORE, _LONG, _COMMAND = 1, 2, 4
_SHORT_HEADER, _LONG_HEADER = 2, 9
#: Socket types.
DEALER: Final = b"DEALER"
ROUTER: Final = b"ROUTER"
#: Signature, version 3.0, mechanism, no server, filler.
_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY: Final = b"\x05READY"
#: Headers of short frames, by their length.
_HEADERS: Final = tuple(bytes((0, size)) for size in range(256))
#: What goes on for longer has no end, and costs time: frames of a message, bytes of a frame.
_MANY_FRAMES: Final = 1024
_LONG_FRAME: Final = 1 << 26


class PeerLost(Exception):
    """The other end has closed, or does not speak ZMTP."""


class ZmtpPeer:
    """One end of a connection, as a DEALER or a ROUTER has it. Nothing here blocks.

    `limit`: bytes of the longest frame, 255 or more; a longer one is passed over, and malformed.
    """

    def __init__(self, connection: socket.socket, limit: int, kind: bytes = DEALER, identity: bytes = b"") -> None:
        """`identity` is what a ROUTER at the other end knows this one by."""
        self._limit = limit
        self._socket = connection
        self._recv = connection.recv
        connection.setblocking(False)
        #: whether the handshake is over; whether something could not be sent because the other end has closed
        self.up = False
        self.gone = False
        #: the identity of the other end, once this one is up
        self.name = b""
        #: Whether there may be a message that no poll will tell of, because it was read already.
        self.behind = False
        self._greeted = False
        #: what was read and not handed out, from `_at` on
        self._data = b""
        self._at = 0
        #: bytes still to be passed over; frames of a message of several, so far
        self._skip = 0
        self._inside = 0
        self._queue: deque[bytes] = deque()
        #: Frames are gathered until `flush`: more are about to be sent.
        self.gathers = False
        ready = _READY + _property(b"Socket-Type", kind) + _property(b"Identity", identity)
        self.put(_GREETING + bytes((_COMMAND, len(ready))) + ready)

    @classmethod
    def to(cls, address: str, limit: int, identity: bytes = b"") -> Self:
        """Connects; `address` as a `sockets.Listener` has it. Raises PeerLost where nobody listens."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect("\0" + address.removeprefix("ipc://@"))
        except OSError as error:
            connection.close()
            raise PeerLost(str(error)) from None
        return cls(connection, limit, DEALER, identity)

    def fileno(self) -> int:
        """To be polled for reading, and for writing while something `waits`."""
        return self._socket.fileno()

    @property
    def waits(self) -> bool:
        """Whether a frame waits for room."""
        return bool(self._queue)

    def shake_hands(self) -> bool:
        """Goes on with the handshake as far as the other end has; whether it is over. Raises PeerLost."""
        try:
            while not self.up:
                self._shake_hands()
        except BlockingIOError:
            return False
        return True

    def receive(self) -> bytes | None:
        """The next message; None for more of one that is none and was told of before: a frame, or a read of one.

        Raises BlockingIOError where none is there, MalformedMessage once for each that is none, and PeerLost.
        """
        while not self.up:
            self._shake_hands()
        while True:
            if self._skip:
                self._pass_over()
                if self._skip:  # however much it is, and however fast it comes, who reads has others to serve
                    return None
                continue
            data, at = self._data, self._at
            have = len(data)
            if at + 1 < have:
                flags = data[at]
                if flags or self._inside:
                    start = at + (_LONG_HEADER if flags & _LONG else _SHORT_HEADER)
                    stop = start + int.from_bytes(data[at + 1 : start], "big")
                    if start <= have and (flags & ~_LONG or stop - start > self._limit or self._inside):
                        self._refuse(flags, start, stop - start)
                        return None
                else:  # as a rule
                    start = at + _SHORT_HEADER
                    stop = start + data[at + 1]
                if start <= have and stop <= have:
                    self._at = stop
                    self.behind = stop < have
                    return data[start:stop]
            self._read()

    def send(self, frame: bytes) -> bool:
        """Sends now, or once there is room; False where `QUEUE` frames wait already, or the other end is not there."""
        if not self.up:
            return False
        data = framed(frame)
        queue = self._queue
        if not (queue or self.gathers):
            return self.put(data)
        if len(queue) >= QUEUE:
            return False
        queue.append(data)
        if self.gathers and not len(queue) % _GATHERED:
            self.flush()
        return True

    def flush(self) -> None:
        """Sends what waits, as far as there is room."""
        queue = self._queue
        if not queue:
            return
        try:
            sent = self._socket.sendmsg(queue)
        except BlockingIOError:
            return
        except OSError:
            self.gone = True
            queue.clear()
            return
        while queue and sent >= len(queue[0]):
            sent -= len(queue.popleft())
        if sent:
            queue[0] = queue[0][sent:]

    def put(self, data: bytes) -> bool:
        """Bytes of the stream itself, while nothing `waits`; those that find no room wait. False where the other end
        has closed."""
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.gone = True
            return False
        if sent < len(data):
            self._queue.append(data[sent:])
        return True

    def close(self) -> None:
        """The connection is gone, and what waited for it."""
        self._queue.clear()
        self._socket.close()

    # --- the stream

    def _read(self) -> None:
        """More of the stream. Raises BlockingIOError, PeerLost."""
        self.behind = False
        try:
            more = self._recv(_READ)
        except BlockingIOError:
            raise
        except OSError as error:
            raise PeerLost(str(error)) from None
        if not more:
            raise PeerLost("the other end has closed")
        self.behind = True
        self._data = self._data[self._at :] + more if self._at < len(self._data) else more
        self._at = 0

    def _peek(self, count: int) -> bytes:
        """The next bytes, all of them, which stay there. Raises as `_read` does."""
        while len(self._data) - self._at < count:
            self._read()
        return self._data[self._at : self._at + count]

    def _pass_over(self) -> None:
        if self._at == len(self._data):
            self._read()
        passed = min(self._skip, len(self._data) - self._at)
        self._at += passed
        self._skip -= passed

    def _refuse(self, flags: int, start: int, size: int) -> None:
        """A frame that no message has: passed over, and told of if it is the first of its message."""
        told = self._inside
        self._inside = told + 1 if flags & _MORE else 0
        self._at, self._skip = start, size
        if self._inside > _MANY_FRAMES or size > _LONG_FRAME:
            raise PeerLost("a message without an end")
        if told:
            return
        if flags & ~(_MORE | _LONG):
            raise MalformedMessage(Defect.COMMAND, f"flags {flags:#x}")
        if flags & _MORE:
            raise MalformedMessage(Defect.FRAMES, "several frames")
        raise MalformedMessage(Defect.OVERSIZE, f"a frame of {size} bytes")

    # --- the handshake

    def _shake_hands(self) -> None:
        """One step. Raises BlockingIOError, PeerLost."""
        if not self._greeted:
            greeting = self._peek(len(_GREETING))
            signature = greeting[0] == 0xFF and greeting[9] == 0x7F
            if not signature or greeting[10] < 3 or greeting[12:32] != _GREETING[12:32]:
                raise PeerLost("the other end does not speak ZMTP 3")
            self._at += len(_GREETING)
            self._greeted = True
        flags, size = self._peek(_SHORT_HEADER)
        ready = self._peek(_SHORT_HEADER + size)[_SHORT_HEADER:]
        if flags != _COMMAND or not ready.startswith(_READY):
            raise PeerLost("the other end did not get ready")
        self.name = _properties(ready[len(_READY) :]).get(b"identity", b"")
        self._at += _SHORT_HEADER + size
        self.behind = self._at < len(self._data)
        self.up = True


class WaitingPeer(ZmtpPeer):
    """One for who has nothing else to do meanwhile: it waits, for the other end to be up, for room, for a message."""

    def __init__(self, connection: socket.socket, limit: int, kind: bytes = DEALER, identity: bytes = b"") -> None:
        super().__init__(connection, limit, kind, identity)
        connection.setblocking(True)
        # Asleep in `recv` on an AF_UNIX stream, it would be woken for nothing too, when the other
        # end has read what was sent.
        poller = select.poll()
        poller.register(connection, select.POLLIN)
        self._wait = poller.poll

    def send(self, frame: bytes) -> bool:
        """Waits for room. Raises PeerLost."""
        if not self.up:  # libzmq does not always see what comes before its own part of the handshake
            self.shake_hands()
        try:
            self._socket.sendall(framed(frame))
        except OSError as error:
            raise PeerLost(str(error)) from None
        return True

    def send_all(self, frames: Iterable[bytes]) -> None:
        """Messages that go out together. Waits for room. Raises PeerLost."""
        if not self.up:
            self.shake_hands()
        try:
            self._socket.sendall(b"".join(map(framed, frames)))
        except OSError as error:
            raise PeerLost(str(error)) from None

    def _read(self) -> None:
        self._wait()
        super()._read()


def framed(frame: bytes) -> bytes:
    """A message of one frame, as it is in the stream."""
    size = len(frame)
    return (_HEADERS[size] if size < 256 else b"\x02" + size.to_bytes(8, "big")) + frame


def framed_with_more(frame: bytes) -> bytes:
    """A frame that another one of the same message follows."""
    return bytes((_MORE | _LONG,)) + len(frame).to_bytes(8, "big") + frame


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


def _properties(data: bytes) -> dict[bytes, bytes]:
    """Those of a READY, by their names in small letters. Raises PeerLost."""
    found: dict[bytes, bytes] = {}
    while data:
        name, data = data[1 : 1 + data[0]], data[1 + data[0] :]
        size = int.from_bytes(data[:4], "big")
        if len(data) < 4 + size:
            raise PeerLost("a property that is cut short")
        found[name.lower()], data = data[4 : 4 + size], data[4 + size :]
    return found
