"""A port that its application polls, as a `netdev.Netdev`: frames one by one, on its cable or through its switch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from errno import EINVAL, ENOMEM
from typing import ClassVar

from viommu_actors.app.mempool import Mbuf
from viommu_actors.app.port import Port
from viommu_actors.app.system import System
from viommu_actors.app.testpmd import BURST, Idle
from viommu_actors.netdev import numbered_frame
from viommu_actors.spec import nic


class PollMode:
    """Of a port that runs, or is started by the first that is asked of it."""

    mapping: ClassVar[str] = "static"

    def __init__(self, system: System, port: Port) -> None:
        self._system = system
        self._port = port
        self._received: deque[bytes] = deque()

    @property
    def mac(self) -> bytes:
        return self._port.mac

    @property
    def max_frame(self) -> int:
        return self._port.max_frame

    @property
    def link_up(self) -> bool:
        return self._port.link_up

    def listen(self) -> None:
        if not self._port.running:
            self._received.clear()
            self._port.start()

    def send(self, frame: bytes) -> None:
        """Raises OSError: EINVAL for a length that no frame has, ENOMEM without a buffer, EIO, ETIMEDOUT."""
        if not nic.MIN_FRAME <= len(frame) <= self.max_frame:
            raise OSError(EINVAL, f"{self._port.name}: no frame has {len(frame)} bytes")
        self.listen()
        self._burst([frame])

    def receive(self) -> bytes:
        """Polls until there is a packet. Raises OSError: EIO, ETIMEDOUT where nothing comes."""
        self.listen()
        idle = Idle(self._system, [self._port])
        while not self._received:
            idle.found(self._take_burst())
        return self._received.popleft()

    def to_itself(self, packets: int) -> float:
        """Frames to itself that nobody brings back, in bursts, until all were taken; the seconds that it took.

        Raises as `send` does.
        """
        self.listen()
        began = self._system.clock()
        for first in range(0, packets, BURST):
            numbers = range(first, min(first + BURST, packets))
            self._burst([numbered_frame(number, self.max_frame, self.mac, self.mac) for number in numbers])
        return self._system.clock() - began

    def _take_burst(self) -> int:
        """Takes up to a burst of what has arrived; how many those were."""
        mbufs = self._port.rx_burst(BURST)
        for mbuf in mbufs:
            self._received.append(self._system.memory.read(mbuf.vaddr, mbuf.length))
            mbuf.free()
        return len(mbufs)

    def _burst(self, frames: Sequence[bytes]) -> None:
        """Sends them, no more than a burst, and waits until the device has taken all."""
        mbufs: list[Mbuf] = []
        for frame in frames:
            mbuf = self._port.pool.get()
            if mbuf is None:
                for posted in mbufs:
                    posted.free()
                raise OSError(ENOMEM, "the pool has no buffer left to send")
            self._system.memory.write(mbuf.vaddr, frame)
            mbuf.length = len(frame)
            mbufs.append(mbuf)
        idle = Idle(self._system, [self._port])
        left = len(mbufs)
        while left:
            del mbufs[: self._port.tx_burst(mbufs)]
            before, left = left, len(mbufs) + self._port.tx_done_cleanup()
            idle.found(before - left)
