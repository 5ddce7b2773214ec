"""Physical memory as its users see it: slots of RAM at physical addresses.

The same interface stands before a shared mapping, a byte array in a test or a recorded image.
Every access is bounds-checked; what no slot claims raises `Unclaimed`.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import Final, Protocol

_PAIR: Final = Struct("<QQ")
_BELOW_ALL: Final = -(1 << 64)
_NOTHING: Final = memoryview(bytearray())


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


class PhysicalMemory:
    """Slots that do not overlap, kept in address order."""

    def __init__(self, slots: list[Slot] | None = None) -> None:
        self._slots: list[Slot] = []
        # Below the first slot lies an empty one, so that each address has one which it is looked for in.
        self._bases: list[int] = [_BELOW_ALL]
        self._views: list[memoryview] = [_NOTHING]
        self._words: list[memoryview] = [_NOTHING]
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
        self._slots.insert(index - 1, slot)
        self._bases.insert(index, slot.base)
        view = slot.view.cast("B")
        self._views.insert(index, view)
        self._words.insert(index, view.cast("Q"))

    def release(self) -> None:
        """Lets go of every view, so that the mappings beneath can be closed."""
        for view in (*self._words[1:], *self._views[1:]):
            view.release()
        for each in (self._words, self._views, self._bases):
            del each[1:]
        self._slots.clear()

    def claims(self, address: int, length: int = 1) -> bool:
        index = bisect_right(self._bases, address) - 1
        return address + length <= self._bases[index] + len(self._views[index])

    # Walks and DMA live on these: each looks once, and only what the slot does not hold is looked at again.

    def read(self, address: int, length: int) -> bytes:
        index = bisect_right(self._bases, address) - 1
        start = address - self._bases[index]
        # Where the slot ends early, so do the bytes.
        data = self._views[index][start : start + length].tobytes()
        if len(data) == length:
            return data
        raise Unclaimed(address, length)

    def write(self, address: int, data: bytes) -> None:
        length = len(data)
        index = bisect_right(self._bases, address) - 1
        start = address - self._bases[index]
        try:
            self._views[index][start : start + length] = data
        except ValueError:  # the slot ends early: nothing was written
            raise Unclaimed(address, length) from None

    def read_u64(self, address: int) -> int:
        index = bisect_right(self._bases, address) - 1
        try:
            return self._words[index][address - self._bases[index] >> 3]
        except IndexError:
            raise Unclaimed(address, 8) from None

    def write_u64(self, address: int, value: int) -> None:
        index = bisect_right(self._bases, address) - 1
        try:
            self._words[index][address - self._bases[index] >> 3] = value
        except IndexError:
            raise Unclaimed(address, 8) from None

    def read_pair(self, address: int) -> tuple[int, int]:
        index = bisect_right(self._bases, address) - 1
        try:
            return _PAIR.unpack_from(self._views[index], address - self._bases[index])
        except (StructError, OverflowError):  # the slot ends early, or far below
            raise Unclaimed(address, 16) from None
