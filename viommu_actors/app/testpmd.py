"""Packet forwarding in the manner of DPDK's testpmd: io mode, started by a first burst, over ports without a source.

A port without a cable receives what it sends, so that a burst once sent goes round for good: what is received on one
port is sent on the next (a port alone: on itself). No packet's content is looked at until all have gone round.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import ENOMEM, ETIMEDOUT
from typing import NamedTuple

from viommu_actors.app.mempool import Mbuf
from viommu_actors.app.port import Port
from viommu_actors.app.system import System
from viommu_actors.netdev import numbered_frame

BURST = 32
#: Seconds without any packet after which it is given up, and after which a port is first asked what it does.
_TIMEOUT = 5.0
_IDLE = 0.1


class Forwarded(NamedTuple):
    """Packets received, each having been sent once; their bytes one way; whether each is as it was made."""

    packets: int
    bytes: int
    verified: bool
    seconds: float


class Forwarding:
    """Forwarding over some ports in a ring; each is started anew for it."""

    def __init__(self, system: System, ports: Sequence[Port]) -> None:
        self._system = system
        self._ports = ports
        #: of each packet
        self._size = min(port.max_frame for port in ports)
        self._next = {id(port): ports[(index + 1) % len(ports)] for index, port in enumerate(ports)}

    def run(self, packets: int) -> Forwarded:
        """Until `packets` have been received; then the ports are stopped.

        Raises OSError: EIO where a port's ring halts, ETIMEDOUT where packets are lost, ENOMEM where the pool has too
        few buffers.
        """
        waiting: dict[int, list[Mbuf]] = {id(port): [] for port in self._ports}
        try:
            for port in self._ports:
                port.start()
            frames = self._make(min(packets, BURST * len(self._ports)), waiting)
            began = self._system.clock()
            verified = self._circulate(packets, waiting, frames)
            seconds = self._system.clock() - began
        finally:
            for port in self._ports:
                port.stop()
            for mbuf in (mbuf for queue in waiting.values() for mbuf in queue):
                mbuf.free()
        return Forwarded(packets, packets * self._size, verified, seconds)

    def _make(self, count: int, waiting: dict[int, list[Mbuf]]) -> set[bytes]:
        """Puts `count` packets into the queues, in turn, and returns their contents."""
        frames = set()
        for number in range(count):
            port = self._ports[number % len(self._ports)]
            mbuf = port.pool.get()
            if mbuf is None:
                raise OSError(ENOMEM, "the pool has no buffer left to send")
            waiting[id(port)].append(mbuf)
            frame = numbered_frame(number, self._size, port.mac, port.mac)
            self._system.memory.write(mbuf.vaddr, frame)
            mbuf.length = len(frame)
            frames.add(frame)
        return frames

    def _circulate(self, packets: int, waiting: dict[int, list[Mbuf]], frames: set[bytes]) -> bool:
        """Whether each of `frames` was among the last that came, once."""
        idle = Idle(self._system, self._ports)
        to_forward, received = packets - len(frames), 0
        self._flush(waiting)
        while received < packets:
            arrived = 0
            for port in self._ports:
                mbufs = port.rx_burst(BURST)
                arrived += len(mbufs)
                forwarded = mbufs[:to_forward]
                to_forward -= len(forwarded)
                waiting[id(self._next[id(port)])] += forwarded
                for mbuf in mbufs[len(forwarded) :]:
                    frames.discard(self._system.memory.read(mbuf.vaddr, mbuf.length))
                    mbuf.free()
            self._flush(waiting)
            received += arrived
            idle.found(arrived)
        return not frames

    def _flush(self, waiting: dict[int, list[Mbuf]]) -> None:
        """Sends what waits for each port, as far as there is room; what was sent is cleaned up where nothing waits."""
        for port in self._ports:
            queue = waiting[id(port)]
            del queue[: port.tx_burst(queue)]


class Idle:
    """Polls in vain: lets others run, and in the end finds out why nothing comes."""

    def __init__(self, system: System, ports: Sequence[Port]) -> None:
        self._system = system
        self._ports = ports
        self._since: float | None = None
        self._asked = 0.0

    def found(self, count: int) -> None:
        """What a round of polls found. Raises OSError as `Forwarding.run` does."""
        if count:
            self._since = None
            return
        self._system.pause()
        now = self._system.clock()
        if self._since is None:
            self._since = self._asked = now
        elif now - self._asked >= _IDLE:
            self._asked = now
            for port in self._ports:
                port.check()
            if now - self._since >= _TIMEOUT:
                raise OSError(ETIMEDOUT, f"no packet in {_TIMEOUT:g} s on {', '.join(p.name for p in self._ports)}")
