"""The root complex on its wires: the links, completion timeouts, and the evidence log."""

from __future__ import annotations

import math
import select
import time
from collections.abc import Callable, Mapping, Sized
from typing import Any

from viommu_actors.actors.attack_watch import AttackWatch
from viommu_actors.actors.deadlines import Deadlines
from viommu_actors.actors.link_wire import LinkWire
from viommu_actors.memory import PhysicalMemory
from viommu_actors.pci.component import BridgeConfig, SwitchConfig
from viommu_actors.pci.link import Link
from viommu_actors.pci.root_complex import RootComplex
from viommu_actors.pci.root_port import PortConfig
from viommu_actors.pci.upstream import Interrupt
from viommu_actors.spec import platform
from viommu_actors.vtd.unit import RemappingUnit
from viommu_actors.wire.tally import Tally

_ECAM_SIZE = platform.ECAM_BUSES << 20
#: PCIe section 2.8 allows up to 64 s; a device process on a busy machine may need a while.
COMPLETION_TIMEOUT = 1.0
LINK_TIMEOUT = 5.0
#: PCIe section 10.3.1 gives devices a minute; who unmaps waits for it.
INVALIDATION_TIMEOUT = 1.0
#: All else stands still meanwhile; whoever is to answer is up already.
RELINK_TIMEOUT = 1.0


