"""The interrupt remapping table of a unit (Linux: drivers/iommu/intel/irq_remapping.c).

An interrupt of a device names an entry of the table; the entry says which vector that is, and of whom it is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import ENOSPC

from viommu_actors.kernel.invalidation import QueuedInvalidation
from viommu_actors.kernel.pages import PageAllocator
from viommu_actors.kernel.pci import PciDevice
from viommu_actors.memory import Memory
from viommu_actors.spec import pci
from viommu_actors.spec.vtd import Irta
from viommu_actors.spec.vtd_interrupts import (
    INTERRUPT_ENTRY_SIZE,
    DeliveryMode,
    InterruptEntry,
    SourceValidation,
)

#: Entries of the table: one page, which IRTA.S gives as 2^(S+1).
ENTRIES = 256


class InterruptRemapping:
    """Hands out table entries. `covers` says whether a device's interrupts come by way of the unit."""

    def __init__(
        self,
        memory: Memory,
        pages: PageAllocator,
        invalidation: QueuedInvalidation,
        covers: Callable[[PciDevice], bool],
        *,
        extended: bool,
        verify_sources: bool,
    ) -> None:
        """`extended`: x2APIC destinations; without `verify_sources` any device may use any entry."""
        self._memory = memory
        self._invalidation = invalidation
        self._extended = extended
        self._validation = SourceValidation.SOURCE if verify_sources else SourceValidation.NONE
        self._used = 0
        self.covers = covers
        self.table = pages.alloc()

    @property
    def table_register(self) -> int:
        """IRTA."""
        size = ENTRIES.bit_length() - 2
        return self.table | (Irta.EIME if self._extended else 0) | size

    def allocate(self, source: int, vectors: Sequence[int], aliases: Sequence[int] = ()) -> int:
        """Entries side by side, one for each vector, for the requester ID `source`; the first one's index.

        `aliases` are IDs in place of it that bridges put in, the last bridge's last.

        Raises OSError(ENOSPC) where there is no room.
        """
        count = _block(len(vectors))
        block = (1 << count) - 1
        first = next((at for at in range(0, ENTRIES, count) if not self._used >> at & block), None)
        if first is None:
            raise OSError(ENOSPC, f"no {count} interrupt remapping entries left")
        self._used |= block << first
        validation = self._validation
        if aliases and validation is SourceValidation.SOURCE:
            # Behind a bridge only the buses can be told: from that of the alias to its own (Linux: set_msi_sid).
            source, validation = aliases[-1] & 0xFF00 | pci.bdf_bus(source), SourceValidation.BUS_RANGE
        for index, vector in enumerate(vectors, first):
            # Edge triggered, to the physical APIC id 0: the one CPU that devices interrupt.
            entry = InterruptEntry(
                True, delivery_mode=DeliveryMode.FIXED, vector=vector, source=source, validation=validation
            )
            self._write(index, entry.encode())
        self._flush(first, count)
        return first

    def free(self, first: int, count: int) -> None:
        """Takes back what `allocate` gave for `count` vectors: from here on those interrupts are blocked."""
        count = _block(count)
        for index in range(first, first + count):
            self._write(index, (0, 0))
        self._flush(first, count)
        self._used &= ~((1 << count) - 1 << first)

    def _write(self, index: int, words: tuple[int, int]) -> None:
        """The half with the present bit goes last when an entry comes, first when it goes."""
        place = self.table + index * INTERRUPT_ENTRY_SIZE
        low, high = words
        halves = [(place + 8, high), (place, low)]
        for address, value in halves if low else reversed(halves):
            self._memory.write_u64(address, value)

    def _flush(self, first: int, count: int) -> None:
        self._invalidation.interrupt_entries(first, count.bit_length() - 1)


def _block(count: int) -> int:
    """Blocks are powers of two, naturally aligned, as one invalidation covers."""
    return 1 << (count - 1).bit_length()
