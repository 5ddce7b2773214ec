"""The driver's end of a split virtqueue (virtio 1.2 section 2.7), for buffers of one descriptor each.

The device is not trusted: what it writes into the used ring is read once, and checked before it is used.
"""

from __future__ import annotations

from errno import EIO
from typing import Generic, NamedTuple, TypeVar

from viommu_actors.memory import Memory
from viommu_actors.spec import virtio
from viommu_actors.spec.virtio import INDEX_MASK, RING_ENTRIES, RING_FLAGS, RING_INDEX, U16, USED_ENTRY

T = TypeVar("T")


class Places(NamedTuple):
    """Addresses of the three parts of a queue of `size` descriptors."""

    size: int
    descriptors: int
    available: int
    used: int

    @classmethod
    def at(cls, base: int, size: int) -> Places:
        """One behind the other from `base` on, which is a multiple of 16."""
        available = base + virtio.descriptors_size(size)
        end = available + virtio.available_size(size)
        return cls(size, base, available, -(-end // virtio.USED_ALIGNMENT) * virtio.USED_ALIGNMENT)

    @property
    def end(self) -> int:
        return self.used + virtio.used_size(self.size)


class Virtqueue(Generic[T]):
    """Buffers go out with a token of the driver's, which comes back with the buffer."""

    def __init__(self, memory: Memory, base: int, size: int, *, interrupts: bool) -> None:
        """In `memory` from `base` on. `interrupts`: whether the driver wants one when a buffer is used."""
        self._memory = memory
        self._places = Places.at(base, size)
        self._flags = virtio.AvailableFlag(0) if interrupts else virtio.AvailableFlag.NO_INTERRUPT
        #: what the device has, by descriptor: the token, and how many bytes it may write into the buffer
        self._out: dict[int, tuple[T, int]] = {}
        self._free: list[int] = []
        #: posted descriptors that it was not told of
        self._untold: set[int] = set()
        # Indices of the rings, modulo 2^16: the next entry to fill, the next one that the device uses.
        self._filled = self._used = 0
        self.reset()

    @property
    def room(self) -> int:
        """How many more buffers may be posted."""
        return len(self._free)

    @property
    def out(self) -> int:
        """How many buffers are posted, and not back."""
        return len(self._out)

    @property
    def untold(self) -> int:
        """How many of them the device does not know of: no `publish` came after."""
        return len(self._untold)

    @property
    def wants_notification(self) -> bool:
        """Whether the device is to be notified of what was published (section 2.7.10)."""
        # No barrier stands between the store of the index and this load, as one would on hardware: a device that has
        # just asked for notifications looks at the index by a message, long after the store is to be seen.
        flags = U16.unpack(self._memory.read(self._places.used + RING_FLAGS, U16.size))[0]
        return not flags & virtio.UsedFlag.NO_NOTIFY

    def post(self, address: int, length: int, token: T, *, writable: bool) -> None:
        """Gives the device a buffer, by its address for the device: to write or to read. There is `room`."""
        places, memory = self._places, self._memory
        index = self._free.pop()
        descriptor = virtio.Descriptor(address, length, virtio.DescriptorFlag.WRITE if writable else 0, 0)
        memory.write(places.descriptors + index * virtio.DESCRIPTOR.size, descriptor.pack())
        entry = places.available + RING_ENTRIES + self._filled % places.size * U16.size
        memory.write(entry, U16.pack(index))
        self._out[index] = token, length if writable else 0
        self._untold.add(index)
        self._filled = self._filled + 1 & INDEX_MASK

    def publish(self) -> None:
        """Lets the device see what was posted."""
        self._untold.clear()
        self._memory.write(self._places.available + RING_INDEX, U16.pack(self._filled))

    def take(self) -> tuple[T, int] | None:
        """A buffer that is back, and how many bytes were written into it; None where there is none.

        Raises OSError(EIO) where the used ring cannot be true: nothing of the device is to be believed then.
        """
        places, memory = self._places, self._memory
        index = U16.unpack(memory.read(places.used + RING_INDEX, U16.size))[0]
        waiting = index - self._used & INDEX_MASK
        if not waiting:
            return None
        told = len(self._out) - len(self._untold)
        if waiting > told:
            raise OSError(EIO, f"the device has used {waiting} buffers of {told}")
        place = places.used + RING_ENTRIES + self._used % places.size * USED_ENTRY.size
        descriptor, length = USED_ENTRY.unpack(memory.read(place, USED_ENTRY.size))
        if descriptor not in self._out or descriptor in self._untold:
            raise OSError(EIO, f"the device has used descriptor {descriptor}, which it does not have")
        token, writable = self._out[descriptor]
        if length > writable:
            raise OSError(EIO, f"the device has written {length} bytes into a buffer for {writable}")
        del self._out[descriptor]
        self._free.append(descriptor)
        self._used = self._used + 1 & INDEX_MASK
        return token, length

    def reset(self) -> list[T]:
        """Empty again, as the device's end is after its reset; the tokens of what was out, oldest first."""
        places = self._places
        out = [token for token, _ in self._out.values()]
        self._memory.write(places.descriptors, bytes(places.end - places.descriptors))
        self._memory.write(places.available + RING_FLAGS, U16.pack(self._flags))
        self._out.clear()
        self._untold.clear()
        self._free[:] = range(places.size - 1, -1, -1)
        self._filled = self._used = 0
        return out
