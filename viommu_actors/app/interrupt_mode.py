"""An application that sleeps until packets come, in the manner of DPDK's l3fwd-power in interrupt mode.

It polls as long as there is something; then it arms the receive interrupt, looks once more, and sleeps. An interrupt
wakes it through the kernel, and is off while it polls.
"""

from __future__ import annotations

from collections import deque
from errno import EINVAL, ENOMEM, ETIMEDOUT

from viommu_actors.app.mempool import Mbuf
from viommu_actors.app.pmd_nic import NicPort
from viommu_actors.app.system import System
from viommu_actors.app.testpmd import BURST, Forwarded
from viommu_actors.netdev import numbered_frame
from viommu_actors.spec import nic

#: Seconds of sleep after which what should have come is given up.
_TIMEOUT = 5.0


class InterruptMode:
    """One port that has a receive interrupt, as a `netdev.Netdev`: on its cable, in loopback without one.

    From `listen` on the interrupt is armed whenever nobody polls.
    """

    mapping = "static"

    def __init__(self, system: System, port: NicPort) -> None:
        """Raises OSError(EINVAL) for a port without."""
        if not port.rx_interrupt:
            raise OSError(EINVAL, f"{port.name} has no receive interrupt")
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
        self._port.start()
        self._port.rx_intr_enable()

    def stop(self) -> None:
        """No more packets; what nobody took is gone."""
        self._port.rx_intr_disable()
        self._port.stop()
        self._received.clear()

    def receive(self) -> bytes:
        """Sleeps until there is a packet.

        Raises OSError: EIO where the port's ring has halted, ETIMEDOUT where nothing comes.
        """
        while not self._received:
            self._sleep()
            self._port.rx_intr_disable()
            self._poll()
            self._port.rx_intr_enable()
            # What came before it was armed raised no interrupt.
            self._poll()
        return self._received.popleft()

    def send(self, frame: bytes) -> None:
        """Raises OSError: EINVAL for a length that no frame has, ENOMEM without a buffer, EIO, ETIMEDOUT."""
        if not nic.MIN_FRAME <= len(frame) <= self.max_frame:
            raise OSError(EINVAL, f"no frame has {len(frame)} bytes")
        mbuf: Mbuf | None = self._port.pool.get()
        if mbuf is None:
            raise OSError(ENOMEM, "the pool has no buffer left to send")
        self._system.memory.write(mbuf.vaddr, frame)
        mbuf.length = len(frame)
        self._port.tx_burst([mbuf])

    def round_trips(self, packets: int) -> Forwarded:
        """Packets to itself, one after another: each wakes it. Raises as `receive`, and ENOMEM without a buffer."""
        self.listen()
        try:
            began = self._system.clock()
            verified = True
            for number in range(packets):
                frame = numbered_frame(number, self.max_frame, self.mac, self.mac)
                self.send(frame)
                verified &= self.receive() == frame
            seconds = self._system.clock() - began
        finally:
            self.stop()
        return Forwarded(packets, packets * self.max_frame, verified, seconds)

    def _sleep(self) -> None:
        """Until the interrupt has come: a wait may end for one that was taken already."""
        deadline = self._system.clock() + _TIMEOUT
        while not self._port.rx_sleep(_TIMEOUT):
            if self._system.clock() >= deadline:
                self._port.check()
                raise OSError(ETIMEDOUT, f"{self._port.name}: no interrupt in {_TIMEOUT:g} s")

    def _poll(self) -> None:
        """Takes all that is there."""
        while mbufs := self._port.rx_burst(BURST):
            for mbuf in mbufs:
                self._received.append(self._system.memory.read(mbuf.vaddr, mbuf.length))
                mbuf.free()
