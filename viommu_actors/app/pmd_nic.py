"""Poll-mode driver of the Ethernet controller of `spec.nic`: rings and buffers in hugepages, bursts.

In steady state it reads memory and writes doorbells, one a burst; it maps nothing and calls no kernel. What the
controller writes is checked before it is used. It has no interrupts, unless one for received packets is asked for,
which an application that has nothing to do may sleep on (DPDK: `intr_conf.rxq`, rte_eth_dev_rx_intr_enable).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from errno import EIO, ENOTSUP

from viommu_actors.app.mempool import Heap, Mbuf, Mempool
from viommu_actors.app.pci import Function, set_command
from viommu_actors.app.system import System
from viommu_actors.memory import Memory
from viommu_actors.spec import nic, pci
from viommu_actors.spec.nic import Cause, Control, Done, Flag, Reg, Status, Vector

#: Descriptors in each ring; one less may be posted.
RING_SIZE = 128
#: Bytes of a packet buffer: the longest frame.
BUFFER = nic.MAX_FRAME
_STRIDE = nic.DESCRIPTOR.size
_PAGE = 4096
_BUS = pci.Command.MEMORY | pci.Command.BUS_MASTER


class _Queue:
    """A descriptor ring, and the buffers that are posted in it, oldest first; `flags` are those of its descriptors."""

    def __init__(self, memory: Memory, heap: Heap, flags: Flag) -> None:
        self._memory = memory
        self._flags = flags
        self._zone = heap.reserve(RING_SIZE * _STRIDE, _PAGE)
        self._posted: list[Mbuf | None] = [None] * RING_SIZE
        self.iova = self._zone.iova
        self.tail = 0
        self._head = 0

    @property
    def room(self) -> int:
        """How many more may be posted."""
        return RING_SIZE - 1 - (self.tail - self._head) % RING_SIZE

    def post(self, mbuf: Mbuf, address: int, length: int) -> None:
        """Fills the descriptor at the tail; the controller sees it by the doorbell."""
        index = self.tail
        self._memory.write(self._zone.vaddr + index * _STRIDE, nic.DESCRIPTOR.pack(address, length, self._flags, 0, 0))
        self._posted[index] = mbuf
        self.tail = (index + 1) % RING_SIZE

    def done(self) -> tuple[Mbuf, int, int] | None:
        """(buffer, received length, status) of the oldest descriptor, once the controller is done with it."""
        index = self._head
        mbuf = self._posted[index]
        if mbuf is None:
            return None
        place = self._zone.vaddr + index * _STRIDE + nic.WRITE_BACK_OFFSET
        received, status = nic.WRITE_BACK.unpack(self._memory.read(place, nic.WRITE_BACK.size))
        if not status & Done.DONE:
            return None
        self._posted[index] = None
        self._head = (index + 1) % RING_SIZE
        return mbuf, received, status

    def redirect(self, address: int) -> None:
        """Overwrites the buffer address of the oldest descriptor, which the controller has not fetched yet."""
        self._memory.write(self._zone.vaddr + self._head * _STRIDE, address.to_bytes(8, "little"))

    def clear(self) -> None:
        """Empty again, as the controller's is after it was off; its buffers go back to their pool."""
        self._memory.write(self._zone.vaddr, bytes(RING_SIZE * _STRIDE))
        for mbuf in self._posted:
            if mbuf is not None:
                mbuf.free()
        self._posted = [None] * RING_SIZE
        self.tail = self._head = 0


