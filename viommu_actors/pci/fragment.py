"""Byte ranges to memory requests and back: lengths in dwords, byte enables, 4 KiB and size limits.

PCI Express Base 5.0 sections 2.2.5 (byte enables) and 2.2.7 (memory requests).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from viommu_actors.spec.tlp import BOUNDARY, DWORD, MAX_DWORDS

_ADDRESS_SPACE = 1 << 64
#: First byte enables of a request of several dwords that leave no hole: the upper bytes of the dword.
_UPPER = frozenset({0b1000, 0b1100, 0b1110, 0b1111})
#: Last byte enables that leave no hole: the lower bytes of the dword.
_LOWER = frozenset({0b0001, 0b0011, 0b0111, 0b1111})


class Fragment(NamedTuple):
    """One request's share of a byte range: `offset` and `length` say which bytes of the range it moves.

    They stand `lead` bytes behind the request's dword aligned address.
    """

    address: int
    dwords: int
    first_be: int
    last_be: int
    offset: int
    length: int
    lead: int


def fragments(address: int, length: int, limit: int) -> Iterator[Fragment]:
    """Splits `length` bytes at `address` at each multiple of `limit` (bytes: 128..4096, a power of two).

    So no request is longer than `limit` or crosses 4 KiB. Addresses wrap at 2^64, as a device's adder does.
    """
    offset = 0
    while offset < length:
        start = (address + offset) % _ADDRESS_SPACE
        size = min(length - offset, limit - start % limit)
        first_be, last_be, dwords = enables(start, size)
        yield Fragment(start & ~3, dwords, first_be, last_be, offset, size, start & 3)
        offset += size


def enables(address: int, length: int) -> tuple[int, int, int]:
    """(first byte enables, last byte enables, dwords) of one request for a range of at least one byte."""
    lead = address & 3
    dwords = (lead + length + 3) >> 2
    trail = (lead + length) & 3 or DWORD
    if dwords == 1:
        return 0xF << lead & 0xF & ((1 << trail) - 1), 0, 1
    return 0xF << lead & 0xF, (1 << trail) - 1, dwords


def well_formed(address: int, dwords: int, first_be: int, last_be: int) -> bool:
    """Whether a memory request keeps to the rules for lengths, boundaries and byte enables."""
    if address & 3 or not 1 <= dwords <= MAX_DWORDS or (address & BOUNDARY - 1) + dwords * DWORD > BOUNDARY:
        return False
    if dwords == 1:
        return last_be == 0
    if not first_be or not last_be:
        return False
    if dwords == 2 and not address & 7:
        return True
    return first_be in _UPPER and last_be in _LOWER


def byte_count(dwords: int, first_be: int, last_be: int) -> int:
    """Bytes from the first to the last enabled one; a zero-length request counts one (section 2.3.1.1)."""
    if not first_be:
        return 1
    lead = (first_be & -first_be).bit_length() - 1
    last = last_be if dwords > 1 else first_be
    return (dwords - 1) * DWORD + last.bit_length() - lead


def enabled_ranges(dwords: int, first_be: int, last_be: int) -> list[tuple[int, int]]:
    """Maximal runs [start, stop) of enabled bytes, relative to the request's address."""
    flags = first_be
    if dwords > 1:
        inner = (1 << (dwords - 2) * DWORD) - 1 if dwords > 2 else 0
        flags |= inner << DWORD | last_be << (dwords - 1) * DWORD
    ranges: list[tuple[int, int]] = []
    start = 0
    while flags:
        skip = (flags & -flags).bit_length() - 1
        flags >>= skip
        run = (~flags & flags + 1).bit_length() - 1
        ranges.append((start + skip, start + skip + run))
        flags >>= run
        start += skip + run
    return ranges
