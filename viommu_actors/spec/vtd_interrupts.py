"""VT-d interrupt remapping: table entries, remappable requests, and the messages that interrupts are.

Intel VT-d specification, section 5.1 "Interrupt Remapping" and section 9.10 "Interrupt Remapping Table Entry"; the
compatibility format is the MSI of Intel's SDM, volume 3, section 10.11.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

INTERRUPT_ENTRY_SIZE: Final = 16
#: Indices, handles and subhandles have 16 bits, in a fault record too.
INTERRUPT_INDEX_MASK: Final = 0xFFFF

#: As it is, with a vector for data: fixed delivery, edge, to the local APIC whose ID is 0.
INTERRUPT_BASE: Final = 0xFEE0_0000
#: Address bit 4: 1 = remappable format, 0 = compatibility format.
_FORMAT: Final = 1 << 4


class SourceValidation(IntEnum):
    """SVT: how an entry checks the requester of an interrupt."""

    NONE = 0
    SOURCE = 1
    BUS_RANGE = 2
    RESERVED = 3


#: SQ: bits of a source id that are compared (function bit 2, 2:1 or 2:0 ignored).
SOURCE_QUALIFIERS: Final = (0xFFFF, 0xFFFB, 0xFFF9, 0xFFF8)


class DeliveryMode(IntEnum):
    """DLM, and the delivery mode of an MSI."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    NMI = 4
    INIT = 5
    EXTINT = 7


class Interrupt(NamedTuple):
    """What reaches the interrupt controllers."""

    destination: int
    """APIC id, or logical destination: 8 bits, or 32 with extended interrupt mode."""
    logical: bool
    redirection_hint: bool
    delivery_mode: int
    vector: int
    level: bool
    """Trigger mode: level, else edge."""

    def message(self) -> tuple[int, int]:
        """(address, data) of the MSI that says the same; a destination beyond 8 bits goes to the upper address."""
        address = INTERRUPT_BASE | (self.destination & 0xFF) << 12 | self.redirection_hint << 3 | self.logical << 2
        data = self.vector | self.delivery_mode << 8 | self.level << 15
        # An asserted level: the only one that a message can tell.
        return address | (self.destination & ~0xFF) << 32, data | self.level << 14

    @classmethod
    def of_message(cls, address: int, data: int) -> Interrupt:
        """What an MSI in compatibility format asks for."""
        return cls(
            address >> 12 & 0xFF | address >> 32 & 0xFFFF_FF00,
            bool(address >> 2 & 1),
            bool(address >> 3 & 1),
            data >> 8 & 7,
            data & 0xFF,
            bool(data >> 15 & 1),
        )


class InterruptRequest(NamedTuple):
    """An interrupt request in remappable format (section 5.1.2.2)."""

    handle: int
    subhandle: int = 0
    subhandle_valid: bool = False
    """SHV: the subhandle, the low half of the data, is added to the handle."""
    data_high: int = 0
    """Reserved where a subhandle is valid."""

    @property
    def entry(self) -> int:
        """Number of the table entry. The sum has 16 bits, as an index has and as in QEMU; no width is specified."""
        return self.handle + (self.subhandle if self.subhandle_valid else 0) & INTERRUPT_INDEX_MASK

    @property
    def reserved(self) -> bool:
        return self.subhandle_valid and bool(self.data_high)

    def encode(self) -> tuple[int, int]:
        """(address, data)."""
        address = INTERRUPT_BASE | (self.handle & 0x7FFF) << 5 | _FORMAT | self.subhandle_valid << 3
        return address | (self.handle >> 15 & 1) << 2, self.data_high << 16 | self.subhandle

    @classmethod
    def decode(cls, address: int, data: int) -> InterruptRequest:
        return cls(
            address >> 5 & 0x7FFF | (address >> 2 & 1) << 15,
            data & 0xFFFF,
            bool(address >> 3 & 1),
            data >> 16 & 0xFFFF,
        )


def is_remappable(address: int) -> bool:
    """Whether an interrupt request is in remappable format."""
    return bool(address & _FORMAT)


class InterruptEntry(NamedTuple):
    """Interrupt remapping table entry (IRTE) of a remapped interrupt."""

    present: bool
    fault_disable: bool = False
    """FPD: faults found once the entry is read are not recorded."""
    logical: bool = False
    redirection_hint: bool = False
    level: bool = False
    delivery_mode: int = 0
    vector: int = 0
    destination: int = 0
    """DST as it stands in the entry: without extended interrupt mode the APIC id is in its bits 15:8."""
    source: int = 0
    qualifier: int = 0
    validation: int = 0

    def encode(self) -> tuple[int, int]:
        """Low and high word."""
        low = (
            self.present
            | self.fault_disable << 1
            | self.logical << 2
            | self.redirection_hint << 3
            | self.level << 4
            | self.delivery_mode << 5
            | self.vector << 16
            | self.destination << 32
        )
        return low, self.source | self.qualifier << 16 | self.validation << 18

    @classmethod
    def decode(cls, low: int, high: int) -> InterruptEntry:
        return cls(
            bool(low & 1),
            bool(low >> 1 & 1),
            bool(low >> 2 & 1),
            bool(low >> 3 & 1),
            bool(low >> 4 & 1),
            low >> 5 & 7,
            low >> 16 & 0xFF,
            low >> 32,
            high & 0xFFFF,
            high >> 16 & 3,
            high >> 18 & 3,
        )


#: IM: the entry is of a posted interrupt; reserved where the unit has none.
INTERRUPT_ENTRY_POSTED: Final = 1 << 15
_RESERVED_LOW: Final = 0x0000_0000_FF00_7000
_RESERVED_HIGH: Final = 0xFFFF_FFFF_FFF0_0000


def interrupt_entry_reserved(low: int, high: int, ignored: int = 0) -> bool:
    """Whether a reserved bit is set in an entry, but for those `ignored` in its low word."""
    return bool(low & (_RESERVED_LOW | INTERRUPT_ENTRY_POSTED) & ~ignored or high & _RESERVED_HIGH)


def apic_destination(field: int, extended: bool) -> int:
    """The destination that a DST field names; `extended` is IRTA.EIME."""
    return field if extended else field >> 8 & 0xFF
