"""Frames between the port that they came in at and those that they go out of."""

from __future__ import annotations

from viommu_actors.vswitch.task import Wait


class Delivery(Wait):
    """What becomes of the frames of a burst: over once each was delivered, or dropped, at each port that it is for."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        super().__init__()
        #: Frames that are neither yet, and one while the burst is being forwarded.
        self._open = 1

    def add(self) -> None:
        """A frame of the burst waits at a port."""
        self._open += 1

    def settle(self) -> None:
        """One thing less to wait for."""
        self._open -= 1
        if not self._open:
            self.finish()


class Parcel:
    """A frame that waits at a port since some time (seconds), and whom its fate is told."""

    __slots__ = ("delivery", "frame", "since")

    def __init__(self, frame: bytes, delivery: Delivery, since: float) -> None:
        self.frame = frame
        self.delivery = delivery
        self.since = since
