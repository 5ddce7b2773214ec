"""MSI-X of a function: its table and pending bits (PCI 3.0 section 6.8.2).

An entry that is masked keeps its interrupt pending, and sends it when it is unmasked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from viommu_actors.pci.config_space import ConfigSpace
from viommu_actors.spec import pci

_DWORD = 4
_DWORDS = pci.MSIX_ENTRY_SIZE // _DWORD
_ADDRESS, _ADDRESS_UPPER, _DATA, _CONTROL = (
    register // _DWORD
    for register in (
        pci.MSIX_ENTRY_ADDRESS,
        pci.MSIX_ENTRY_ADDRESS_UPPER,
        pci.MSIX_ENTRY_DATA,
        pci.MSIX_ENTRY_CONTROL,
    )
)
#: Bits of an entry's registers that software may change.
_WRITABLE = {_ADDRESS: 0xFFFF_FFFC, _ADDRESS_UPPER: 0xFFFF_FFFF, _DATA: 0xFFFF_FFFF, _CONTROL: pci.MSIX_ENTRY_MASKED}


class MsixTable:
    """As the capability at `offset` of `config` describes it. `send(address, data)` takes an interrupt to the link."""

    def __init__(self, config: ConfigSpace, offset: int, send: Callable[[int, int], object]) -> None:
        self._config = config
        self._offset = offset
        self._send = send
        self.vectors = (config.read(offset + pci.MSIX_CONTROL, 2) & pci.MSIX_TABLE_SIZE_MASK) + 1
        table, pending = (config.read(offset + register, 4) for register in (pci.MSIX_TABLE, pci.MSIX_PBA))
        #: The BAR that holds table and pending bits, and nothing else.
        self.bar = table & pci.MSIX_BAR_MASK
        self._table = table & ~pci.MSIX_BAR_MASK
        self._pba = pending & ~pci.MSIX_BAR_MASK
        self.reset()

    def reset(self) -> None:
        """Every entry empty and masked, nothing pending. The capability has its reset value already."""
        self._entries = [[0, 0, 0, pci.MSIX_ENTRY_MASKED] for _ in range(self.vectors)]
        self._pending = 0
        self.enabled = False
        self._function_mask = False

    def entries(self) -> list[list[int]]:
        """The table as it stands: address, upper address, data and control of each entry."""
        return [list(entry) for entry in self._entries]

    def load(self, entries: Sequence[Sequence[int]]) -> None:
        """A table as `entries` gives it, of which the bits that software may change are taken over."""
        for held, entry in zip(self._entries, entries, strict=True):
            for register, value in enumerate(entry):
                held[register] = value & _WRITABLE[register]

    def latch(self) -> None:
        """After a write to the capability."""
        control = self._config.read(self._offset + pci.MSIX_CONTROL, 2)
        self.enabled = bool(control & pci.MSIX_ENABLE)
        self._function_mask = bool(control & pci.MSIX_FUNCTION_MASK)
        if not self.enabled:
            self._pending = 0
        self._deliver()

    def signal(self, vector: int) -> None:
        """The device's interrupt `vector`, now or when it is unmasked. MSI-X is enabled."""
        self._pending |= 1 << vector
        self._deliver()

    def signal_otherwise(self, address: int, data: int) -> None:
        """Interrupt 0 with another message in its entry, which then stands as it was."""
        held = self._entries[0]
        self._entries[0] = [address & 0xFFFF_FFFF, address >> 32, data, 0]
        self.signal(0)
        self._entries[0] = held

    def read(self, offset: int, size: int) -> int | None:
        """A register of the BAR: dwords and qwords; None is an unsupported request."""
        if size == 2 * _DWORD:
            return self._dword(offset) | self._dword(offset + _DWORD) << 32
        return self._dword(offset) if size == _DWORD else None

    def write(self, offset: int, size: int, value: int) -> None:
        """Dwords and qwords of the table; the pending bits are not software's to write."""
        if size in (_DWORD, 2 * _DWORD):
            for step in range(0, size, _DWORD):
                self._set_dword(offset + step, value >> 8 * step & 0xFFFF_FFFF)
            self._deliver()

    def _dword(self, offset: int) -> int:
        place = self._place(offset)
        if place is not None:
            entry, register = place
            return self._entries[entry][register]
        bit = (offset - self._pba) * 8
        return self._pending >> bit & 0xFFFF_FFFF if 0 <= bit < self.vectors else 0

    def _set_dword(self, offset: int, value: int) -> None:
        place = self._place(offset)
        if place is not None:
            entry, register = place
            self._entries[entry][register] = value & _WRITABLE[register]

    def _place(self, offset: int) -> tuple[int, int] | None:
        """(entry, register) of a dword in the table."""
        place = divmod((offset - self._table) // _DWORD, _DWORDS)
        return place if 0 <= place[0] < self.vectors else None

    def _deliver(self) -> None:
        """Sends what is pending and no longer masked."""
        if not self._pending or self._function_mask:
            return
        for vector, (low, high, data, control) in enumerate(self._entries):
            if self._pending >> vector & 1 and not control & pci.MSIX_ENTRY_MASKED:
                self._pending &= ~(1 << vector)
                self._send(high << 32 | low, data)