class NicPort:
    """One controller, as a `port.Port`."""

    loops = True

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
        """Takes the controller into use, stopped. Raises OSError. Its frames are as long as the pool has room for.

        With `rx_interrupt` it may be slept on; whoever only polls is not disturbed.
        """
        self.name = name
        self.function = function
        self.pool = pool
        self.max_frame = min(nic.MAX_FRAME, pool.size)
        self.statistics: Counter[str] = Counter()
        self.running = False
        self._system = system
        self._rx = _Queue(system.memory, heap, Flag.INTERRUPT if rx_interrupt else Flag(0))
        self._tx = _Queue(system.memory, heap, Flag(0))
        set_command(function, _BUS, _BUS)
        self._bar = function.map_bar(nic.BAR)
        self._write(Reg.CONTROL, Control.RESET)
        #: what the interrupt signals
        self._interrupt = function.enable_interrupt(Vector.RECEIVE) if rx_interrupt else None
        self.mac = system.mmio_read(self._bar + Reg.MAC_LOW, 8).to_bytes(8, "little")[:6]

    @property
    def link_up(self) -> bool:
        """Whether a cable leads to another controller."""
        return bool(self._read(Reg.STATUS) & Status.LINK_UP)

    def start(self, *, loopback: bool = False) -> None:
        """Rings and receive buffers; on its cable, or in loopback where that is asked or there is none."""
        self.stop()
        cable = not loopback and self.link_up
        for queue, base, size in ((self._tx, Reg.TX_BASE, Reg.TX_SIZE), (self._rx, Reg.RX_BASE, Reg.RX_SIZE)):
            self._write(base, queue.iova & 0xFFFF_FFFF)
            self._write(base + 4, queue.iova >> 32)
            self._write(size, RING_SIZE)
        self._write(Reg.CONTROL, Control.ENABLE | (0 if cable else Control.LOOPBACK))
        self.running = True
        self._fill()

    def stop(self) -> None:
        """No more DMA of the controller; all buffers back."""
        self.running = False
        self._write(Reg.CONTROL, 0)
        # A read pushes the posted write, and what the controller wrote before, to where they belong.
        self._read(Reg.CONTROL)
        self._rx.clear()
        self._tx.clear()

    def close(self) -> None:
        """Stopped, and off the bus."""
        self.stop()
        set_command(self.function, 0, pci.Command.BUS_MASTER)

    def rx_burst(self, count: int) -> list[Mbuf]:
        """Up to `count` packets that have arrived; the caller frees or sends them."""
        received: list[Mbuf] = []
        seen = 0
        while seen < count and (done := self._rx.done()) is not None:
            mbuf, length, status = done
            seen += 1
            if status & Done.ERROR or not nic.MIN_FRAME <= length <= self.max_frame:
                self.statistics["ierrors"] += 1
                mbuf.free()
                continue
            mbuf.length = length
            self.statistics["ibytes"] += length
            received.append(mbuf)
        if seen:
            self.statistics["ipackets"] += len(received)
            self._fill()
        return received

    @property
    def rx_interrupt(self) -> bool:
        """Whether the port may be slept on."""
        return self._interrupt is not None

    def rx_intr_enable(self) -> None:
        """From here on a packet that is received raises the interrupt. One that came before raises none: look again."""
        self._write(Reg.CAUSE, Cause.RX_DONE)
        self._write(Reg.CAUSE_ENABLE, Cause.RX_DONE)
        # A read pushes the posted writes to the controller, and what the controller wrote before into the rings.
        self._read(Reg.CAUSE_ENABLE)
        self.function.rearm_interrupt()

    def rx_intr_disable(self) -> None:
        """From here on none does; one that is under way may still come."""
        self._write(Reg.CAUSE_ENABLE, 0)

    def rx_sleep(self, seconds: float) -> int:
        """Sleeps until the interrupt comes; how often it came since the last time, 0 after so many seconds.

        Raises OSError(ENOTSUP) for a port without.
        """
        if self._interrupt is None:
            raise OSError(ENOTSUP, f"{self.name} has no receive interrupt")
        if not self._system.wait([self._interrupt], seconds):
            return 0
        came = self.function.take_interrupts()
        if came:
            self.statistics["rx_wakes"] += 1
            self.statistics["rx_interrupts"] += came
        return came

    def tx_burst(self, mbufs: Sequence[Mbuf]) -> int:
        """Sends as many as there is room for, from the first; those are the driver's then, the others stay."""
        self.tx_done_cleanup()
        count = min(self._tx.room, len(mbufs))
        for mbuf in mbufs[:count]:
            self._tx.post(mbuf, mbuf.iova, mbuf.length)
            self.statistics["obytes"] += mbuf.length
        if count:
            self.statistics["opackets"] += count
            self._write(Reg.TX_TAIL, self._tx.tail)
        return count

    def tx_done_cleanup(self) -> int:
        """Frees what was sent, or could not be; how many are not sent yet."""
        while (done := self._tx.done()) is not None:
            mbuf, _, status = done
            if status & Done.ERROR:
                self.statistics["oerrors"] += 1
            mbuf.free()
        return RING_SIZE - 1 - self._tx.room

    def check(self) -> None:
        """Asks the controller whether its rings still work, which no steady state does. Raises OSError(EIO)."""
        status = self._read(Reg.STATUS)
        sides = {Status.TX_HALTED: "transmit", Status.RX_HALTED: "receive"}
        halted = [side for bit, side in sides.items() if status & bit]
        if halted:
            raise OSError(EIO, f"{self.name}: {' and '.join(halted)} ring halted")

    def controller_statistics(self) -> dict[str, int]:
        """What the controller counted since it was taken into use, by the names of `spec.nic`."""
        place = self._bar + Reg.STATISTICS
        return {name: self._system.mmio_read(place + 8 * index, 8) for index, name in enumerate(nic.STATISTICS)}

    # --- what a buggy application does to an honest device

    def misdirect_receive(self, address: int) -> None:
        """The next frame will be received at `address`, whatever that is."""
        self._rx.redirect(address)

    def misdirect_transmit(self, mbuf: Mbuf, address: int) -> None:
        """Sends as many bytes as `mbuf` has, but from `address`. There is room, where nothing else is being sent."""
        self.tx_done_cleanup()
        self._tx.post(mbuf, address, mbuf.length)
        self._write(Reg.TX_TAIL, self._tx.tail)

    def _fill(self) -> None:
        """Posts receive buffers as long as there are any."""
        before = self._rx.tail
        while self._rx.room:
            mbuf = self.pool.get()
            if mbuf is None:
                self.statistics["rx_nombuf"] += 1
                break
            self._rx.post(mbuf, mbuf.iova, self.max_frame)
        if self._rx.tail != before:
            self._write(Reg.RX_TAIL, self._rx.tail)

    def _read(self, register: int) -> int:
        return self._system.mmio_read(self._bar + register, 4)

    def _write(self, register: int, value: int) -> None:
        self._system.mmio_write(self._bar + register, 4, value)
