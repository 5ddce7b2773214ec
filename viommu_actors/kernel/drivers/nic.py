"""Driver of the Ethernet controller of `spec.nic`: loopback traffic with itself, or packets over a cable.

A loopback packet is two operations: a page that the device may only read, and a page that it may only write.
Parameter `nic.static=BDF,...`: the pages of the device are mapped once, not each for its packet. Rings are
coherent memory, mapped at probe. In steady state nothing is read from the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from contextlib import ExitStack
from errno import EINVAL, EIO, ENODEV
from typing import TYPE_CHECKING, ClassVar, Self

from viommu_actors.kernel.dma import Direction
from viommu_actors.kernel.driver import IoResult
from viommu_actors.kernel.drivers.binding import PAGE, Binding, Buffers, NetDriver, is_static
from viommu_actors.kernel.drivers.nic_ring import SIZE, Ring
from viommu_actors.netdev import numbered_frame
from viommu_actors.spec import nic
from viommu_actors.spec.nic import Cause, Control, Done, Flag, Reg, Status

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import PciDevice

#: Pages each way; fewer than descriptors in a ring.
_POOL = 16
_NO_CONTROLLER = 0xFFFF_FFFF


class NicDriver(NetDriver):
    """One controller. `run_io` puts it in loopback, `listen`, `send` and `receive` on its cable."""

    name: ClassVar[str] = "nic"
    ids: ClassVar[Collection[tuple[int, int]]] = ((nic.VENDOR_ID, nic.DEVICE_ID),)
    max_frame = nic.MAX_FRAME

    def __init__(self, kernel: Kernel, device: PciDevice) -> None:
        self._device = device
        self._sequence = 0
        self._mode: Control | None = None
        self._woken = False
        #: Receive buffers in the ring, oldest first: (descriptor, page, iova).
        self._posted: deque[tuple[int, int, int]] = deque()
        self._static = is_static(kernel, device, "nic.static")
        with ExitStack() as undo:
            self._binding = binding = Binding(kernel, device, self._handlers(), asks=self._asks)
            undo.callback(binding.release)
            self.mac = self._reset()
            self._tx, self._rx = self._ring(undo), self._ring(undo)
            self._tx_pages = self._pages(undo, kernel, Direction.TO_DEVICE)
            self._rx_pages = self._pages(undo, kernel, Direction.FROM_DEVICE)
            undo.callback(binding.stop)
            undo.callback(self._stop)
            self._undo = undo.pop_all()

    @classmethod
    def probe(cls, kernel: Kernel, device: PciDevice) -> Self:
        return cls(kernel, device)

    # --- loopback

    def run_io(self, operations: int) -> IoResult:
        """Raises OSError: ETIMEDOUT where the device does not answer, EIO where its DMA is refused."""
        self._set_mode(Control.LOOPBACK)
        packets = -(-operations // 2)
        wrong = sum(not self._loop_packet() for _ in range(packets))
        return IoResult(2 * packets, 2 * packets * PAGE, not wrong, self.mapping)

    def _loop_packet(self) -> bool:
        """One page out and in again; whether it came back as it went."""
        self._sequence += 1
        frame = numbered_frame(self._sequence, PAGE, self.mac, self.mac)
        page = self._sequence % _POOL
        self._binding.memory.write(self._tx_pages.paddr(page), frame)
        source = self._tx_pages.map(page)
        try:
            target = self._rx_pages.map(page)
            try:
                received = self._rx.post(target, PAGE, Flag.INTERRUPT)
                sent = self._tx.post(source, PAGE, 0)
                self._ring_doorbell(Reg.RX_TAIL, self._rx)
                self._ring_doorbell(Reg.TX_TAIL, self._tx)
                length = self._finish(self._rx, received, (self._tx, sent))
            finally:
                self._rx_pages.unmap(target)
        finally:
            self._tx_pages.unmap(source)
        return length == PAGE and self._binding.memory.read(self._rx_pages.paddr(page), PAGE) == frame

    # --- cable

    @property
    def link_up(self) -> bool:
        """Whether a cable leads to another controller."""
        self._set_mode(Control(0))
        return bool(self._device.read(nic.BAR, Reg.STATUS, 4) & Status.LINK_UP)

    def listen(self) -> None:
        """Takes frames from the cable from here on, up to as many as there are buffers until `receive`."""
        self._set_mode(Control(0))

    def send(self, frame: bytes) -> None:
        """Sends a frame of 14 to 4096 bytes. Raises OSError: EINVAL, ETIMEDOUT, EIO where it was not sent."""
        if not nic.MIN_FRAME <= len(frame) <= PAGE:
            raise OSError(EINVAL, f"no frame has {len(frame)} bytes")
        self._set_mode(Control(0))
        self._sequence += 1
        page = self._sequence % _POOL
        self._binding.memory.write(self._tx_pages.paddr(page), frame)
        iova = self._tx_pages.map(page)
        try:
            index = self._tx.post(iova, len(frame), Flag.INTERRUPT)
            self._ring_doorbell(Reg.TX_TAIL, self._tx)
            self._finish(self._tx, index)
        finally:
            self._tx_pages.unmap(iova)

    def receive(self) -> bytes:
        """The next frame from the cable. Raises OSError: ETIMEDOUT where none comes, EIO where it is lost."""
        self._set_mode(Control(0))
        length = self._finish(self._rx, self._posted[0][0])
        _, page, iova = self._posted.popleft()
        self._rx_pages.unmap(iova)
        frame = self._binding.memory.read(self._rx_pages.paddr(page), length)
        self._post_receive(page)
        return frame

    def _post_receive(self, page: int) -> None:
        iova = self._rx_pages.map(page)
        self._posted.append((self._rx.post(iova, PAGE, Flag.INTERRUPT), page, iova))
        self._ring_doorbell(Reg.RX_TAIL, self._rx)

    # --- the controller

    def _set_mode(self, mode: Control) -> None:
        """Restarts the rings in loopback or on the cable, where it is in the other mode."""
        if self._mode == mode:
            return
        self._stop()
        for ring, base, size in ((self._tx, Reg.TX_BASE, Reg.TX_SIZE), (self._rx, Reg.RX_BASE, Reg.RX_SIZE)):
            ring.reset()
            self._write(base, ring.iova & 0xFFFF_FFFF)
            self._write(base + 4, ring.iova >> 32)
            self._write(size, SIZE)
        self._write(Reg.CAUSE_ENABLE, Cause.TX_DONE | Cause.RX_DONE | Cause.ERROR)
        self._write(Reg.CONTROL, Control.ENABLE | mode)
        self._mode = mode
        if mode != Control.LOOPBACK:
            for page in range(_POOL):
                self._post_receive(page)

    def _stop(self) -> None:
        """No more DMA of the controller and no interrupt, and its receive buffers back."""
        self._mode = None
        self._write(Reg.CAUSE_ENABLE, 0)
        self._write(Reg.CONTROL, 0)
        # A read pushes the posted write, and what the controller wrote before, to where they belong.
        self._device.read(nic.BAR, Reg.CONTROL, 4)
        while self._posted:
            self._rx_pages.unmap(self._posted.popleft()[2])

    def _finish(self, ring: Ring, index: int, feeder: tuple[Ring, int] | None = None) -> int:
        """Waits for a descriptor, and for an error of the one that feeds it; the length received.

        Whatever goes wrong stops the controller, so that no buffer is in use once its mapping is gone.
        """

        def done() -> bool:
            if ring.written_back(index)[1] & Done.DONE:
                return True
            if feeder is not None and feeder[0].written_back(feeder[1])[1] & Done.ERROR:
                raise OSError(EIO, f"{self._device.name}: frame not sent")
            if self._woken:
                self._woken = False
                self._check_rings()
            return False

        self._woken = False
        try:
            self._binding.wait(done, "frame")
            length, status = ring.written_back(index)
            if status & Done.ERROR or length > PAGE:
                raise OSError(EIO, f"{self._device.name}: frame lost")
        except OSError:
            self._stop()
            raise
        return length

    def _check_rings(self) -> None:
        """The controller called, and not for what is awaited."""
        status = self._device.read(nic.BAR, Reg.STATUS, 4)
        if status & (Status.TX_HALTED | Status.RX_HALTED):
            side = "transmit" if status & Status.TX_HALTED else "receive"
            raise OSError(EIO, f"{self._device.name}: {side} ring halted")

    def _handlers(self) -> list[Callable[[], None]]:
        """By `nic.Vector`. What was sent and received stands in the rings, which a wait looks at as it wakes; only
        of the third the controller itself is to be asked, and where one MSI is all there is, of each."""
        return [_awake, _awake, self._called]

    def _asks(self) -> bool:
        """Of INTx: takes the causes, which lets the wire go down."""
        causes = self._device.read(nic.BAR, Reg.CAUSE, 4)
        if causes in (0, _NO_CONTROLLER):
            return False
        self._write(Reg.CAUSE, causes)
        return True

    def _called(self) -> None:
        self._woken = True

    def _reset(self) -> bytes:
        """Resets the controller; its MAC address. Raises OSError(ENODEV) where none answers."""
        self._write(Reg.CONTROL, Control.RESET)
        low = self._device.read(nic.BAR, Reg.MAC_LOW, 4)
        high = self._device.read(nic.BAR, Reg.MAC_HIGH, 4)
        if _NO_CONTROLLER in (low, high):
            raise OSError(ENODEV, f"{self._device.name}: no controller answers")
        return (low | high << 32).to_bytes(8, "little")[:6]

    def _ring_doorbell(self, register: Reg, ring: Ring) -> None:
        self._write(register, ring.tail)

    def _write(self, register: int, value: int) -> None:
        self._device.write(nic.BAR, register, 4, value)

    def _ring(self, undo: ExitStack) -> Ring:
        ring = Ring(self._binding.memory, self._binding.dma)
        undo.callback(ring.free)
        return ring

    def _pages(self, undo: ExitStack, kernel: Kernel, direction: Direction) -> Buffers:
        pages = Buffers(kernel, self._binding.dma, _POOL, direction, self._static)
        undo.callback(pages.free)
        return pages


def _awake() -> None:
    """The interrupt has done its work by waking the CPU."""
