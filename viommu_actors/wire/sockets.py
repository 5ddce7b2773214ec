"""Sockets of the wires: inherited listeners, inboxes that serve, channels that ask.

Every socket that listens is made by the launcher as an abstract AF_UNIX name of 128 random bits
and handed to its actor as a descriptor (`ZMQ_USE_FD`): nobody binds by itself, a name cannot be
taken over, and a peer of another user is refused when it connects. What a kill leaves behind is
nothing, since an abstract name goes with its last descriptor.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import zmq

from viommu_actors.wire.codec import MAX_FRAME, Codec, MalformedMessage, Message
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.zmtp import WaitingPeer

#: pyzmq's own send. What `zmq.Socket` adds to it are arguments that no wire has, and half of its time.
send_frame = zmq.backend.Socket.send
#: Messages that wait in a socket before its sender is told to try again.
HIGH_WATER_MARK = 64
#: Calls that are under way at a time: so many answers a peer has room for, whenever they are taken.
_CALLS = HIGH_WATER_MARK // 2
#: An enum's bits are expensive to combine.
_MORE = int(zmq.SNDMORE | zmq.NOBLOCK)
_POLLIN = int(zmq.POLLIN)


@dataclass(frozen=True)
class Listener:
    """A listening descriptor and the address that others connect to."""

    fd: int
    address: str

    @staticmethod
    def create() -> Listener:
        """For the launcher: the descriptor is not inheritable until it is passed on by name."""
        name = f"viommu-{secrets.token_hex(16)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(f"\0{name}")
            listening.listen(128)
            return Listener(listening.detach(), f"ipc://@{name}")


def make_context() -> zmq.Context[zmq.Socket[bytes]]:
    """The context of this process, with one I/O thread."""
    return zmq.Context(1)


def _socket(context: zmq.Context[Any], kind: int) -> zmq.Socket[bytes]:
    made: zmq.Socket[bytes] = context.socket(kind)
    made.setsockopt(zmq.LINGER, 0)
    made.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    made.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    # This bounds a frame, the marks above bound messages; how many frames a message has, libzmq does not bound. Towards
    # a peer that is not trusted stands a `ZmtpPeer` instead.
    made.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
    made.setsockopt(zmq.HANDSHAKE_IVL, 5000)
    return made


def _listen(made: zmq.Socket[bytes], listener: Listener) -> zmq.Socket[bytes]:
    made.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
    made.setsockopt(zmq.USE_FD, listener.fd)
    made.bind(listener.address)
    return made


def bind_link(context: zmq.Context[Any], listener: Listener) -> zmq.Socket[bytes]:
    """The device's end of its link."""
    return _listen(_socket(context, zmq.DEALER), listener)


def connect(context: zmq.Context[Any], address: str, name: str = "") -> zmq.Socket[bytes]:
    """The connecting end of a wire that libzmq has both ends of; `name` is what an inbox knows it by, if any."""
    made = _socket(context, zmq.DEALER)
    if name:
        made.setsockopt(zmq.ROUTING_ID, name.encode())
    made.setsockopt(zmq.IMMEDIATE, 1)
    made.connect(address)
    return made


def receive_frame(source: zmq.Socket[bytes], flags: int = 0) -> bytes | None:
    """One single-frame message; None for one of several frames, which no wire has."""
    # A frame object knows whether more follow; to ask the socket for it takes as long as all else here together.
    frame = source.recv(flags, copy=False, track=False)
    if not frame.more:
        return frame.bytes
    while frame.more:
        frame = source.recv(copy=False, track=False)
    return None


class Inbox:
    """A ROUTER that serves all trusted peers of an actor; a peer's routing id is its name."""

    def __init__(self, context: zmq.Context[Any], listener: Listener) -> None:
        self.socket = _socket(context, zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        _listen(self.socket, listener)

    def receive(self, flags: int = 0) -> tuple[bytes, bytes]:
        """(peer, frame); raises zmq.Again as the socket does."""
        source = self.socket
        while True:
            peer = source.recv(flags)
            frame = receive_frame(source)
            if frame is not None:
                return peer, frame

    @property
    def ready(self) -> bool:
        """Whether a message waits: half the time of an attempt to receive one that fails."""
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & _POLLIN)

    def send(self, peer: bytes, message: Message, codec: Codec, tally: Tally) -> bool:
        """False where the peer is gone or takes no more, and the message does not count; never blocks."""
        frame = codec.encode(message)
        tally.sent[type(message)] += 1
        try:
            send_frame(self.socket, peer, _MORE)
            send_frame(self.socket, frame, zmq.NOBLOCK)
        except zmq.ZMQError:
            tally.sent[type(message)] -= 1
            return False
        return True


class Channel:
    """The asking end of a wire: synchronous calls to one peer's inbox, or one-way posts. The peer is trusted.

    Who asks waits for nothing else meanwhile. Every method raises PeerLost where the peer has closed.
    """

    def __init__(self, name: str, address: str, out: Codec, answer: Codec, tally: Tally) -> None:
        """The peer need not be up yet."""
        self._peer = peer = WaitingPeer(address, MAX_FRAME, name.encode())
        self.tally = tally
        self._encode = out.encode
        self._decode = answer.decode
        self._send = peer.send
        self._receive = peer.receive

    def call(self, message: Message) -> Message:
        """Sends and waits for the answer. Raises MalformedMessage."""
        self.tally.sent[type(message)] += 1
        self._send(self._encode(message))
        return self.receive()

    def calls(self, messages: Sequence[Message]) -> list[Message]:
        """Several, none of which waits for the answer to the one before; the peer takes them one after another.

        Raises MalformedMessage once all are answered.
        """
        answers: list[Message] = []
        malformed: list[MalformedMessage] = []
        for begin in range(0, len(messages), _CALLS):
            some = messages[begin : begin + _CALLS]
            for message in some:
                self.tally.sent[type(message)] += 1
            self._peer.send_all([self._encode(message) for message in some])
            for _ in some:
                try:
                    answers.append(self.receive())
                except MalformedMessage as error:
                    malformed.append(error)
        if malformed:
            raise malformed[0]
        return answers

    def post(self, message: Message) -> None:
        """Sends and goes on; waits while the peer is not up, or takes no more."""
        self.tally.sent[type(message)] += 1
        self._send(self._encode(message))

    def receive(self) -> Message:
        """Waits for the next answer. Raises MalformedMessage."""
        try:
            frame = self._receive()
        except MalformedMessage as error:
            self.tally.rejected[error.defect] += 1
            raise
        message = self._decode(frame)
        self.tally.received[type(message)] += 1
        return message

    def close(self) -> None:
        """Lets go of the connection."""
        self._peer.close()
