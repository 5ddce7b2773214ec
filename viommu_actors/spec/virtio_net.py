"""The virtio network device (virtio 1.2 section 5.1): features, configuration, header of a frame."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

from viommu_actors.spec import virtio, virtio_pci

DEVICE_ID: Final = virtio_pci.DEVICE_ID_BASE + virtio.DeviceId.NETWORK


class Queue(IntEnum):
    """Virtqueues, as the driver sees them. No multiqueue, no control queue."""

    RECEIVE = 0
    TRANSMIT = 1


QUEUES: Final = len(Queue)
#: Descriptors that a queue has until the driver takes fewer (QEMU: VIRTIO_NET_RX_QUEUE_DEFAULT_SIZE).
QUEUE_SIZE: Final = 256


class Feature(IntFlag):
    """Features of the device type (section 5.1.3); those offered here and a few that are not."""

    MTU = 1 << 3
    MAC = 1 << 5
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    MQ = 1 << 22


class Config(IntEnum):
    """Offsets of the device configuration (section 5.1.4)."""

    MAC = 0
    STATUS = 6
    MAX_VIRTQUEUE_PAIRS = 8
    MTU = 10


CONFIG_BYTES: Final = 12
MAC_BYTES: Final = 6


class Status(IntFlag):
    """The configuration's `STATUS`."""

    LINK_UP = 1 << 0


class Vector(IntEnum):
    """MSI-X vectors that there are, in the order in which a driver takes them."""

    CONFIGURATION = 0
    RECEIVE = 1
    TRANSMIT = 2


#: Before each frame, either way: flags, GSO type, header length, GSO size, checksum start and offset, buffers.
HEADER: Final = struct.Struct("<BBHHHHH")
#: Of a frame to be transmitted without an offload, and of one that was received: one buffer.
TRANSMIT_HEADER: Final = bytes(HEADER.size)
RECEIVE_HEADER: Final = HEADER.pack(0, 0, 0, 0, 0, 0, 1)

#: Bytes of an Ethernet header; header and frame fit into one page.
MIN_FRAME: Final = 14
MAX_FRAME: Final = 4096 - HEADER.size
MTU: Final = MAX_FRAME - MIN_FRAME