class Fabric:
    """Root complex and links of the host; `poller` polls the links."""

    def __init__(
        self,
        poller: select.epoll,
        memory: PhysicalMemory,
        unit: RemappingUnit,
        msi: Interrupt,
        ports: list[dict[str, Any]],
        links: list[dict[str, Any]],
        line: Callable[[int, bool], None],
    ) -> None:
        configs = [PortConfig(port["slot"], port["acs"], below=_component(port["below"])) for port in ports]
        self._unit = unit
        ats = unit.translation_agent if unit.config.device_iotlb else None
        self._complex = RootComplex(memory, unit.translate, msi, configs, ats, line)
        self._poller = poller
        #: by the link's name
        self._wires: dict[str, LinkWire] = {}
        #: names by what the poller returns
        self._polled: dict[int, str] = {}
        self._unplugged: set[str] = set()
        #: what the poller would return for links of which more was read than was taken
        self.behind: set[int] = set()
        #: the link whose messages are being taken
        self._gathering: LinkWire | None = None
        self._completions: Deadlines[tuple[str, int]] = Deadlines(COMPLETION_TIMEOUT)
        self._invalidations: Deadlines[int] = Deadlines(INVALIDATION_TIMEOUT)
        #: what is owed by each device, and was at the last look: looked at for each wake, and hardly ever there
        self._owed: list[Sized] = [link.outstanding for link in self.ports.values()]
        self._owed += [self._completions.ends, self._invalidations.ends]
        for each in links:
            name = each["name"]
            tally = Tally(f"link:{each['device']}", "host")
            wire = LinkWire(self._complex.ports[name], each["address"], tally, poller)
            self._wires[name] = wire
            if wire.open:
                self._polled[wire.fd] = name

    @property
    def ports(self) -> Mapping[str, Link]:
        """What each link ends at, by its name."""
        return self._complex.ports

    @property
    def tallies(self) -> list[Tally]:
        """One for each link."""
        return [wire.tally for wire in self._wires.values()]

    def tally(self, link: str) -> Tally:
        """That of one link."""
        return self._wires[link].tally

    def train(self) -> None:
        """Waits until the links are up, as firmware does before it looks for devices."""
        deadline = time.monotonic() + LINK_TIMEOUT
        for fd, name in list(self._polled.items()):
            wire = self._wires[name]
            if wire.train(deadline):
                self._open(name, wire)
                self._complex.attach(name, wire.send)
            else:  # the number of its descriptor is another's next
                del self._polled[fd]

    def relink(self, link: str, address: str) -> None:
        """Another process, which listens at `address`, answers for the device of the link. Nothing goes down.

        What the one before has sent and nobody has taken yet is lost with it, and its counts are. Raises TimeoutError.
        """
        tally = self._wires[link].tally
        wire = self._trained(link, address, tally)
        self._close(link)
        tally.start_over()
        self._open(link, wire)
        self._complex.take_over(link, wire.send)

    def plug(self, link: str, device: str, address: str) -> None:
        """A device process, which listens at `address`, is plugged into an empty slot. Raises TimeoutError."""
        wire = self._trained(link, address, Tally(f"link:{device}", "host"))
        self._open(link, wire)
        self._complex.attach(link, wire.send)

    def pull(self, link: str) -> None:
        """The device is pulled out of its slot, which is empty from here on."""
        self._close(link)
        self._wires.pop(link, None)
        self._complex.detach(link)

    def _trained(self, link: str, address: str, tally: Tally) -> LinkWire:
        wire = LinkWire(self._complex.ports[link], address, tally, self._poller)
        if not wire.train(time.monotonic() + RELINK_TIMEOUT):
            raise TimeoutError(f"{link}: nobody answers at the other end")
        return wire

    def _open(self, link: str, wire: LinkWire) -> None:
        """From here on its messages are taken, those too that came with the other end's part of the handshake."""
        self._wires[link] = wire
        self._polled[wire.fd] = link
        if wire.behind:
            self.behind.add(wire.fd)
        self._unplugged.discard(link)

    def _close(self, link: str) -> None:
        wire = self._wires.get(link)
        if wire is not None and wire.open:
            del self._polled[wire.fd]
            self.behind.discard(wire.fd)
            wire.close()

    def unplug(self, device: str | None = None) -> None:
        """Takes a device off its link, or all: nothing it sends is taken any more."""
        for name, wire in self._wires.items():
            if device is None or wire.tally.wire == f"link:{device}":
                self._take_off(name)

    def polls(self, fd: int) -> bool:
        """Whether what the poller returned is a link."""
        return fd in self._polled

    def drain(self, fd: int, limit: int, after_each: Callable[[], object] | None) -> None:
        """Takes up to `limit` messages of a link; `after_each` runs between them. What it is sent goes out together."""
        name = self._polled.get(fd)
        if name is None:  # it went down meanwhile
            return
        wire = self._gathering = self._wires[name]
        wire.gather()
        receive, take = self._complex.receive, wire.receive
        self.behind.discard(fd)
        for _ in range(limit):
            try:
                message = take()
            except BlockingIOError:
                break
            if message is not None and name not in self._unplugged:
                receive(name, message)
                if after_each is not None:
                    after_each()
            if not wire.behind:
                break
        self._gathering = None
        wire.flush()
        if wire.behind:
            self.behind.add(fd)
        elif not wire.open:
            self._polled.pop(fd, None)
            self._take_off(name)

    def read(self, address: int, size: int, done: Callable[[int], None]) -> None:
        """CPU read of configuration space or a BAR."""
        offset = address - platform.ECAM_BASE
        if 0 <= offset < _ECAM_SIZE:
            self._complex.config_read(offset >> 12, offset & 0xFFF, size, done)
        else:
            self._complex.mmio_read(address, size, done)
        self._send_now()

    def write(self, address: int, size: int, value: int, done: Callable[[], None]) -> None:
        """CPU write; a configuration write is done when the device says so, a memory write at once."""
        offset = address - platform.ECAM_BASE
        if 0 <= offset < _ECAM_SIZE:
            self._complex.config_write(offset >> 12, offset & 0xFFF, size, value, done)
            self._send_now()
        else:
            self.post(address, size, value)
            done()

    def post(self, address: int, size: int, value: int) -> None:
        """Posted write to a BAR."""
        self._complex.mmio_write(address, size, value)

    def invalidate_device(self, source: int, itag: int, first: int, shift: int) -> None:
        """Asks a device to forget translations, as `RootComplex` does."""
        self._complex.invalidate_device(source, itag, first, shift)
        self._send_now()

    @property
    def awaits_devices(self) -> bool:
        """Whether one owes anything, or did when `expire` was called last."""
        return any(self._owed) or self._unit.awaits_devices

    def due(self, now: float) -> float:
        """Seconds until the first of what devices owe is over, 0 if it is; without end where they owe nothing."""
        unit = self._unit
        invalidations = unit.device_invalidations if unit.awaits_devices else ()
        ends = [self._completions.watch(self._complex.outstanding, now), self._invalidations.watch(invalidations, now)]
        return max(0.0, min((end for end in ends if end is not None), default=math.inf) - now)

    def expire(self, now: float) -> None:
        """Ends what devices owe, and was over at `now`. What has arrived by then is to be taken before."""
        unit = self._unit
        for link, tag in self._completions.expired(self._complex.outstanding, now):
            self._wires[link].timed_out()
            self._complex.expire(link, tag)
        for number in self._invalidations.expired(unit.device_invalidations if unit.awaits_devices else (), now):
            unit.expire_device_invalidation(number)

    def _send_now(self) -> None:
        """Holds back nothing that the kernel waits for, which runs between two messages of a link."""
        if self._gathering is not None:
            self._gathering.flush()
            self._gathering = None

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """Control commands."""
        return AttackWatch(self._complex).handlers() | {"unplug": self.unplug, "relink": self.relink}

    def _take_off(self, name: str) -> None:
        self._complex.detach(name)
        self._unplugged.add(name)


def _component(below: dict[str, Any] | None) -> SwitchConfig | BridgeConfig | None:
    if below is None:
        return None
    if below["kind"] == "switch":
        return SwitchConfig(below["name"], below["devices"], below["acs"])
    return BridgeConfig(below["name"], below["devices"])
