"""The root complex on its wires: a socket for each link, completion timeouts, and the evidence log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import zmq

from viommu_actors.actors.attack_watch import AttackWatch
from viommu_actors.actors.runtime import log
from viommu_actors.memory import PhysicalMemory
from viommu_actors.pci.link import Link, Outcome
from viommu_actors.pci.root_complex import RootComplex
from viommu_actors.pci.root_port import PortConfig
from viommu_actors.pci.upstream import Interrupt
from viommu_actors.spec import platform
from viommu_actors.vtd.unit import RemappingUnit
from viommu_actors.wire.codec import MalformedMessage, Message
from viommu_actors.wire.messages import LINK_DOWN, LINK_UP
from viommu_actors.wire.sockets import connect_link, offer, receive_frame
from viommu_actors.wire.tally import Tally

_ECAM_SIZE = platform.ECAM_BUSES << 20
#: PCIe section 2.8 allows up to 64 s; a device process on a busy machine may need a while.
COMPLETION_TIMEOUT = 1.0
LINK_TIMEOUT = 5.0
_MALFORMED_LOGGED = 10


class Fabric:
    """Root complex and links of the host."""

    def __init__(
        self,
        context: zmq.Context[Any],
        memory: PhysicalMemory,
        unit: RemappingUnit,
        msi: Interrupt,
        links: list[dict[str, Any]],
    ) -> None:
        ports = [PortConfig(link["slot"]) for link in links]
        self._complex = RootComplex(memory, unit.translate, msi, ports)
        self._links: dict[zmq.Socket[bytes], str] = {}
        self._tallies: dict[str, Tally] = {}
        self._unplugged: set[str] = set()
        #: (link, tag) -> when it times out; only while something is outstanding
        self._deadlines: dict[tuple[str, int], float] = {}
        for link in links:
            socket = connect_link(context, link["address"])
            self._links[socket] = link["name"]
            self._tallies[link["name"]] = Tally(f"link:{link['device']}", "host")

    @property
    def ports(self) -> Mapping[str, Link]:
        """What each link ends at, by its name."""
        return self._complex.ports

    @property
    def tallies(self) -> list[Tally]:
        """One for each link."""
        return list(self._tallies.values())

    def sockets(self) -> list[zmq.Socket[bytes]]:
        """To be polled."""
        return list(self._links)

    def train(self) -> None:
        """Waits until the links are up, as firmware does before it looks for devices."""
        deadline = time.monotonic() + LINK_TIMEOUT
        for socket, link in self._links.items():
            if socket.poll(max(0, int((deadline - time.monotonic()) * 1000)), zmq.POLLOUT):
                self._complex.attach(link, _sender(socket, self._tallies[link]))
            else:
                log(f"{link}: link down")

    def unplug(self, device: str | None = None) -> None:
        """Takes a device off its link, or all: nothing it sends is taken any more."""
        for link, tally in self._tallies.items():
            if device is None or tally.wire == f"link:{device}":
                self._complex.detach(link)
                self._unplugged.add(link)

    def drain(self, socket: Any, limit: int, after_each: Callable[[], object] | None) -> None:
        """Takes up to `limit` messages of a link; `after_each` runs between them."""
        link = self._links[socket]
        tally = self._tallies[link]
        receive, decode = self._complex.receive, LINK_UP.decode
        for _ in range(limit):
            try:
                frame = receive_frame(socket, zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                if frame is None:
                    raise MalformedMessage("several frames")
                message = decode(frame)
            except MalformedMessage as error:
                self._malformed(link, tally, error)
                continue
            tally.received[type(message)] += 1
            if link in self._unplugged:
                continue
            receive(link, message)
            if after_each is not None:
                after_each()

    def read(self, address: int, size: int, done: Callable[[int], None]) -> None:
        """CPU read of configuration space or a BAR."""
        offset = address - platform.ECAM_BASE
        if 0 <= offset < _ECAM_SIZE:
            self._complex.config_read(offset >> 12, offset & 0xFFF, size, done)
        else:
            self._complex.mmio_read(address, size, done)

    def write(self, address: int, size: int, value: int, done: Callable[[], None]) -> None:
        """CPU write; a configuration write is done when the device says so, a memory write at once."""
        offset = address - platform.ECAM_BASE
        if 0 <= offset < _ECAM_SIZE:
            self._complex.config_write(offset >> 12, offset & 0xFFF, size, value, done)
        else:
            self.post(address, size, value)
            done()

    def post(self, address: int, size: int, value: int) -> None:
        """Posted write to a BAR."""
        self._complex.mmio_write(address, size, value)

    def expire(self, now: float) -> int:
        """Ends what a device owes for too long; milliseconds until the next that may, -1 for never."""
        outstanding = self._complex.outstanding
        if not outstanding:
            self._deadlines.clear()
            return -1
        waiting = {key: self._deadlines.get(key, now + COMPLETION_TIMEOUT) for key in outstanding}
        for (link, tag), deadline in waiting.items():
            if deadline <= now:
                log(f"completion timeout at {link}")
                self._complex.expire(link, tag)
        self._deadlines = {key: deadline for key, deadline in waiting.items() if deadline > now}
        return int((min(self._deadlines.values(), default=now) - now) * 1000) + 1

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """Control commands."""
        return AttackWatch(self._complex).handlers() | {"unplug": self.unplug}

    def _malformed(self, link: str, tally: Tally, error: MalformedMessage) -> None:
        tally.malformed += 1
        self._complex.ports[link].record("message", 0, 0, 0, Outcome.MALFORMED)
        if tally.malformed <= _MALFORMED_LOGGED:
            log(f"{link}: dropped a message: {error}")


def _sender(socket: zmq.Socket[bytes], tally: Tally) -> Callable[[Message], bool]:
    return lambda message: offer(socket, message, LINK_DOWN.encode, tally)
