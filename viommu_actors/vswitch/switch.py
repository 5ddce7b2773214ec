"""The switch: ports, and which of them a frame goes out of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from viommu_actors.vswitch.delivery import Delivery
from viommu_actors.vswitch.mac_table import MacTable
from viommu_actors.vswitch.port import Port

_MAC = 6
#: First octet of an address of a group.
_GROUP = 1


class Switch:
    """A learning bridge. Nothing in it blocks: each port goes on as its front end answers."""

    def __init__(self, clock: Callable[[], float], log: Callable[[str], None] = lambda _: None) -> None:
        """`clock`: seconds, monotonic."""
        self.ports: dict[str, Port] = {}
        self.macs: MacTable[Port] = MacTable()
        self._clock = clock
        self._log = log

    def add(self, name: str, send: Callable[[Any], None], is_full: Callable[[], bool] = lambda: False) -> Port:
        """A port whose messages to its front end go to `send`; both as of `Port`."""
        port = self.ports[name] = Port(name, send, self.forward, self._log, is_full)
        return port

    def forward(self, ingress: Port, frames: list[bytes], delivery: Delivery) -> None:
        """Sends a burst on: to the port that its destination is behind, or to all but the one that it came in at."""
        now = self._clock()
        touched: dict[Port, None] = {}
        for frame in frames:
            destination, source = frame[:_MAC], frame[_MAC : 2 * _MAC]
            if not source[0] & _GROUP:
                self.macs.learn(source, ingress, now)
            known = None if destination[0] & _GROUP else self.macs.find(destination, now)
            for port in self.ports.values() if known is None else (known,):
                if port is not ingress:
                    port.egress.send(frame, delivery, now)
                    touched[port] = None
        for port in touched:
            port.egress.wake()

    def state(self) -> dict[str, Any]:
        """Plain values: addresses learned, and each port (`Port.state`)."""
        return {"macs": len(self.macs), "ports": {name: port.state() for name, port in self.ports.items()}}

    def expire(self) -> float | None:
        """Drops frames that have waited for too long; seconds until it is to be called again, None for no such time.

        To be called whenever something has happened.
        """
        now = self._clock()
        ends = [end for port in self.ports.values() if (end := port.egress.expire(now)) is not None]
        return max(0.0, min(ends) - now) if ends else None
