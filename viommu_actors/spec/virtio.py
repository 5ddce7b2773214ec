"""Virtio 1.2: device status, feature bits and the split virtqueue, for any device and transport.

https://docs.oasis-open.org/virtio/virtio/v1.2/virtio-v1.2.html, sections 2.1, 2.7 and 6. All of it is little-endian.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple


class Status(IntFlag):
    """Device status (section 2.1). Zero is a reset."""

    ACKNOWLEDGE = 1 << 0
    DRIVER = 1 << 1
    DRIVER_OK = 1 << 2
    FEATURES_OK = 1 << 3
    NEEDS_RESET = 1 << 6
    FAILED = 1 << 7


class Feature(IntFlag):
    """Features of the queues and of virtio itself (section 6); those of a device stand in its own layout."""

    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    #: The device's addresses are IOVAs: what the platform's IOMMU translates (VIRTIO_F_IOMMU_PLATFORM of old).
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35


# --- split virtqueue (section 2.7)

#: Descriptors of a queue, a power of two (section 2.7).
MAX_QUEUE_SIZE: Final = 32768
DESCRIPTORS_ALIGNMENT: Final = 16
AVAILABLE_ALIGNMENT: Final = 2
USED_ALIGNMENT: Final = 4

#: Address (8 bytes), length (4), flags (2), index of the next (2).
DESCRIPTOR: Final = struct.Struct("<QIHH")
#: Head of both rings: flags, and where the next entry goes, counted modulo 2^16.
RING_HEAD: Final = struct.Struct("<HH")
RING_FLAGS: Final = 0
RING_INDEX: Final = 2
RING_ENTRIES: Final = RING_HEAD.size
#: The flags, or the index, of a ring, and an entry of the available ring: the head of a chain.
U16: Final = struct.Struct("<H")
#: Entry of the used ring: the head of a chain (4 bytes), and how many bytes were written into it (4).
USED_ENTRY: Final = struct.Struct("<II")
INDEX_MASK: Final = 0xFFFF


class Descriptor(NamedTuple):
    """One entry of the descriptor table; `length` in bytes."""

    address: int
    length: int
    flags: int
    next: int

    @classmethod
    def unpack(cls, data: bytes) -> Descriptor:
        return cls(*DESCRIPTOR.unpack(data))

    def pack(self) -> bytes:
        return DESCRIPTOR.pack(*self)


class DescriptorFlag(IntFlag):
    NEXT = 1 << 0
    #: For the device to write; else for it to read.
    WRITE = 1 << 1
    INDIRECT = 1 << 2


class AvailableFlag(IntFlag):
    #: The driver wants no interrupt when buffers are used; the device may raise one all the same.
    NO_INTERRUPT = 1 << 0


class UsedFlag(IntFlag):
    #: The device wants no notification when buffers are available; the driver may send one all the same.
    NO_NOTIFY = 1 << 0


def descriptors_size(size: int) -> int:
    """Bytes of the descriptor table of a queue of `size`."""
    return DESCRIPTOR.size * size


def available_size(size: int) -> int:
    """Bytes of the available ring, without the event index that is not negotiated."""
    return RING_HEAD.size + U16.size * size


def used_size(size: int) -> int:
    """Bytes of the used ring, without the event index that is not negotiated."""
    return RING_HEAD.size + USED_ENTRY.size * size


class DeviceId(IntEnum):
    """Device types (section 5)."""

    NETWORK = 1
