"""The vhost wires of a hypervisor: each emulated network card with the virtual switch that serves it."""

from __future__ import annotations

import math
import select
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from viommu_actors.actors.peer_wire import PeerWire
from viommu_actors.hypervisor.virtio.front_end import FrontEnd
from viommu_actors.spec import vhost
from viommu_actors.wire.codec import Message
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.vhost import VHOST_DOWN, VHOST_FRAME, VHOST_UP
from viommu_actors.wire.zmtp import PeerLost

#: Messages of one back end that are served before others have their turn.
_DRAIN = 64
#: Seconds in which a back end is to answer what the guest's CPU waits for: all of it, until the inbox has its turn.
PATIENCE = 1.0
#: Seconds until a back end that was cut off is given another connection, at first and at most.
BACK_OFF = 1.0
_LONGEST: Final = 64.0


class VhostWire(PeerWire):
    """One connection to a back end, `front_end.BackEnd`; the front end hears of it once the other end is there."""

    def __init__(
        self,
        name: str,
        address: str,
        tally: Tally,
        poller: select.epoll,
        front_end: FrontEnd,
        wait: Callable[[Callable[[], bool]], None],
        cut_off: Callable[[], None],
    ) -> None:
        """`cut_off` hears that the front end wants no more of it."""
        super().__init__(name, address, VHOST_DOWN, VHOST_UP, VHOST_FRAME, tally, poller)
        self.wait = wait
        self._front_end = front_end
        self._tell_cut_off = cut_off
        #: The front end knows it; the back end has begun to speak.
        self._known = False
        self._begun = False

    def send(self, message: Message) -> bool:
        """False where the back end takes no more. To one that is gone everything may be said."""
        sent = super().send(message)
        if not sent and (self._peer is None or self._peer.gone):
            self._lost(PeerLost("the other end has closed"))
            return True
        return sent

    def cut_off(self) -> None:
        """See `front_end.BackEnd`."""
        self.close()
        self._tell_cut_off()

    def drain(self) -> None:
        """Serves what has come, up to a limit."""
        self.gather()
        self._front_end.gather()
        try:
            for _ in range(_DRAIN):
                message = self.receive()
                if not self._known and self.up:
                    self._introduce()
                if message is not None:
                    if not self._begun and type(message) is vhost.Features:
                        self._begin()
                    self._front_end.receive(message)
        except BlockingIOError:
            if not self._known and self.up:
                self._introduce()
        self._front_end.flush()
        self.flush()
        if not self.waits:
            self._front_end.room()

    def _lost(self, error: PeerLost) -> None:
        super()._lost(error)
        if self._known:
            self._known = False
            self._front_end.lost()

    def _begin(self) -> None:
        """Both ends count from here on: the back end heard of the connection, and drops what was before it."""
        self._begun = True
        self.tally.start_over()
        self.tally.sent[vhost.GetFeatures] += 1
        self.tally.received[vhost.Features] += 1

    def _introduce(self) -> None:
        self._known = True
        self._front_end.connected(self)


class VhostWires:
    """All of them, and the inbox beside them, of which it is told here that there is something in it.

    A back end that was cut off is given another connection, the first after a second, each further one after twice as
    long. Where nobody listens any more its process is gone, and whoever starts it anew tells where.
    """

    def __init__(self, inbox: int, tallies: Mapping[str, Tally]) -> None:
        """`inbox` is the descriptor of its poller; `tallies` by the name of the card."""
        self._inbox = inbox
        self._tallies = tallies
        self._poller = select.epoll()
        self._poller.register(inbox, select.EPOLLIN)
        self._wires: dict[str, VhostWire] = {}
        #: of each card: where its back end listens, and the front end; how often it was cut off; when to connect again
        self._places: dict[str, tuple[str, FrontEnd]] = {}
        self._cut_off: Counter[str] = Counter()
        self._due: dict[str, float] = {}
        #: how long each card's back end was waited for since the inbox was looked at, in seconds
        self._waited: dict[str, float] = {}

    def connect(self, name: str, address: str, front_end: FrontEnd) -> None:
        """The card's back end listens at an address, instead of where it did."""
        before = self._wires.pop(name, None)
        if before is not None:
            before.close()
            front_end.lost()
            self._tallies[name].start_over()
        self._places[name] = address, front_end
        self._cut_off[name] = 0
        self._connect(name)

    def _connect(self, name: str) -> None:
        self._due.pop(name, None)
        address, front_end = self._places[name]
        self._wires[name] = VhostWire(
            f"vhost:{name}",
            address,
            self._tallies[name],
            self._poller,
            front_end,
            partial(self._wait, name),
            partial(self._connect_later, name),
        )

    def _connect_later(self, name: str) -> None:
        seconds = min(BACK_OFF * 2 ** self._cut_off[name], _LONGEST)
        self._cut_off[name] += 1
        self._due[name] = time.monotonic() + seconds

    def _connect_again(self) -> float:
        """Those whose time has come; seconds until the next one's."""
        now = time.monotonic()
        for name in [name for name, due in self._due.items() if due <= now]:
            self._connect(name)
        return min(self._due.values(), default=math.inf) - now

    def serve(self, seconds: float | None) -> None:
        """Waits for messages, for so long at most, and serves those of back ends."""
        self._waited.clear()
        if self._due and (left := self._connect_again()) < math.inf:
            seconds = max(0.0, left if seconds is None else min(seconds, left))
        self._drain(self._poller.poll(0 if self._behind() else seconds))

    def _wait(self, name: str, until: Callable[[], bool]) -> None:
        """See `front_end.BackEnd`; what is in the inbox waits as long as the guest's CPU does."""
        start = time.monotonic()
        waited = self._waited.get(name, 0.0)
        deadline = start + PATIENCE - waited
        self._poller.unregister(self._inbox)
        try:
            while not until() and (left := deadline - time.monotonic()) > 0:
                self._drain(self._poller.poll(0 if self._behind() else left))
        finally:
            self._poller.register(self._inbox, select.EPOLLIN)
            self._waited[name] = waited + time.monotonic() - start

    def _behind(self) -> bool:
        return any(wire.behind for wire in self._wires.values())

    def _drain(self, events: list[tuple[int, int]]) -> None:
        ready = {fd for fd, _ in events}
        for wire in self._wires.values():
            if wire.open and (wire.fd in ready or wire.behind):
                wire.drain()
