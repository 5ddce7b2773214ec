"""The bits of a device's configuration space that the hypervisor decides instead of the device."""

from __future__ import annotations

from typing import NamedTuple

_DWORD_MASK = 0xFFFF_FFFF


class Decision(NamedTuple):
    """Bits `mask` of the dword at `offset` read as `value`; `why` is for people."""

    offset: int
    mask: int
    value: int
    why: str


class Overlay:
    """Bits by dword; the last word on a bit holds."""

    def __init__(self) -> None:
        self._bits: dict[int, tuple[int, int]] = {}
        self._why: dict[tuple[int, str], Decision] = {}

    def decide(self, offset: int, mask: int, value: int, why: str) -> None:
        """From here on these bits, counted from byte `offset`, are the hypervisor's."""
        base, shift = offset & ~3, (offset & 3) * 8
        mask, value = mask << shift & _DWORD_MASK, value << shift & _DWORD_MASK
        old_mask, old = self._bits.get(base, (0, 0))
        self._bits[base] = (old_mask | mask, old & ~mask | value & mask)
        _, known, before, _ = self._why.get((base, why), Decision(base, 0, 0, why))
        self._why[base, why] = Decision(base, known | mask, before & ~mask | value & mask, why)

    def at(self, base: int) -> tuple[int, int]:
        """(mask, value) of the dword at `base`."""
        return self._bits.get(base, (0, 0))

    def decisions(self) -> list[Decision]:
        """One for each dword and reason, in the order in which they were first taken."""
        return list(self._why.values())
