"""The run's control socket: how other commands reach a topology that is up.

A request is one JSON object {"command": name}; the answer is one JSON object.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from typing import Any

import zmq

_MAX_REQUEST = 1 << 16


class Door:
    """A ROUTER at an unguessable abstract name, for processes of the same user."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.address = f"ipc://@viommu-{secrets.token_hex(16)}"
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 200)
        self.socket.setsockopt(zmq.MAXMSGSIZE, _MAX_REQUEST)
        self.socket.setsockopt(zmq.RCVHWM, 16)
        self.socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
        self.socket.bind(self.address)

    def serve(self, status: Callable[[], dict[str, Any]], stop: Callable[[], None]) -> None:
        """Answers what has come."""
        while True:
            try:
                peer, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.socket.send_multipart([peer, json.dumps(_answer(frames[-1], status, stop)).encode()], zmq.NOBLOCK)

    def close(self) -> None:
        self.socket.close()


def _answer(request: bytes, status: Callable[[], dict[str, Any]], stop: Callable[[], None]) -> dict[str, Any]:
    try:
        command = json.loads(request)["command"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"error": 'a request is a JSON object like {"command": "status"}'}
    if command == "status":
        return status()
    if command == "stop":
        stop()
        return {"stopping": True}
    return {"error": f"no command {command!r:.80}; there are status and stop"}
