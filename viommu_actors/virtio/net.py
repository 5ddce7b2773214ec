"""A virtio network device in the hands of a driver (virtio 1.2 section 5.1): what it is, and its two queues."""

from __future__ import annotations

from errno import ENODEV
from typing import Final, NamedTuple

from viommu_actors.spec import virtio, virtio_net, virtio_pci
from viommu_actors.spec.virtio_net import Config, Feature, Queue, Vector
from viommu_actors.virtio.pci import Registers, VirtioPci
from viommu_actors.virtio.virtqueue import Places

#: (vendor, device) of what these drivers take.
IDENTITY: Final = (virtio_pci.VENDOR_ID, virtio_net.DEVICE_ID)
HEADER_BYTES: Final = virtio_net.HEADER.size
#: Bytes of the smallest MTU (RFC 791).
_MIN_MTU: Final = 68
_WANTED: Final = (
    virtio.Feature.VERSION_1 | virtio.Feature.ACCESS_PLATFORM | Feature.MAC | Feature.STATUS | Feature.MTU
)


class Identity(NamedTuple):
    """What the device told of itself; `max_frame` in bytes, from the frame's destination on."""

    mac: bytes
    max_frame: int


class VirtioNet:
    """One device, between its reset and its next one."""

    def __init__(self, registers: Registers, name: str) -> None:
        """Raises OSError: ENODEV, EIO where no virtio network device answers."""
        self._pci = VirtioPci(registers, name)
        self._has_status = False
        self.identity = self._identify()

    def start(self, receive: Places, transmit: Places, *, interrupts: bool) -> None:
        """Resets it and gives it its queues; it works from here on. Without interrupts, no vector is used.

        Raises OSError as `VirtioPci` does, the device then does nothing.
        """
        self._negotiate()
        vectors = list(Vector) if interrupts else [virtio_pci.NO_VECTOR] * len(Vector)
        self._pci.set_config_vector(vectors[Vector.CONFIGURATION])
        self._pci.set_queue(Queue.RECEIVE, receive, vectors[Vector.RECEIVE])
        self._pci.set_queue(Queue.TRANSMIT, transmit, vectors[Vector.TRANSMIT])
        self._pci.set_driver_ok()

    def stop(self) -> None:
        """It is done with all buffers. Raises OSError(EIO) where that never comes."""
        self._pci.reset()

    def notify(self, queue: Queue) -> None:
        """There are buffers in the queue."""
        self._pci.notify(queue)

    @property
    def needs_reset(self) -> bool:
        """Whether it does nothing any more until it is started again."""
        return self._pci.needs_reset

    @property
    def link_up(self) -> bool:
        """Whether somebody serves it; a device that does not tell is always up (section 5.1.4.2)."""
        if not self._has_status:
            return True
        return bool(self._pci.configuration((Config.STATUS, 2))[0] & virtio_net.Status.LINK_UP)

    def _identify(self) -> Identity:
        """Leaves the device reset."""
        taken = self._negotiate()
        if not taken & Feature.MAC:
            raise OSError(ENODEV, f"{self._pci.name}: the device has no MAC address of its own")
        low, high = self._pci.configuration((Config.MAC, 4), (Config.MAC + 4, 2))
        max_frame = virtio_net.MAX_FRAME
        if taken & Feature.MTU:
            (mtu,) = self._pci.configuration((Config.MTU, 2))
            if mtu < _MIN_MTU:
                raise OSError(ENODEV, f"{self._pci.name}: an MTU of {mtu} bytes is too small")
            max_frame = min(max_frame, mtu + virtio_net.MIN_FRAME)
        self._pci.reset()
        return Identity((low | high << 32).to_bytes(virtio_net.MAC_BYTES, "little"), max_frame)

    def _negotiate(self) -> int:
        self._pci.reset()
        taken = self._pci.negotiate(_WANTED)
        self._has_status = bool(taken & Feature.STATUS)
        return taken
