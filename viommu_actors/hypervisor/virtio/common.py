"""The common configuration of a virtio device: what its driver reads and writes there (virtio 1.2 section 4.1.4.3).

Whatever is written, as QEMU's hw/virtio/virtio-pci.c has it: what does not fit changes nothing, and reads back so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from viommu_actors.hypervisor.virtio.front_end import Vring
from viommu_actors.spec import virtio_pci
from viommu_actors.spec.virtio import Feature, Status
from viommu_actors.spec.virtio_pci import NO_VECTOR, Common

_DWORD: Final = 0xFFFF_FFFF
#: Without these accepted, where they were offered, the device does not take a driver's features.
_REQUIRED: Final = Feature.VERSION_1 | Feature.ACCESS_PLATFORM
_RUNS: Final = Status.DRIVER_OK | Status.FEATURES_OK
#: Bytes of each register.
_SIZES: Final = {
    Common.DEVICE_FEATURE_SELECT: 4,
    Common.DEVICE_FEATURE: 4,
    Common.DRIVER_FEATURE_SELECT: 4,
    Common.DRIVER_FEATURE: 4,
    Common.CONFIG_MSIX_VECTOR: 2,
    Common.NUM_QUEUES: 2,
    Common.DEVICE_STATUS: 1,
    Common.CONFIG_GENERATION: 1,
    Common.QUEUE_SELECT: 2,
    Common.QUEUE_SIZE: 2,
    Common.QUEUE_MSIX_VECTOR: 2,
    Common.QUEUE_ENABLE: 2,
    Common.QUEUE_NOTIFY_OFF: 2,
    **dict.fromkeys(range(Common.QUEUE_DESC, virtio_pci.COMMON_BYTES, 4), 4),
}


@dataclass
class Queue:
    """Registers of one queue, and what they were when it was enabled. `addresses`: descriptors, available, used."""

    index: int
    size: int
    addresses: list[int]
    vector: int = NO_VECTOR
    enabled: Vring | None = None


class CommonConfig:
    """`settled()` is called whenever it may have changed whether the device `runs`, `broken(why)` when its driver has
    done what only a reset ends: `need_reset` is left to who hears of it.
    """

    def __init__(
        self,
        offered: int,
        sizes: Sequence[int],
        vectors: int,
        settled: Callable[[], None],
        broken: Callable[[str], None],
    ) -> None:
        """`offered` features; `sizes` of the queues, the largest that each may have."""
        self.offered = offered
        self.generation = 0
        self._sizes = sizes
        self._vectors = vectors
        self._settled = settled
        self._broken = broken
        self._clear()

    # --- what the device has of it

    @property
    def runs(self) -> bool:
        """Whether the driver wants its queues served."""
        return self.status & (_RUNS | Status.NEEDS_RESET) == _RUNS

    @property
    def vrings(self) -> list[Vring]:
        return [queue.enabled for queue in self.queues if queue.enabled is not None]

    @property
    def needs_reset(self) -> bool:
        return bool(self.status & Status.NEEDS_RESET)

    def take_driver_away(self) -> None:
        """The function may not do anything on its own any more: as in QEMU, it is as if the driver were not ready."""
        self.status &= ~Status.DRIVER_OK
        self._settled()

    def need_reset(self) -> None:
        """The device is in an error that only a reset ends (section 2.1.2). It has not settled yet."""
        self.status |= Status.NEEDS_RESET

    def reset(self) -> None:
        """By the driver, or with the function."""
        self.status = 0
        self._settled()
        self._clear()

    def _clear(self) -> None:
        self.status = 0
        self.features = 0
        self.config_vector = NO_VECTOR
        self.queues = [Queue(index, size, [0, 0, 0]) for index, size in enumerate(self._sizes)]
        self._written_features = [0, 0]
        self._device_select = self._driver_select = self._queue_select = 0

    # --- registers

    def read(self, offset: int) -> int:
        """The register that starts there; zero where none does."""
        queue = self._queue
        match offset:
            case Common.DEVICE_FEATURE_SELECT:
                return self._device_select
            case Common.DEVICE_FEATURE:
                return self.offered >> 32 * self._device_select & _DWORD if self._device_select < 2 else 0
            case Common.DRIVER_FEATURE_SELECT:
                return self._driver_select
            case Common.DRIVER_FEATURE:
                return self._written_features[self._driver_select] if self._driver_select < 2 else 0
            case Common.CONFIG_MSIX_VECTOR:
                return self.config_vector
            case Common.NUM_QUEUES:
                return len(self.queues)
            case Common.DEVICE_STATUS:
                return self.status
            case Common.CONFIG_GENERATION:
                return self.generation
            case Common.QUEUE_SELECT:
                return self._queue_select
            case Common.QUEUE_MSIX_VECTOR:
                return NO_VECTOR if queue is None else queue.vector
            case _:
                return 0 if queue is None else self._read_queue(queue, offset)

    def write(self, offset: int, value: int) -> None:
        """Writes the register that starts there."""
        if offset not in _SIZES:
            return
        value &= (1 << 8 * _SIZES[Common(offset)]) - 1
        match offset:
            case Common.DEVICE_FEATURE_SELECT:
                self._device_select = value
            case Common.DRIVER_FEATURE_SELECT:
                self._driver_select = value
            case Common.DRIVER_FEATURE:
                self._accept(value)
            case Common.CONFIG_MSIX_VECTOR:
                self.config_vector = self._vector(value)
            case Common.DEVICE_STATUS:
                self._write_status(value)
            case Common.QUEUE_SELECT:
                self._queue_select = value
            case _ if self._queue is not None:
                self._write_queue(self._queue, offset, value)

    @property
    def _queue(self) -> Queue | None:
        """The selected one; None where there is none."""
        return self.queues[self._queue_select] if self._queue_select < len(self.queues) else None

    def _accept(self, value: int) -> None:
        """Once the driver has settled on them, its features stay; those that were not offered are left out."""
        if self._driver_select > 1 or self.status & Status.FEATURES_OK:
            return
        self._written_features[self._driver_select] = value
        low, high = self._written_features
        self.features = (low | high << 32) & self.offered

    def _vector(self, value: int) -> int:
        return value if value < self._vectors else NO_VECTOR

    def _write_status(self, value: int) -> None:
        if not value:
            self.reset()
            return
        settles = value & Status.FEATURES_OK & ~self.status
        if settles and self.offered & _REQUIRED & ~self.features:
            return
        self.status = value | self.status & Status.NEEDS_RESET
        self._settled()

    def _read_queue(self, queue: Queue, offset: int) -> int:
        match offset:
            case Common.QUEUE_SIZE:
                return queue.size
            case Common.QUEUE_ENABLE:
                return int(queue.enabled is not None)
            case Common.QUEUE_NOTIFY_OFF:
                return queue.index
        number, upper = _address_half(offset)
        return queue.addresses[number] >> 32 * upper & _DWORD if number in range(3) else 0

    def _write_queue(self, queue: Queue, offset: int, value: int) -> None:
        match offset:
            case Common.QUEUE_SIZE:
                if 0 < value <= self._sizes[queue.index] and not value & value - 1:
                    queue.size = value
                return
            case Common.QUEUE_MSIX_VECTOR:
                queue.vector = self._vector(value)
                return
            case Common.QUEUE_ENABLE:
                if value == 1:
                    queue.enabled = Vring(queue.index, queue.size, *queue.addresses)
                else:
                    self._broken(f"queue {queue.index} is to be disabled by {value}, which only a reset does")
                return
        number, upper = _address_half(offset)
        if number in range(3):
            kept = queue.addresses[number] & ~(_DWORD << 32 * upper)
            queue.addresses[number] = kept | value << 32 * upper


def _address_half(offset: int) -> tuple[int, int]:
    """Which address of a queue a register belongs to, and whether it is its upper half."""
    number, rest = divmod(offset - Common.QUEUE_DESC, Common.QUEUE_DRIVER - Common.QUEUE_DESC)
    return number if rest in (0, 4) else -1, rest // 4
