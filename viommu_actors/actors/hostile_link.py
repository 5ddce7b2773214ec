"""A device's link in hostile hands: what no honest device puts on it, counted as its other end should count it."""

from __future__ import annotations

from itertools import islice

from viommu_actors.wire.codec import Defect, MalformedMessage
from viommu_actors.wire.fuzz import hostile
from viommu_actors.wire.link import LINK_FRAME, LINK_UP
from viommu_actors.wire.link_end import LinkEnd
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.zmtp import framed, framed_with_more


class HostileLink:
    """The link of an endpoint."""

    def __init__(self, link: LinkEnd, tally: Tally) -> None:
        self._link = link
        self._tally = tally

    def send(self, *frames: bytes) -> bool:
        """One message of these frames; False on a link that is down."""
        if not self._link.write(b"".join(map(framed_with_more, frames[:-1])) + framed(frames[-1])):
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
        for _ in range(times):
            if not self._link.write(data):
                return

    def _count(self, frames: tuple[bytes, ...]) -> None:
        try:
            if len(frames) > 1:
                raise MalformedMessage(Defect.FRAMES, "")
            if len(frames[0]) > LINK_FRAME:
                raise MalformedMessage(Defect.OVERSIZE, "")
            self._tally.sent[type(LINK_UP.decode(frames[0]))] += 1
        except MalformedMessage as error:
            self._tally.hostile[error.defect] += 1
