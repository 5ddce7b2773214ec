"""Physical memory as its users see it: slots of RAM at physical addresses.

The same interface stands before a shared mapping, a byte array in a test or a recorded image.
Every access is bounds-checked; what no slot claims raises `Unclaimed`.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple, Protocol

_PAIR: Final = Struct("<QQ")


class Unclaimed(Exception):
    """No RAM answers at this physical address."""

    def __init__(self, address: int, length: int) -> None:
        super().__init__(f"no memory at {address:#x} for {length} bytes")
        self.address = address
        self.length = length


class Memory(Protocol):
    """Byte-addressed little-endian memory. Every method raises `Unclaimed` outside RAM."""

    def read(self, address: int, length: int) -> bytes: ...

    def write(self, address: int, data: bytes) -> None: ...

    def read_u64(self, address: int) -> int:
        """`address` must be a multiple of 8."""
        ...

    def write_u64(self, address: int, value: int) -> None:
        """`address` must be a multiple of 8."""
        ...

    def read_pair(self, address: int) -> tuple[int, int]:
        """Two words beside each other, the lower one first, as most entries of hardware's tables and queues have them.
        `address` must be a multiple of 8."""
        ...


@dataclass(frozen=True)
class Slot:
    """RAM of one owner at [base, base + len(view)); base and length are multiples of 4 KiB."""

    name: str
    base: int
    view: memoryview

    @property
    def size(self) -> int:
        return len(self.view)


class _Place(NamedTuple):
    """A slot as it is accessed."""

    base: int
    size: int
    view: memoryview
    words: memoryview


class PhysicalMemory:
    """Slots that do not overlap, kept in address order."""

    def __init__(self, slots: list[Slot] | None = None) -> None:
        self._slots: list[Slot] = []
        self._bases: list[int] = []
        self._places: list[_Place] = []
        # The place at hand: that of the last access, for the next one is mostly beside it.
        self._base = self._size = 0
        self._view = self._words = memoryview(b"")
        for slot in slots or []:
            self.add(slot)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(self._slots)

    def add(self, slot: Slot) -> None:
        """Raises ValueError where the slot is misaligned or overlaps another."""
        if slot.base % 4096 or slot.size % 4096 or not slot.size:
            raise ValueError(f"slot {slot.name} is not made of whole pages")
        for other in self._slots:
            if slot.base < other.base + other.size and other.base < slot.base + slot.size:
                raise ValueError(f"slot {slot.name} overlaps {other.name}")
        index = bisect_right(self._bases, slot.base)
        self._slots.insert(index, slot)
        self._bases.insert(index, slot.base)
        view = slot.view.cast("B")
        self._places.insert(index, _Place(slot.base, slot.size, view, view.cast("Q")))

    def release(self) -> None:
        """Lets go of every view, so that the mappings beneath can be closed."""
        for place in self._places:
            place.words.release()
            place.view.release()
        self._places.clear()
        self._slots.clear()
        self._bases.clear()
        self._size = 0

    def claims(self, address: int, length: int = 1) -> bool:
        index = bisect_right(self._bases, address) - 1
        return index >= 0 and address + length <= self._bases[index] + self._places[index].size

    # Walks and DMA live on these five, which is why each has the place at hand looked at in its own lines.

    def read(self, address: int, length: int) -> bytes:
        start = address - self._base
        if not 0 <= start < self._size:
            start = self._turn_to(address, length)
        # Where the slot ends early, so do the bytes.
        data = self._view[start : start + length].tobytes()
        if len(data) == length:
            return data
        raise Unclaimed(address, length)

    def write(self, address: int, data: bytes) -> None:
        length = len(data)
        start = address - self._base
        if not 0 <= start < self._size:
            start = self._turn_to(address, length)
        try:
            self._view[start : start + length] = data
        except ValueError:  # the slot ends early: nothing was written
            raise Unclaimed(address, length) from None

    def read_u64(self, address: int) -> int:
        start = address - self._base
        if not 0 <= start < self._size:
            start = self._turn_to(address, 8)
        return self._words[start >> 3]

    def write_u64(self, address: int, value: int) -> None:
        start = address - self._base
        if not 0 <= start < self._size:
            start = self._turn_to(address, 8)
        self._words[start >> 3] = value

    def read_pair(self, address: int) -> tuple[int, int]:
        start = address - self._base
        if not 0 <= start < self._size:
            start = self._turn_to(address, 16)
        try:
            return _PAIR.unpack_from(self._view, start)
        except StructError:  # the slot ends early
            raise Unclaimed(address, 16) from None

    def _turn_to(self, address: int, length: int) -> int:
        """Takes the place of an access to hand; where in it the access begins. Raises Unclaimed."""
        index = bisect_right(self._bases, address) - 1
        if index < 0 or address >= self._bases[index] + self._places[index].size:
            raise Unclaimed(address, length)
        self._base, self._size, self._view, self._words = self._places[index]
        return address - self._base
