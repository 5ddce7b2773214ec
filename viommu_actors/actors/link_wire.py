"""The host's end of one link."""

from __future__ import annotations

import select
import time

from viommu_actors.actors.peer_wire import PeerWire, is_told
from viommu_actors.actors.runtime import log
from viommu_actors.pci.link import Link
from viommu_actors.wire.codec import MalformedMessage
from viommu_actors.wire.link import LINK_DOWN, LINK_FRAME, LINK_UP
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.zmtp import PeerLost


class LinkWire(PeerWire):
    """Messages of one link; the device at the other end is not trusted."""

    def __init__(self, link: Link, address: str, tally: Tally, poller: select.epoll) -> None:
        super().__init__(link.name, address, LINK_DOWN, LINK_UP, LINK_FRAME, tally, poller)
        self._link = link
        self._timeouts = 0

    def train(self, deadline: float) -> bool:
        """Waits until the other end is there; one that is not by `deadline` (monotonic seconds) is left alone."""
        peer = self._peer
        try:
            while peer is not None and not peer.shake_hands():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise PeerLost("nobody shook hands")
                select.select([peer], [], [], left)
        except PeerLost as error:
            self._lost(error)
        return self.open

    def timed_out(self) -> None:
        """The device let a request wait for too long."""
        self._timeouts += 1
        if is_told(self._timeouts):
            log(f"{self.name}: completion timeout, number {self._timeouts}")

    def _reject(self, error: MalformedMessage) -> None:
        self._link.reject(error.defect)
        super()._reject(error)
