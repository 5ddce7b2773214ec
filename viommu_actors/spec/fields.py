"""Integer and byte-string fields of a message, with the range each may take.

A message class names these as annotations; the wire derives its encoder and its
validating decoder from them, so a range stands in one place; what one field allows another too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of an integer field."""

    low: int
    high: int


@dataclass(frozen=True)
class Length:
    """Inclusive bounds of the length of a byte string, text or sequence."""

    low: int
    high: int


@dataclass(frozen=True)
class OneOf:
    """The only values of an integer field."""

    values: tuple[int, ...]


@dataclass(frozen=True)
class Fits:
    """An integer field that has as many bytes as an earlier field of the message says."""

    size: str


U8 = Annotated[int, Range(0, 0xFF)]
U16 = Annotated[int, Range(0, 0xFFFF)]
U32 = Annotated[int, Range(0, 0xFFFF_FFFF)]
U64 = Annotated[int, Range(0, 0xFFFF_FFFF_FFFF_FFFF)]
#: Bytes of one access by a CPU.
AccessSize = Annotated[int, OneOf((1, 2, 4, 8))]
