"""Driver of the virtio network device (`spec.virtio_net`), whoever serves it: a virtual switch behind a hypervisor.

An operation is one frame, in one page with its header. Parameter `virtio_net.static=BDF,...`: the pages of the device
are mapped once, not each for its frame. Rings are coherent memory, mapped at probe. The device has no loopback: it is
alone at work with frames to itself, which a switch takes and drops.

A link that is down holds no frame back: it waits in the ring for whoever serves the device next.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from errno import EINVAL, EIO
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from viommu_actors.kernel.dma import Direction
from viommu_actors.kernel.driver import IoResult
from viommu_actors.kernel.drivers.binding import PAGE, Binding, Buffers, NetDriver, is_static
from viommu_actors.netdev import numbered_frame
from viommu_actors.spec import virtio_net
from viommu_actors.spec.virtio_net import Queue
from viommu_actors.virtio.net import HEADER_BYTES, IDENTITY, VirtioNet
from viommu_actors.virtio.virtqueue import Places, Virtqueue

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import PciDevice

#: Pages each way, and descriptors of a queue.
_POOL = 16
#: Receive buffers that are back in the queue before the device is told of them, where it has others.
_REFILL = _POOL // 2


class _Page(NamedTuple):
    """A page of the pool that the device has, by its address for the device."""

    number: int
    iova: int


class _Side:
    """One queue, and the pages that go through it."""

    def __init__(
        self, kernel: Kernel, binding: Binding, direction: Direction, static: bool, undo: ExitStack
    ) -> None:
        """Raises OSError where memory or addresses are used up."""
        paddr, iova = binding.dma.alloc_coherent(PAGE)
        undo.callback(binding.dma.free_coherent, PAGE, paddr, iova)
        self.queue: Virtqueue[_Page] = Virtqueue(binding.memory, paddr, _POOL, interrupts=True)
        self.places = Places.at(iova, _POOL)
        self.pages = Buffers(kernel, binding.dma, _POOL, direction, static)
        undo.callback(self.pages.free)
        self._writable = direction is Direction.FROM_DEVICE

    def post(self, number: int, length: int) -> None:
        """Maps a page and gives it to the device. Raises OSError where there is no mapping to be had."""
        iova = self.pages.map(number)
        self.queue.post(iova, length, _Page(number, iova), writable=self._writable)

    def take(self) -> tuple[int, int] | None:
        """A page that is back, and unmapped, and the bytes written into it. Raises OSError(EIO)."""
        taken = self.queue.take()
        if taken is None:
            return None
        page, length = taken
        self.pages.unmap(page.iova)
        return page.number, length

    def reset(self) -> None:
        """The device has nothing any more."""
        for page in self.queue.reset():
            self.pages.unmap(page.iova)


class VirtioNetDriver(NetDriver):
    """One device; it is started by the first that is asked of it."""

    name: ClassVar[str] = "virtio-net"
    ids: ClassVar[Collection[tuple[int, int]]] = (IDENTITY,)

    def __init__(self, kernel: Kernel, device: PciDevice) -> None:
        self._device = device
        self._log = kernel.machine.log
        self._sequence = 0
        self._running = False
        self._failed = False
        self._static = is_static(kernel, device, "virtio_net.static")
        with ExitStack() as undo:
            # A vector each for the configuration, and the queues in their order; what was used stands in the rings,
            # which a wait looks at as it wakes.
            self._binding = binding = Binding(kernel, device, [self._configuration_changed, _awake, _awake])
            undo.callback(binding.release)
            self._net = VirtioNet(device, device.name)
            self.mac, self.max_frame = self._net.identity
            self._link = self._net.link_up
            self._rx = _Side(kernel, binding, Direction.FROM_DEVICE, self._static, undo)
            self._tx = _Side(kernel, binding, Direction.TO_DEVICE, self._static, undo)
            undo.callback(binding.stop)
            undo.callback(self._stop)
            self._undo = undo.pop_all()

    @classmethod
    def probe(cls, kernel: Kernel, device: PciDevice) -> Self:
        return cls(kernel, device)

    def run_io(self, operations: int) -> IoResult:
        """Frames to itself; that each was taken is all that there is to verify. Raises OSError as `send` does."""
        for _ in range(operations):
            self._sequence += 1
            self.send(numbered_frame(self._sequence, self.max_frame, self.mac, self.mac))
        return IoResult(operations, operations * self.max_frame, True, self.mapping)

    @property
    def link_up(self) -> bool:
        """Whether the device is served."""
        return self._net.link_up

    def listen(self) -> None:
        """Takes frames from here on, up to as many as there are pages until `receive`."""
        self._start()

    def send(self, frame: bytes) -> None:
        """Sends a frame, and waits until it was taken. Raises OSError: EINVAL, ETIMEDOUT, EIO."""
        if not virtio_net.MIN_FRAME <= len(frame) <= self.max_frame:
            raise OSError(EINVAL, f"{self._device.name} has no frames of {len(frame)} bytes")
        self._start()
        self._sequence += 1
        page = self._sequence % _POOL
        self._binding.memory.write(self._tx.pages.paddr(page), virtio_net.TRANSMIT_HEADER + frame)
        self._tx.post(page, HEADER_BYTES + len(frame))
        self._tell(Queue.TRANSMIT, self._tx)
        self._take(self._tx)

    def receive(self) -> bytes:
        """The next frame, whoever it is for. Raises OSError: ETIMEDOUT where none comes, EIO."""
        self._start()
        queue = self._rx.queue
        if queue.untold >= _REFILL or queue.untold == queue.out:
            self._tell(Queue.RECEIVE, self._rx)
        page, length = self._take(self._rx)
        frame = self._binding.memory.read(self._rx.pages.paddr(page), length)[HEADER_BYTES:]
        try:
            if len(frame) < virtio_net.MIN_FRAME:
                raise OSError(EIO, f"{self._device.name}: a frame of {len(frame)} bytes")
            self._rx.post(page, PAGE)
        except OSError:
            self._stop()
            raise
        return frame

    # --- the device

    def _start(self) -> None:
        """Starts the device, with all receive pages, where it does not run."""
        if self._running:
            return
        self._device.set_bus_master(True)
        self._failed, self._running = False, True
        try:
            self._net.start(self._rx.places, self._tx.places, interrupts=True)
            for page in range(_POOL):
                self._rx.post(page, PAGE)
            self._tell(Queue.RECEIVE, self._rx)
        except OSError:
            self._stop()
            raise

    def _stop(self) -> None:
        """The device has no buffer any more, be it that it lets go of them or that it is off the bus."""
        self._running = False
        try:
            self._net.stop()
        except OSError as error:
            self._log(f"virtio-net: {error.strerror}")
            self._device.set_bus_master(False)
        self._rx.reset()
        self._tx.reset()

    def _tell(self, queue: Queue, side: _Side) -> None:
        """Publishes what was posted, and notifies the device where it wants to be."""
        side.queue.publish()
        if side.queue.wants_notification:
            self._net.notify(queue)

    def _take(self, side: _Side) -> tuple[int, int]:
        """Waits for a page of the queue to come back; whatever goes wrong stops the device."""
        taken: tuple[int, int] | None = None

        def done() -> bool:
            nonlocal taken
            taken = side.take()
            if taken is None and self._failed:
                raise OSError(EIO, f"{self._device.name}: the device needs a reset")
            return taken is not None

        try:
            self._binding.wait(done, "frame")
        except OSError:
            self._stop()
            raise
        assert taken is not None, "what a wait is over for"
        return taken

    def _configuration_changed(self) -> None:
        """Interrupt: the link has changed, or the device can do no more."""
        if not self._running:
            return
        try:
            self._failed = self._net.needs_reset
            link = self._net.link_up
        except OSError as error:
            self._log(f"virtio-net: {error.strerror}")
            self._failed = True
            return
        if link != self._link:
            self._link = link
            self._log(f"virtio-net {self._device.name}: link is {'up' if link else 'down'}")


def _awake() -> None:
    """The interrupt has done its work by waking the CPU."""
