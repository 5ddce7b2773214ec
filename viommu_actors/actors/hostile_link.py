"""A device's link in hostile hands: what no honest device puts on it, counted as its other end should count it."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from itertools import islice
from typing import Any

import zmq

from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.spec.tlp import AddressType, MemRead
from viommu_actors.wire.codec import Defect, MalformedMessage
from viommu_actors.wire.fuzz import hostile
from viommu_actors.wire.link import LINK_FRAME, LINK_UP
from viommu_actors.wire.tally import Tally


class HostileLink:
    """The link of an endpoint; `take` is given a frame that comes in meanwhile."""

    def __init__(
        self, endpoint: Endpoint, link: zmq.Socket[bytes], tally: Tally, take: Callable[[bytes], None]
    ) -> None:
        self._endpoint = endpoint
        self._link = link
        self._tally = tally
        self._take = take
        self._descriptor: int | None = None

    def send(self, *frames: bytes) -> bool:
        """One message of these frames; False on a link that is down."""
        try:
            for frame in frames[:-1]:
                self._link.send(frame, zmq.SNDMORE)
            self._link.send(frames[-1])
        except zmq.Again:
            return False
        self._count(frames)
        return True

    def fuzz(self, seed: int, count: int) -> None:
        """So many messages of `wire.fuzz`, as fast as the link takes them, and nothing is read meanwhile."""
        for frames in islice(hostile(seed, LINK_UP, LINK_FRAME), count):
            if not self.send(*frames):
                return

    def write(self, data: bytes, times: int) -> None:
        """Bytes of the stream itself, beneath ZeroMQ; ends early where the other end has closed."""
        descriptor = self._connection()
        for _ in range(times):
            left = memoryview(data)
            while left:
                try:
                    left = left[os.write(descriptor, left) :]
                except BlockingIOError:
                    select.select([], [descriptor], [])
                except OSError:
                    return

    def _connection(self) -> int:
        """ZeroMQ's own descriptor, which a message that came over it tells."""
        if self._descriptor is None:
            # Whatever becomes of a read, it is answered to who asked.
            self._endpoint.send(MemRead(self._endpoint.requester, 0, AddressType.UNTRANSLATED, 0, 1, 0, 0))
            answer: Any = self._link.recv(copy=False)
            self._descriptor = int(answer.get(zmq.SRCFD))
            self._take(answer.bytes)
        return self._descriptor

    def _count(self, frames: tuple[bytes, ...]) -> None:
        try:
            if len(frames) > 1:
                raise MalformedMessage(Defect.FRAMES, "")
            if len(frames[0]) > LINK_FRAME:
                raise MalformedMessage(Defect.OVERSIZE, "")
            self._tally.sent[type(LINK_UP.decode(frames[0]))] += 1
        except MalformedMessage as error:
            self._tally.hostile[error.defect] += 1
