"""One-way messages of a kernel to a guest or a user process: never block, and coalesce."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import zmq

from viommu_actors.wire.codec import Codec, Message
from viommu_actors.wire.sockets import Channel
from viommu_actors.wire.tally import Tally


class Outlet:
    """A message that finds no room waits for the next `flush`, once: an interrupt twice pending is one."""

    def __init__(self, context: zmq.Context[Any], sender: str, address: str, codec: Codec, tally: Tally) -> None:
        """To the inbox at `address`, from the kernel of the actor `sender`."""
        self._channel = Channel(context, sender, address, codec, codec, tally)
        self._waiting: dict[Message, None] = {}
        self._open = True

    def post(self, message: Message) -> None:
        """Sends now or later."""
        if not self._waiting and self._open and self._channel.offer(message):
            return
        if self._open:
            self._waiting[message] = None

    @property
    def waits(self) -> bool:
        """Whether a message waits for room."""
        return bool(self._waiting)

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """To be polled for room while a message waits."""
        return self._channel.socket

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


def poll_with(poller: zmq.Poller, timeout: int, outlets: Collection[Outlet]) -> list[Any]:
    """Polls for `timeout` milliseconds, and for room for what waits in an outlet; returns the poller's own sockets."""
    waiting = [outlet for outlet in outlets if outlet.waits]
    if not waiting:
        return [source for source, _ in poller.poll(timeout)]
    for outlet in waiting:
        poller.register(outlet.socket, zmq.POLLOUT)
    sockets = [outlet.socket for outlet in waiting]
    ready = [source for source, _ in poller.poll(timeout) if source not in sockets]
    for outlet in waiting:
        poller.unregister(outlet.socket)
        outlet.flush()
    return ready
