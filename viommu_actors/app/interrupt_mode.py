"""An application that sleeps until packets come, in the manner of DPDK's l3fwd-power in interrupt mode.

It polls as long as there is something; then it arms the receive interrupt, looks once more, and sleeps. An interrupt
wakes it through the kernel, and is off while it polls.
"""

from __future__ import annotations

from errno import EINVAL, ETIMEDOUT

from viommu_actors.app.pmd_nic import NicPort
from viommu_actors.app.poll_mode import PollMode
from viommu_actors.app.system import System
from viommu_actors.app.testpmd import Forwarded
from viommu_actors.netdev import numbered_frame

#: Seconds of sleep after which what should have come is given up.
_TIMEOUT = 5.0


class InterruptMode(PollMode):
    """One port that has a receive interrupt: on its cable, in loopback without one.

    From `listen` on the interrupt is armed whenever nobody polls.
    """

    _port: NicPort

    def __init__(self, system: System, port: NicPort) -> None:
        """Raises OSError(EINVAL) for a port without."""
        if not port.rx_interrupt:
            raise OSError(EINVAL, f"{port.name} has no receive interrupt")
        super().__init__(system, port)

    def listen(self) -> None:
        if not self._port.running:
            super().listen()
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
        while self._take_burst():
            pass
