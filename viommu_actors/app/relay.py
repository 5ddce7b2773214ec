"""Forwarding between ports whose packets come from elsewhere, in the manner of testpmd's io mode.

What is received on one port is sent on the next. What a port has no room for is dropped, as testpmd does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from viommu_actors.app.port import Port
from viommu_actors.app.system import System
from viommu_actors.app.testpmd import BURST, Idle


class Relayed(NamedTuple):
    """Packets sent on, their bytes, those that there was no room for, and the seconds from the first to the last."""

    packets: int
    bytes: int
    dropped: int
    seconds: float


class Relay:
    """Over some ports in a ring, two at least; those that run go on with what they have received already."""

    def __init__(self, system: System, ports: Sequence[Port]) -> None:
        self._system = system
        self._ports = ports
        self._next = {id(port): ports[(index + 1) % len(ports)] for index, port in enumerate(ports)}

    def start(self) -> None:
        """Starts those that do not run. Raises OSError."""
        for port in self._ports:
            if not port.running:
                port.start()

    def run(self, packets: int) -> Relayed:
        """Until `packets` have been sent on; the ports run on after it.

        Raises OSError: EIO where a device fails, ETIMEDOUT where nothing comes for too long.
        """
        self.start()
        idle = Idle(self._system, self._ports)
        done = size = dropped = 0
        began = now = self._system.clock()
        while done < packets:
            arrived = 0
            for port in self._ports:
                mbufs = port.rx_burst(BURST)
                if not mbufs:
                    # Sent packets are cleaned up where there are none to send.
                    port.tx_done_cleanup()
                    continue
                if not done:
                    began = self._system.clock()
                arrived += len(mbufs)
                lengths = [mbuf.length for mbuf in mbufs]
                sent = self._next[id(port)].tx_burst(mbufs)
                for mbuf in mbufs[sent:]:
                    mbuf.free()
                done, size, dropped = done + sent, size + sum(lengths[:sent]), dropped + len(mbufs) - sent
                now = self._system.clock()
            idle.found(arrived)
        return Relayed(done, size, dropped, now - began)
