"""The vhost protocol, between the hypervisor (front end) and the virtual switch (back end of a virtio device).

After vhost-user (https://www.qemu.org/docs/master/interop/vhost-user.html, linux/vhost_types.h), one connection for
each device. Unlike there no memory is shared: what the back end does to guest memory are messages too, each translated
and judged by the front end. Addresses and sizes are in bytes; addresses of rings, buffers and of the device-IOTLB are
IOVAs where VIRTIO_F_ACCESS_PLATFORM is negotiated, else guest-physical.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated, Final, NamedTuple

from viommu_actors.spec import virtio, virtio_net
from viommu_actors.spec.fields import U8, U16, U32, U64, Length, Range


class Access(IntFlag):
    """Leave that a device-IOTLB entry gives, or that a miss asks for (VHOST_ACCESS_RO, WO, RW)."""

    READ = 1 << 0
    WRITE = 1 << 1
    BOTH = READ | WRITE


class ReadStatus(IntEnum):
    """What became of a read of guest memory."""

    DONE = 0
    #: The vIOMMU blocked it, nothing is there, or the front end has cut its back end off.
    FAILED = 1


#: Bytes of one read or write of guest memory.
MAX_ACCESS: Final = 4096
#: Reads that a back end may have on the way at a time, each with a tag of its own below this.
MAX_TAGS: Final = 1024

Queue = Annotated[int, Range(0, virtio_net.QUEUES - 1)]
Tag = Annotated[int, Range(0, MAX_TAGS - 1)]
Leave = Annotated[int, Range(int(Access.READ), int(Access.BOTH))]
AccessBytes = Annotated[int, Range(1, MAX_ACCESS)]
#: Of a range of the device-IOTLB, which may be all of an address space.
Size = Annotated[int, Range(1, 0xFFFF_FFFF_FFFF_FFFF)]


# hypervisor -> switch


class GetFeatures(NamedTuple):
    """VHOST_USER_GET_FEATURES: what the back end can do; answered by Features.

    The first message of a connection: of one before it the back end keeps nothing.
    """


class SetFeatures(NamedTuple):
    """VHOST_USER_SET_FEATURES: what was negotiated with the driver."""

    features: U64


class SetVring(NamedTuple):
    """VHOST_USER_SET_VRING_NUM, _ADDR and _BASE: a queue, not started yet.

    `base` is where it goes on in the available ring, and in the used one too: the back end uses buffers in order.
    """

    queue: Queue
    size: Annotated[int, Range(1, virtio.MAX_QUEUE_SIZE)]
    descriptors: U64
    available: U64
    used: U64
    base: U16


class StartVring(NamedTuple):
    """VHOST_USER_SET_VRING_ENABLE 1: the back end may access the queue from here on."""

    queue: Queue


class StopVring(NamedTuple):
    """VHOST_USER_GET_VRING_BASE: the queue stops; answered by VringBase, after which nothing of it is accessed."""

    queue: Queue


class Kick(NamedTuple):
    """The driver has notified the device: there are buffers in the available ring."""

    queue: Queue


class IotlbUpdate(NamedTuple):
    """VHOST_IOTLB_UPDATE: the device-IOTLB may hold this from here on. `address` is guest-physical."""

    iova: U64
    size: Size
    address: U64
    access: Leave


class IotlbInvalidate(NamedTuple):
    """VHOST_IOTLB_INVALIDATE: whatever overlaps the range is to be forgotten, then answered by IotlbInvalidated."""

    sequence: U32
    iova: U64
    size: Size


class ReadCompletion(NamedTuple):
    """Answer to the MemoryRead of this tag: a `ReadStatus`, and the data if it was done."""

    tag: Tag
    status: U8
    data: Annotated[bytes, Length(0, MAX_ACCESS)]


class Reset(NamedTuple):
    """VHOST_USER_RESET_DEVICE: queues, features and the device-IOTLB are as at first. No answer."""


# switch -> hypervisor


class Features(NamedTuple):
    """What the back end can do: `spec.virtio` and `spec.virtio_net` features."""

    features: U64


class VringBase(NamedTuple):
    """A queue has stopped; `base` is where it would have gone on."""

    queue: Queue
    base: U16


class IotlbMiss(NamedTuple):
    """VHOST_IOTLB_MISS: answered by an IotlbUpdate, or not at all where the vIOMMU gives no such leave."""

    iova: U64
    access: Leave


class IotlbAccessFail(NamedTuple):
    """VHOST_IOTLB_ACCESS_FAIL: what the device-IOTLB holds does not give the leave that an access needs."""

    iova: U64
    size: Size
    access: Leave


class IotlbInvalidated(NamedTuple):
    """The invalidation of this sequence number is done: nothing that it concerns is accessed any more."""

    sequence: U32


class VringError(NamedTuple):
    """VHOST_USER_SET_VRING_ERR's event: what stands in the queue is none, and it is served no more until it is set up
    anew."""

    queue: Queue


class MemoryRead(NamedTuple):
    """Read of guest memory; answers come in the order of the reads."""

    tag: Tag
    iova: U64
    size: AccessBytes


class MemoryWrite(NamedTuple):
    """Posted write of guest memory, in order with all else on this wire; ends before the first page that is blocked."""

    iova: U64
    data: Annotated[bytes, Length(1, MAX_ACCESS)]


class Call(NamedTuple):
    """The back end has used buffers and the driver wants to hear of it: an interrupt."""

    queue: Queue
