"""RAM of a recording: gigabytes that are zero but for a few pages."""

from __future__ import annotations

from collections.abc import Iterator

from viommu_actors.memory import Unclaimed
from viommu_actors.spec.vtd import PAGE_SIZE

_ZERO = bytes(PAGE_SIZE)
#: Pages that a transcript may write: 256 MiB.
PAGE_LIMIT = 1 << 16


class MemoryFull(Exception):
    """More is written than a transcript may fill."""


class SparseMemory:
    """RAM in half-open ranges, zero until written; a page exists from its first write on."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self._ranges = ranges
        self._pages: dict[int, bytearray] = {}

    def claims(self, address: int, length: int) -> bool:
        return any(low <= address and address + length <= high for low, high in self._ranges)

    def read(self, address: int, length: int) -> bytes:
        pages = self._pages
        return b"".join(
            pages.get(page, _ZERO)[offset : offset + count] for page, offset, count in self._pieces(address, length)
        )

    def write(self, address: int, data: bytes) -> None:
        done = 0
        for page, offset, count in self._pieces(address, len(data)):
            target = self._pages.get(page)
            if target is None:
                if len(self._pages) >= PAGE_LIMIT:
                    raise MemoryFull(f"writes more than {PAGE_LIMIT} pages")
                target = self._pages[page] = bytearray(PAGE_SIZE)
            target[offset : offset + count] = data[done : done + count]
            done += count

    def read_u64(self, address: int) -> int:
        page, offset = divmod(address, PAGE_SIZE)
        found = self._pages.get(page)
        if found is not None:
            return int.from_bytes(found[offset : offset + 8], "little")
        if not self.claims(address, 8):
            raise Unclaimed(address, 8)
        return 0

    def write_u64(self, address: int, value: int) -> None:
        self.write(address, value.to_bytes(8, "little"))

    def read_pair(self, address: int) -> tuple[int, int]:
        return self.read_u64(address), self.read_u64(address + 8)

    def _pieces(self, address: int, length: int) -> Iterator[tuple[int, int, int]]:
        if not self.claims(address, length):
            raise Unclaimed(address, length)
        while length:
            page, offset = divmod(address, PAGE_SIZE)
            count = min(length, PAGE_SIZE - offset)
            yield page, offset, count
            address, length = address + count, length - count
