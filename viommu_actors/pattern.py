"""Content for honest transfers: bytes that tell when they went astray."""

from __future__ import annotations

import random

_LONGEST = 4096
_NOISE = random.Random(0x5EED).randbytes(2 * _LONGEST)


def pattern(sequence: int, size: int) -> bytes:
    """`size` bytes (8 to 4096) that differ for each sequence number."""
    start = sequence * 61 % _LONGEST
    return sequence.to_bytes(8, "little") + _NOISE[start : start + size - 8]
