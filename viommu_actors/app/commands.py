"""What an application is told to do by its control channel: to start, to forward packets, to be buggy.

BDFs are texts like `00:03.0`, as in the commands of kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from errno import EALREADY, EINVAL, ENOTCONN, ENOTSUP
from typing import Any

from viommu_actors.app.application import Application
from viommu_actors.app.buggy import stray_read, stray_write
from viommu_actors.app.interrupt_mode import InterruptMode
from viommu_actors.app.mempool import Zone
from viommu_actors.app.pci import UserDriver
from viommu_actors.app.pmd_nic import NicPort
from viommu_actors.app.poll_mode import PollMode
from viommu_actors.app.port import Port
from viommu_actors.app.relay import Relay, Relayed
from viommu_actors.app.system import System
from viommu_actors.app.testpmd import Forwarded, Forwarding
from viommu_actors.netdev import NetCommands

_PAGE = 4096
_SECRET = 64
_NOT_STARTED = "the application has not started"


class AppCommands:
    """One application; `random(n)` gives n unguessable bytes."""

    def __init__(self, system: System, log: Callable[[str], None], random: Callable[[int], bytes]) -> None:
        self._system = system
        self._log = log
        self._random = random
        self._application: Application | None = None
        self._control: Zone | None = None
        self._secret = b""
        self._netdevs: dict[str, PollMode] = {}

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """By command name."""
        return NetCommands(self._netdev, self._system.clock).handlers() | {
            "start": self.start,
            "io": self.io,
            "forward": self.forward,
            "relay": self.relay,
            "statistics": self.statistics,
            "offer_control": self.offer_control,
            "check_control": self.check_control,
            "end_control": self.end_control,
            "attack": self.attack,
        }

    @property
    def wakes(self) -> int:
        """How often an interrupt woke the application."""
        ports = () if self._application is None else self._application.ports.values()
        return sum(port.statistics["rx_wakes"] for port in ports)

    def start(self, drivers: dict[str, UserDriver], rx_interrupts: Collection[str] = ()) -> dict[str, Any]:
        """Takes devices into use, each by the way that is asked for, and some with an interrupt to sleep on; once.

        Tells the IOVA mode, how each device is driven, and what the kernel refused: bdf -> (errno, reason).
        """
        if self._application is not None:
            raise OSError(EALREADY, "the application has started")
        named = {_name(bdf): driver for bdf, driver in drivers.items()}
        application = Application(self._system, named, self._log, {_name(bdf) for bdf in rx_interrupts})
        try:
            self._control = application.heap.reserve(_PAGE, _PAGE)
        except OSError:
            application.close()
            raise
        self._application = application
        return {
            "iova": str(application.iova_mode),
            "ports": {_bdf(name): port.function.driver for name, port in application.ports.items()},
            "refused": {_bdf(name): tuple(refused) for name, refused in application.refused.items()},
        }

    def io(self, bdf: str, operations: int) -> dict[str, Any]:
        """Honest work of one port alone: packets to itself, each of them two operations; asleep before each of them
        where the port has an interrupt. Of a port without a loopback they are one operation each, and nobody's after.

        `failed` says why none of it counts; empty where it went well.
        """
        port, netdev, packets = self._port(bdf), self._netdev(bdf), -(-operations // 2)
        if isinstance(netdev, InterruptMode):
            return self._told(lambda: netdev.round_trips(packets))
        if port.loops:
            return self._told(lambda: Forwarding(self._system, [port]).run(packets))
        size = operations * port.max_frame
        return self._told(lambda: Forwarded(operations, size, True, netdev.to_itself(operations)), ways=1)

    def forward(self, packets: int) -> dict[str, Any]:
        """As `io`, over all ports: what is received on one is sent on the next; all of them are polled.

        Raises OSError(EINVAL) where one has no loopback: it needs somebody who sends, as `relay` has.
        """
        ports = list(self._running().ports.values())
        sources = [port.name for port in ports if not port.loops]
        if sources:
            raise OSError(EINVAL, f"nothing comes by {', '.join(sources)} unless somebody sends it")
        return self._told(lambda: Forwarding(self._system, ports).run(packets))

    def relay(self, packets: int) -> dict[str, Any]:
        """Sends on so many packets of others: what comes by one port leaves by the next; `listen` first.

        The ports run on after it. `failed` as of `io`.
        """
        try:
            done, failed = Relay(self._system, list(self._running().ports.values())).run(packets), ""
        except OSError as error:
            self._log(f"testpmd: {error.strerror}")
            done, failed = Relayed(0, 0, 0, 0.0), error.strerror or str(error)
        return done._asdict() | {"failed": failed}

    def statistics(self, bdf: str) -> dict[str, int]:
        """Of a port since its start, in DPDK's names; and the controller's own counters as `hw_` and their names."""
        port = self._port(bdf)
        return dict(port.statistics) | {f"hw_{name}": count for name, count in port.controller_statistics().items()}

    def _told(self, work: Callable[[], Forwarded], ways: int = 2) -> dict[str, Any]:
        try:
            done, failed = work(), ""
        except OSError as error:
            self._log(f"testpmd: {error.strerror}")
            done, failed = Forwarded(0, 0, False, 0.0), error.strerror or str(error)
        return {
            "operations": ways * done.packets,
            "packets": done.packets,
            "bytes": ways * done.bytes,
            "verified": done.verified,
            "mapping": "static",
            "seconds": done.seconds,
            "failed": failed,
        }

    # --- a page of the pool for the positive control of a device

    def offer_control(self, bdf: str) -> dict[str, Any]:
        """Where the device may write what."""
        self._port(bdf)
        zone = self._page()
        self._secret = self._random(_SECRET)
        self._system.memory.write(zone.vaddr, bytes(_SECRET))
        return {"iova": zone.iova, "data": self._secret}

    def check_control(self, bdf: str) -> bool:
        """Whether the device's legal write is there."""
        return self._system.memory.read(self._page().vaddr, _SECRET) == self._secret

    def end_control(self, bdf: str) -> None:
        """The page stays mapped, as all of the pool; what it holds is gone."""
        self._system.memory.write(self._page().vaddr, bytes(_SECRET))

    # --- the buggy application

    def attack(self, bdf: str, steps: Sequence[dict[str, Any]]) -> None:
        """Programs the honest device with addresses of a rogue's plan: its steps "write", "control" and "read"."""
        port = self._nic(bdf)
        for step in steps:
            match step["do"]:
                case "write":
                    stray_write(self._system, port, step["address"], step["data"])
                case "control":
                    stray_write(self._system, port, step["iova"], step["data"])
                case "read":
                    stray_read(self._system, port, step["address"], step["length"])
                case other:
                    raise ValueError(f"an application has no way to {other}")

    def _running(self) -> Application:
        if self._application is None:
            raise OSError(ENOTCONN, _NOT_STARTED)
        return self._application

    def _port(self, bdf: str) -> Port:
        return self._running().port(_name(bdf))

    def _nic(self, bdf: str) -> NicPort:
        port = self._port(bdf)
        if not isinstance(port, NicPort):
            raise OSError(ENOTSUP, f"{port.name} has no loopback")
        return port

    def _netdev(self, bdf: str) -> PollMode:
        """A port as it is waited for: asleep where it has an interrupt."""
        if bdf not in self._netdevs:
            port = self._port(bdf)
            if isinstance(port, NicPort) and port.rx_interrupt:
                self._netdevs[bdf] = InterruptMode(self._system, port)
            else:
                self._netdevs[bdf] = PollMode(self._system, port)
        return self._netdevs[bdf]

    def _page(self) -> Zone:
        if self._control is None:
            raise OSError(ENOTCONN, _NOT_STARTED)
        return self._control


def _name(bdf: str) -> str:
    return f"0000:{bdf}"


def _bdf(name: str) -> str:
    return name.removeprefix("0000:")
