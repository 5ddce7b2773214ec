"""One-way messages of a kernel to a guest or a user process: never block, and coalesce."""

from __future__ import annotations

import select
from collections.abc import Collection
from contextlib import suppress

from viommu_actors.wire.codec import Codec, Message
from viommu_actors.wire.polled import PolledChannel
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.zmtp import PeerLost

#: Descriptors that one poll tells of; the others are there at the next. By default there is room for thousands.
_EVENTS = 64


class Outlet:
    """A message that finds no room waits for the next `flush`, once: an interrupt twice pending is one."""

    def __init__(self, sender: str, address: str, codec: Codec, tally: Tally) -> None:
        """To the inbox at `address`, from the kernel of the actor `sender`."""
        self._waiting: dict[Message, None] = {}
        #: whether something waits for room, or for the receiver to be up
        self.waits = False
        self._channel: PolledChannel | None = None
        with suppress(PeerLost):  # the receiver has died, of which this kernel will be told
            self._channel = PolledChannel(sender, address, codec, codec, tally)

    def post(self, message: Message) -> None:
        """Sends now or later."""
        channel = self._channel
        if channel is None:
            return
        if self._waiting or not channel.offer(message):
            self._waiting[message] = None
        self._settle(channel)

    @property
    def fd(self) -> int:
        """To be polled for `events` while something waits."""
        assert self._channel is not None, "nothing waits"
        return self._channel.socket

    @property
    def events(self) -> int:
        return select.EPOLLOUT if self._channel is not None and self._channel.up else select.EPOLLIN

    def flush(self) -> None:
        """Sends what waits, in order, as far as there is room."""
        channel = self._channel
        if channel is None:
            return
        channel.flush()
        while self._waiting:
            message = next(iter(self._waiting))
            if not channel.offer(message):
                break
            del self._waiting[message]
        self._settle(channel)

    def close(self) -> None:
        """The receiver is gone: nothing waits for it any more."""
        self._waiting.clear()
        self.waits = False
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _settle(self, channel: PolledChannel) -> None:
        """After something was to be sent."""
        self.waits = bool(self._waiting) or channel.wants_room
        if channel.lost is not None:
            self.close()


def poll_with(poller: select.epoll, seconds: float | None, outlets: Collection[Outlet]) -> list[tuple[int, int]]:
    """Polls for so long, and for room for what waits in an outlet; (descriptor, events) of the poller's own."""
    waiting = [outlet for outlet in outlets if outlet.waits]
    if not waiting:
        return poller.poll(seconds, _EVENTS)
    for outlet in waiting:
        poller.register(outlet.fd, outlet.events)
    fds = [outlet.fd for outlet in waiting]
    ready = [event for event in poller.poll(seconds, _EVENTS) if event[0] not in fds]
    for fd, outlet in zip(fds, waiting, strict=True):
        poller.unregister(fd)
        outlet.flush()
    return ready
