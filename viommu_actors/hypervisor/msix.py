"""MSI-X of an assigned device: table and pending bits trap, the device's own are the parent kernel's.

PCI 3.0 section 6.8.2.
"""

from __future__ import annotations

from viommu_actors.hypervisor.vectors import Vectors
from viommu_actors.spec import pci

_ALL_ONES = 0xFFFF_FFFF
_WRITABLE = pci.MSIX_ENABLE | pci.MSIX_FUNCTION_MASK


class Msix:
    """The capability at `offset`, read from the device as `raw` configuration space."""

    def __init__(self, vectors: Vectors, offset: int, raw: bytes) -> None:
        def dword(at: int) -> int:
            return int.from_bytes(raw[offset + at : offset + at + 4], "little")

        self.vectors = vectors
        self._offset = offset
        self._control = dword(0) >> 16 & ~_WRITABLE
        self._count = (self._control & pci.MSIX_TABLE_SIZE_MASK) + 1
        self._table, self._pba = dword(pci.MSIX_TABLE), dword(pci.MSIX_PBA)
        #: four dwords a vector; every vector starts masked (section 6.8.2.9)
        self._entries = [[0, 0, 0, pci.MSIX_ENTRY_MASKED] for _ in range(self._count)]

    def dword(self, base: int) -> tuple[int, int] | None:
        """(mask, value) of the capability's control dword; None for any other."""
        return (0xFFFF_0000, self._control << 16) if base == self._offset else None

    def write(self, base: int, written: int, value: int) -> bool:
        """Writes the bits `written` of a dword; False where it is not the control dword."""
        if base != self._offset:
            return False
        new = (self._control << 16 & ~written | value & written) >> 16
        self._control = self._control & ~_WRITABLE | new & _WRITABLE
        if not self._control & pci.MSIX_ENABLE:
            self.vectors.disable()
            return True
        if not self.vectors.enabled:
            self.vectors.enable(self._count)
        if self.vectors.enabled:
            for number in range(self._count):
                self._program(number)
        return True

    def holds(self, bar: int, offset: int) -> bool:
        """Whether this place of a BAR belongs to the table or the pending bits."""
        return self._at(self._table, self._count * pci.MSIX_ENTRY_SIZE, bar, offset) is not None or (
            self._at(self._pba, _pba_size(self._count), bar, offset) is not None
        )

    def read(self, bar: int, offset: int, size: int) -> int:
        """MMIO read of table or pending bits: 4 or 8 bytes, naturally aligned; else all ones."""
        if size not in (4, 8) or offset % size:
            return (1 << size * 8) - 1
        value = self._dword_at(bar, offset)
        return value if size == 4 else value | self._dword_at(bar, offset + 4) << 32

    def write_table(self, bar: int, offset: int, size: int, value: int) -> None:
        """MMIO write of the table; the pending bits are read-only."""
        if size not in (4, 8) or offset % size:
            return
        for at in range(0, size, 4):
            place = self._at(self._table, self._count * pci.MSIX_ENTRY_SIZE, bar, offset + at)
            if place is None:
                continue
            number, register = divmod(place // 4, 4)
            self._entries[number][register] = value >> at * 8 & _ALL_ONES
        numbers = {
            (offset + at - (self._table & ~pci.MSIX_BAR_MASK)) // pci.MSIX_ENTRY_SIZE for at in range(0, size, 4)
        }
        if self.vectors.enabled:
            for number in numbers:
                if 0 <= number < self._count:
                    self._program(number)

    def _program(self, number: int) -> None:
        low, high, data, control = self._entries[number]
        masked = bool(control & pci.MSIX_ENTRY_MASKED) or bool(self._control & pci.MSIX_FUNCTION_MASK)
        self.vectors.program(number, low & ~3 | high << 32, data, masked)

    def _dword_at(self, bar: int, offset: int) -> int:
        place = self._at(self._table, self._count * pci.MSIX_ENTRY_SIZE, bar, offset)
        if place is not None:
            return self._entries[place // pci.MSIX_ENTRY_SIZE][place % pci.MSIX_ENTRY_SIZE // 4]
        place = self._at(self._pba, _pba_size(self._count), bar, offset)
        if place is None:
            return 0
        first = place * 8
        return sum(self.vectors.pending(first + bit) << bit for bit in range(32))

    @staticmethod
    def _at(where: int, size: int, bar: int, offset: int) -> int | None:
        """Offset within a structure that the capability's dword `where` places."""
        start = where & ~pci.MSIX_BAR_MASK
        inside = where & pci.MSIX_BAR_MASK == bar and start <= offset < start + size
        return offset - start if inside else None


def _pba_size(count: int) -> int:
    """Bytes of the pending bits: whole quadwords."""
    return (count + 63) // 64 * 8
