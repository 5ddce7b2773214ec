"""Sockets of the wires: inherited listeners, and channels that ask.

Every socket that listens is made by the launcher as an abstract AF_UNIX name of 128 random bits
and handed to its actor as a descriptor: nobody binds by itself, a name cannot be
taken over, and a peer of another user is refused when it connects. What a kill leaves behind is
nothing, since an abstract name goes with its last descriptor.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from viommu_actors.wire.codec import MAX_FRAME, Codec, MalformedMessage, Message
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.zmtp import WaitingPeer

#: Calls that are under way at a time: so many answers a peer has room for, whenever they are taken.
_CALLS = 32
#: struct ucred: pid, uid, gid.
_CREDENTIALS = struct.Struct("iII")


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
            # Who connects before its owner has come so far as to accept waits here, or is refused.
            listening.listen(socket.SOMAXCONN)
            return Listener(listening.detach(), f"ipc://@{name}")

    def open(self) -> socket.socket:
        """The socket of the descriptor, which is closed with it."""
        listening = socket.socket(fileno=self.fd)
        listening.setblocking(False)
        return listening


def accept(listening: socket.socket) -> socket.socket | None:
    """The next connection of a listener; None where there is none, or one of another user, which is refused."""
    try:
        connection, _ = listening.accept()
    except OSError:  # gone again, or too many files are open: who calls is polled for again
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    if _CREDENTIALS.unpack(credentials)[1] != os.getuid():
        connection.close()
        return None
    return connection


class Channel:
    """The asking end of a wire: synchronous calls to one peer's inbox, or one-way posts. The peer is trusted.

    Who asks waits for nothing else meanwhile. Every method raises PeerLost where the peer has closed.
    """

    def __init__(self, name: str, address: str, out: Codec, answer: Codec, tally: Tally) -> None:
        """The peer need not be up yet."""
        self._peer = peer = WaitingPeer.to(address, MAX_FRAME, name.encode())
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
            while (frame := self._receive()) is None:
                pass
        except MalformedMessage as error:
            self.tally.rejected[error.defect] += 1
            raise
        message = self._decode(frame)
        self.tally.received[type(message)] += 1
        return message

    def close(self) -> None:
        """Lets go of the connection."""
        self._peer.close()
