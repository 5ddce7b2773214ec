"""Chains of descriptors, gathered from what a driver wrote: nothing in them is believed (virtio 1.2 section 2.7)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from viommu_actors.spec import vhost
from viommu_actors.spec.virtio import DESCRIPTOR, DescriptorFlag

#: Descriptors of one read.
_MOST: Final = vhost.MAX_ACCESS // DESCRIPTOR.size
#: Descriptors between two of interest that are read along: a read more costs more than so many bytes.
_GAP: Final = 16


class RingBroken(Exception):
    """What stands in a queue is nothing that the specification allows, or cannot be reached: it is over."""


class Chain(NamedTuple):
    """Buffers of a driver under the index of their first descriptor: (address, length), none of them empty."""

    head: int
    writable: bool
    segments: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Bytes, of all buffers."""
        return sum(length for _, length in self.segments)

    def part(self, start: int, size: int) -> Iterator[tuple[int, int]]:
        """(address, length) of the pieces that hold these of its bytes, each of one access at most."""
        for address, length in self.segments:
            if start < length:
                address, length = address + start, min(length - start, size)
                size -= length
                while length:
                    piece = min(length, vhost.MAX_ACCESS)
                    yield address, piece
                    address, length = address + piece, length - piece
                start = 0
            else:
                start -= length
            if not size:
                return


class ChainReader:
    """Puts a chain together, descriptor by descriptor."""

    def __init__(self, head: int, size: int) -> None:
        """`size`: of the queue. Raises RingBroken."""
        self._head = head
        self._size = size
        self._seen = 0
        self._writable = False
        self._segments: list[tuple[int, int]] = []
        #: The descriptor that it needs next.
        self.index = self._checked(head)

    def add(self, descriptor: tuple[int, int, int, int]) -> Chain | None:
        """The descriptor at `index`: (address, length, flags, next). The chain, if this is its last.

        Raises RingBroken.
        """
        address, length, flags, following = descriptor
        writable = bool(flags & DescriptorFlag.WRITE)
        if flags & DescriptorFlag.INDIRECT:
            raise RingBroken("an indirect descriptor, which was not negotiated")
        if self._seen and writable != self._writable:
            raise RingBroken("a chain to be read and to be written, which no network device has")
        self._writable = writable
        self._seen += 1
        if length:
            self._segments.append((address, length))
        if not flags & DescriptorFlag.NEXT:
            return Chain(self._head, writable, tuple(self._segments))
        if self._seen == self._size:
            raise RingBroken("a chain without an end")
        self.index = self._checked(following)
        return None

    def _checked(self, index: int) -> int:
        if index >= self._size:
            raise RingBroken(f"descriptor {index} of {self._size}")
        return index


def runs(indices: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of few reads of the table that bring the descriptors of `indices` in."""
    first = last = -1
    for index in sorted(indices):
        if first >= 0 and index <= last + _GAP and index - first < _MOST:
            last = index
            continue
        if first >= 0:
            yield first, last - first + 1
        first = last = index
    if first >= 0:
        yield first, last - first + 1
