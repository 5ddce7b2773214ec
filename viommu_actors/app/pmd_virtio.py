"""Poll-mode driver of the virtio network device (`spec.virtio_net`): queues and buffers in hugepages, bursts.

In steady state it reads and writes memory, and notifies the device once a burst, where it does not poll itself; it
maps nothing and calls no kernel. The device is asked for no interrupt. A frame lies behind its header in one buffer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from errno import EIO, ENOTSUP

from viommu_actors.app.mempool import Heap, Mbuf, Mempool
from viommu_actors.app.pci import Function, set_command
from viommu_actors.app.system import System
from viommu_actors.spec import pci, virtio_net
from viommu_actors.spec.virtio_net import Queue
from viommu_actors.virtio.net import HEADER_BYTES, VirtioNet
from viommu_actors.virtio.virtqueue import Places, Virtqueue

#: Descriptors of each queue.
RING_SIZE = 128
#: Receive buffers that are back in the queue before the device is told of them, where it has others.
_REFILL = 32
_PAGE = 4096
_BUS = pci.Command.MEMORY | pci.Command.BUS_MASTER


class _Registers:
    """The function's configuration space and BARs, for `virtio.pci.VirtioPci`."""

    def __init__(self, system: System, function: Function) -> None:
        self._system = system
        self._function = function
        self._bars: dict[int, int] = {}

    def config_read(self, offset: int, size: int) -> int:
        return self._function.config_read(offset, size)

    def read(self, bar: int, offset: int, size: int) -> int:
        return self._system.mmio_read(self._bar(bar) + offset, size)

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        self._system.mmio_write(self._bar(bar) + offset, size, value)

    def _bar(self, bar: int) -> int:
        if bar not in self._bars:
            self._bars[bar] = self._function.map_bar(bar)
        return self._bars[bar]


class _Side:
    """One queue of mbufs."""

    def __init__(self, system: System, heap: Heap) -> None:
        zone = heap.reserve(_PAGE, _PAGE)
        self.queue: Virtqueue[Mbuf] = Virtqueue(system.memory, zone.vaddr, RING_SIZE, interrupts=False)
        self.places = Places.at(zone.iova, RING_SIZE)

    def reset(self) -> None:
        for mbuf in self.queue.reset():
            mbuf.free()


class VirtioPort:
    """One device, as a `port.Port`."""

    loops = False
    rx_interrupt = False

    def __init__(
        self,
        system: System,
        name: str,
        function: Function,
        heap: Heap,
        pool: Mempool,
        *,
        rx_interrupt: bool = False,
    ) -> None:
        """Takes the device into use, stopped. Raises OSError; `pool` has headroom for a header.

        OSError(ENOTSUP) where it is to be slept on.
        """
        if rx_interrupt:
            raise OSError(ENOTSUP, f"{name} has no receive interrupt")
        self.name = name
        self.function = function
        self.pool = pool
        self.statistics: Counter[str] = Counter()
        self.running = False
        self._memory = system.memory
        self._rx, self._tx = _Side(system, heap), _Side(system, heap)
        set_command(function, _BUS, _BUS)
        self._net = VirtioNet(_Registers(system, function), name)
        self.mac, longest = self._net.identity
        self.max_frame = min(longest, pool.size)

    @property
    def link_up(self) -> bool:
        return self._net.link_up

    def start(self) -> None:
        self.stop()
        set_command(self.function, _BUS, _BUS)
        self.running = True
        try:
            self._net.start(self._rx.places, self._tx.places, interrupts=False)
            self._fill()
        except OSError:
            self.stop()
            raise

    def stop(self) -> None:
        """A device that does not let go of its buffers is taken off the bus."""
        if not self.running:
            return
        self.running = False
        try:
            self._net.stop()
        except OSError:
            set_command(self.function, 0, pci.Command.BUS_MASTER)
        self._rx.reset()
        self._tx.reset()

    def close(self) -> None:
        self.stop()
        set_command(self.function, 0, pci.Command.BUS_MASTER)

    def rx_burst(self, count: int) -> list[Mbuf]:
        """As `port.Port`. What came with something that cannot be true is not received."""
        received: list[Mbuf] = []
        seen = 0
        try:
            while seen < count and (taken := self._rx.queue.take()) is not None:
                mbuf, length = taken
                seen += 1
                mbuf.length = length - HEADER_BYTES
                if mbuf.length < virtio_net.MIN_FRAME:
                    self.statistics["ierrors"] += 1
                    mbuf.free()
                    continue
                received.append(mbuf)
        except OSError:
            for mbuf in received:
                mbuf.free()
            raise
        self.statistics["ibytes"] += sum(mbuf.length for mbuf in received)
        if seen:
            self.statistics["ipackets"] += len(received)
            self._fill()
        return received

    def tx_burst(self, mbufs: Sequence[Mbuf]) -> int:
        """As `port.Port`; a packet that is too long for the device is dropped, and counts as an error."""
        self.tx_done_cleanup()
        queue = self._tx.queue
        count = min(queue.room, len(mbufs))
        for mbuf in mbufs[:count]:
            if mbuf.length > self.max_frame:
                self.statistics["oerrors"] += 1
                mbuf.free()
                continue
            self._memory.write(mbuf.vaddr - HEADER_BYTES, virtio_net.TRANSMIT_HEADER)
            queue.post(mbuf.iova - HEADER_BYTES, HEADER_BYTES + mbuf.length, mbuf, writable=False)
            self.statistics["opackets"] += 1
            self.statistics["obytes"] += mbuf.length
        if queue.untold:
            self._tell(Queue.TRANSMIT, queue)
        return count

    def tx_done_cleanup(self) -> int:
        while (taken := self._tx.queue.take()) is not None:
            taken[0].free()
        return self._tx.queue.out

    def check(self) -> None:
        if self._net.needs_reset:
            raise OSError(EIO, f"{self.name}: the device needs a reset")

    def controller_statistics(self) -> dict[str, int]:
        return {}

    def _fill(self) -> None:
        """Posts receive buffers as long as there are any."""
        queue = self._rx.queue
        while queue.room:
            mbuf = self.pool.get()
            if mbuf is None:
                self.statistics["rx_nombuf"] += 1
                break
            queue.post(mbuf.iova - HEADER_BYTES, HEADER_BYTES + self.pool.size, mbuf, writable=True)
        if queue.untold >= _REFILL or (queue.untold and queue.untold == queue.out):
            self._tell(Queue.RECEIVE, queue)

    def _tell(self, index: Queue, queue: Virtqueue[Mbuf]) -> None:
        """Publishes what was posted, and notifies the device where it wants to be."""
        queue.publish()
        if queue.wants_notification:
            self._net.notify(index)
