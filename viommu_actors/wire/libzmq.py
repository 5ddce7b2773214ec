"""Wires by libzmq itself, as whoever knows ZeroMQ makes them: of a virtual switch, and of the floors."""

from __future__ import annotations

import os
from typing import Any

import zmq

from viommu_actors.wire.codec import MAX_FRAME
from viommu_actors.wire.sockets import Listener

#: pyzmq's own send. What `zmq.Socket` adds to it are arguments that no wire has, and half of its time.
send_frame = zmq.backend.Socket.send
#: Messages that wait in a socket before its sender is told to try again.
HIGH_WATER_MARK = 64


def make_context() -> zmq.Context[zmq.Socket[bytes]]:
    """The context of this process, with one I/O thread."""
    return zmq.Context(1)


def _socket(context: zmq.Context[Any], kind: int) -> zmq.Socket[bytes]:
    made: zmq.Socket[bytes] = context.socket(kind)
    made.setsockopt(zmq.LINGER, 0)
    made.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    made.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    # This bounds a frame, the marks above bound messages; how many frames a message has, libzmq does not bound.
    made.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
    made.setsockopt(zmq.HANDSHAKE_IVL, 5000)
    return made


def _listen(made: zmq.Socket[bytes], listener: Listener) -> zmq.Socket[bytes]:
    made.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
    made.setsockopt(zmq.USE_FD, listener.fd)
    made.bind(listener.address)
    return made


def bind_link(context: zmq.Context[Any], listener: Listener) -> zmq.Socket[bytes]:
    """The listening end of a wire with one peer."""
    return _listen(_socket(context, zmq.DEALER), listener)


def bind_router(context: zmq.Context[Any], listener: Listener) -> zmq.Socket[bytes]:
    """The serving end of a wire, as `inbox.Inbox` has it."""
    made = _socket(context, zmq.ROUTER)
    made.setsockopt(zmq.ROUTER_MANDATORY, 1)
    return _listen(made, listener)


def connect(context: zmq.Context[Any], address: str, name: str = "") -> zmq.Socket[bytes]:
    """The connecting end of a wire; `name` is what an inbox knows it by, if any."""
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
