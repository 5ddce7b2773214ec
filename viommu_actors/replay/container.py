"""A device's container at the other end of map and unmap messages, and what guest tables would have in it."""

from __future__ import annotations

from errno import EEXIST, ENOENT
from itertools import pairwise
from typing import NamedTuple


class Piece(NamedTuple):
    """Addresses first to end (exclusive) and the memory behind; `gpa` None is ROM, which a recording does not name."""

    first: int
    end: int
    gpa: int | None
    access: str
    """"r", "w" or "rw"."""

    def part(self, first: int, end: int) -> Piece:
        """What of it lies in first..end, which must overlap it."""
        start = max(first, self.first)
        return Piece(
            start, min(end, self.end), None if self.gpa is None else self.gpa + start - self.first, self.access
        )


class Container:
    """Mappings by address. A `strict` server refuses an overlapping map and an unmap that holds no whole mapping."""

    def __init__(self, strict: bool = False) -> None:
        self._strict = strict
        self._pieces: list[Piece] = []

    def map(self, piece: Piece) -> None:
        """Raises FileExistsError where the server is strict and something is there; else replaces it."""
        if self._strict and self._overlapping(piece.first, piece.end):
            raise FileExistsError(EEXIST, "overlaps a mapping")
        self._cut(piece.first, piece.end)
        self._pieces.append(piece)

    def unmap(self, first: int, end: int) -> None:
        """Raises FileNotFoundError where the server is strict and no whole mapping is there; else splits mappings."""
        if not self._strict:
            self._cut(first, end)
            return
        whole = [piece for piece in self._pieces if first <= piece.first and piece.end <= end]
        if not whole:
            raise FileNotFoundError(ENOENT, "no whole mapping in the range")
        self._pieces = [piece for piece in self._pieces if piece not in whole]

    def at(self, address: int) -> Piece | None:
        """What is at one address, from there on."""
        for piece in self._overlapping(address, address + 1):
            return piece.part(address, piece.end)
        return None

    def pieces(self, first: int = 0, end: int = 1 << 64) -> list[Piece]:
        """What is held in first..end, ascending, in the fewest pieces."""
        return merged([piece.part(first, end) for piece in self._overlapping(first, end)])

    def _cut(self, first: int, end: int) -> None:
        kept = [piece for piece in self._pieces if piece.end <= first or end <= piece.first]
        if len(kept) == len(self._pieces):
            return
        for piece in self._overlapping(first, end):
            if piece.first < first:
                kept.append(piece.part(piece.first, first))
            if end < piece.end:
                kept.append(piece.part(end, piece.end))
        self._pieces = kept

    def _overlapping(self, first: int, end: int) -> list[Piece]:
        return [piece for piece in self._pieces if piece.first < end and first < piece.end]


def merged(pieces: list[Piece]) -> list[Piece]:
    """Neighbours that continue each other as one."""
    runs: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.first):
        if runs:
            last = runs[-1]
            follows = piece.gpa is None if last.gpa is None else piece.gpa == last.gpa + piece.first - last.first
            if last.end == piece.first and last.access == piece.access and follows:
                runs[-1] = last._replace(end=piece.end)
                continue
        runs.append(piece)
    return runs


def apart(one: list[Piece], other: list[Piece]) -> list[tuple[int, int]]:
    """Ranges (first, end) where two containers hold different things, ascending; both in the fewest pieces."""
    edges = sorted({edge for piece in (*one, *other) for edge in (piece.first, piece.end)})
    ranges = []
    ones, others = iter(one), iter(other)
    a, b = next(ones, None), next(others, None)
    for first, end in pairwise(edges):
        while a is not None and a.end <= first:
            a = next(ones, None)
        while b is not None and b.end <= first:
            b = next(others, None)
        here = a.part(first, end) if a is not None and a.first < end else None
        there = b.part(first, end) if b is not None and b.first < end else None
        if here != there:
            ranges.append((first, end))
    return ranges


def outside(spans: list[tuple[int, int]], ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of the ranges that lie in none of the spans."""
    for low, high in spans:
        ranges = [
            part
            for first, end in ranges
            for part in ((first, min(end, low)), (max(first, high), end))
            if part[0] < part[1]
        ]
    return ranges
