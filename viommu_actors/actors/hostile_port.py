"""A port of a virtual switch in hostile hands: what no honest one puts on its wire, counted as its other end should."""

from __future__ import annotations

from itertools import islice

import zmq

from viommu_actors.actors.port_wire import PortWire
from viommu_actors.wire.codec import Defect, MalformedMessage
from viommu_actors.wire.fuzz import hostile
from viommu_actors.wire.vhost import VHOST_FRAME, VHOST_UP

#: Milliseconds after which a front end that takes nothing is given up.
_PATIENCE_MS = 2000


class HostilePort:
    """`vswitch.rogue.BareWire` of a port's wire."""

    def __init__(self, wire: PortWire) -> None:
        self._wire = wire

    def send(self, *frames: bytes) -> bool:
        """One message of these frames, behind whatever waits; False on a wire that is down."""
        socket, wire = self._wire.socket, self._wire
        while wire.waits:
            if not socket.poll(_PATIENCE_MS, zmq.POLLOUT):
                return False
            wire.flush()
        if not socket.poll(_PATIENCE_MS, zmq.POLLOUT):
            return False
        try:
            socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._count(frames)
        return True

    def fuzz(self, seed: int, count: int) -> None:
        """So many messages of `wire.fuzz`, as fast as the wire takes them, and nothing is read meanwhile."""
        for frames in islice(hostile(seed, VHOST_UP, VHOST_FRAME), count):
            if not self.send(*frames):
                return

    def _count(self, frames: tuple[bytes, ...]) -> None:
        tally = self._wire.tally
        try:
            if len(frames) > 1:
                raise MalformedMessage(Defect.FRAMES, "")
            if len(frames[0]) > VHOST_FRAME:
                raise MalformedMessage(Defect.OVERSIZE, "")
            tally.sent[type(VHOST_UP.decode(frames[0]))] += 1
        except MalformedMessage as error:
            tally.hostile[error.defect] += 1
