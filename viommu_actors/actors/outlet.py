"""One-way messages of a kernel to a guest or a user process: never block, and coalesce."""

from __future__ import annotations

from typing import Any

import zmq

from viommu_actors.wire.codec import Codec, Message
from viommu_actors.wire.sockets import Channel
from viommu_actors.wire.tally import Tally


class Outlet:
    """A message that finds no room waits for the next `flush`, once: an interrupt twice pending is one."""

    def __init__(self, context: zmq.Context[Any], address: str, codec: Codec, tally: Tally) -> None:
        self._channel = Channel(context, "host", address, codec, codec, tally)
        self._waiting: dict[Message, None] = {}
        self._open = True

    def post(self, message: Message) -> None:
        """Sends now or later."""
        if not self._waiting and self._open and self._channel.offer(message):
            return
        if self._open:
            self._waiting[message] = None

    def flush(self) -> None:
        """Sends what waits, in order, as far as there is room."""
        while self._waiting:
            message = next(iter(self._waiting))
            if not self._channel.offer(message):
                return
            del self._waiting[message]

    def close(self) -> None:
        """The receiver is gone: nothing waits for it any more."""
        self._open = False
        self._waiting.clear()
