"""MSI of an assigned device: the guest's registers stay here, the device's own are the parent kernel's."""

from __future__ import annotations

from viommu_actors.hypervisor.vectors import Vectors
from viommu_actors.spec import pci

_ALL_ONES = 0xFFFF_FFFF
_WRITABLE = pci.MSI_ENABLE | pci.MSI_MULTIPLE_ENABLE_MASK


class Msi:
    """The capability at `offset`; `control` is the device's, `count` how many vectors VFIO offers."""

    def __init__(self, vectors: Vectors, offset: int, control: int, count: int) -> None:
        self.vectors = vectors
        self._offset = offset
        self._control = control & ~_WRITABLE
        self._count = count
        self._wide = bool(control & pci.MSI_64BIT)
        self._address = 0
        self._data = 0

    def dword(self, base: int) -> tuple[int, int] | None:
        """(mask, value) of a dword of the capability; None where it has none of its registers."""
        if base == self._offset:
            return 0xFFFF_0000, self._control << 16
        if base == self._offset + pci.MSI_ADDRESS:
            return _ALL_ONES, self._address & _ALL_ONES
        if self._wide and base == self._offset + pci.MSI_ADDRESS_UPPER:
            return _ALL_ONES, self._address >> 32
        if base == self._offset + (pci.MSI_DATA_64 if self._wide else pci.MSI_DATA_32):
            return 0xFFFF, self._data
        return None

    def write(self, base: int, written: int, value: int) -> bool:
        """Writes the bits `written` of a dword; False where it is none of the capability's."""
        held = self.dword(base)
        if held is None:
            return False
        new = held[1] & ~written | value & written
        if base == self._offset:
            self._control = self._control & ~_WRITABLE | new >> 16 & _WRITABLE
        elif base == self._offset + pci.MSI_ADDRESS:
            self._address = self._address & ~_ALL_ONES | new & ~3
        elif self._wide and base == self._offset + pci.MSI_ADDRESS_UPPER:
            self._address = self._address & _ALL_ONES | new << 32
        else:
            self._data = new & 0xFFFF
        self._update()
        return True

    def _update(self) -> None:
        if not self._control & pci.MSI_ENABLE:
            self.vectors.disable()
            return
        allotted = 1 << ((self._control & pci.MSI_MULTIPLE_ENABLE_MASK) >> pci.MSI_MULTIPLE_ENABLE_SHIFT)
        count = min(allotted, self._count)
        if not self.vectors.enabled:
            self.vectors.enable(count)
        for number in range(len(self.vectors.eventfds)):
            # A device tells its vectors apart in the low bits of the data (PCI 3.0 section 6.8.1.6).
            self.vectors.program(number, self._address, self._data & -allotted | number, masked=False)
