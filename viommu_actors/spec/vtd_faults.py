"""VT-d faults: reason codes and the fault recording register.

Intel VT-d specification, chapter 7 "Fault conditions" and section 11.4.14. The texts are those of Linux's log
(drivers/iommu/intel/dmar.c) where Linux has one.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from viommu_actors.spec.vtd_structures import ADDRESS_FIELD


class FaultReason(IntEnum):
    """Fault reason field, legacy mode and interrupt remapping (section 7.1, tables 16 and 17)."""

    ROOT_NOT_PRESENT = 0x1
    CONTEXT_NOT_PRESENT = 0x2
    CONTEXT_INVALID = 0x3
    ADDRESS_BEYOND_WIDTH = 0x4
    WRITE_DENIED = 0x5
    READ_DENIED = 0x6
    TABLE_ACCESS = 0x7
    ROOT_TABLE_ACCESS = 0x8
    CONTEXT_TABLE_ACCESS = 0x9
    ROOT_RESERVED = 0xA
    CONTEXT_RESERVED = 0xB
    TABLE_RESERVED = 0xC
    TRANSLATION_BLOCKED = 0xD
    INTERRUPT_RANGE = 0xE
    IR_REQUEST_RESERVED = 0x20
    IR_INDEX = 0x21
    IR_NOT_PRESENT = 0x22
    IR_TABLE_ACCESS = 0x23
    IR_ENTRY_RESERVED = 0x24
    IR_COMPATIBILITY_BLOCKED = 0x25
    IR_SOURCE_ID = 0x26

    @property
    def text(self) -> str:
        return _TEXTS[self]

    @property
    def qualified(self) -> bool:
        """Whether a set FPD bit in the context entry keeps the fault from being recorded."""
        return self in _QUALIFIED

    @property
    def of_interrupt(self) -> bool:
        """Whether it blocks an interrupt request, not a DMA."""
        return self >= FaultReason.IR_REQUEST_RESERVED


_TEXTS: Final = {
    FaultReason.ROOT_NOT_PRESENT: "Present bit in root entry is clear",
    FaultReason.CONTEXT_NOT_PRESENT: "Present bit in context entry is clear",
    FaultReason.CONTEXT_INVALID: "Invalid context entry",
    FaultReason.ADDRESS_BEYOND_WIDTH: "Access beyond MGAW",
    FaultReason.WRITE_DENIED: "PTE Write access is not set",
    FaultReason.READ_DENIED: "PTE Read access is not set",
    FaultReason.TABLE_ACCESS: "Next page table ptr is invalid",
    FaultReason.ROOT_TABLE_ACCESS: "Root table address invalid",
    FaultReason.CONTEXT_TABLE_ACCESS: "Context table ptr is invalid",
    FaultReason.ROOT_RESERVED: "non-zero reserved fields in RTP",
    FaultReason.CONTEXT_RESERVED: "non-zero reserved fields in CTP",
    FaultReason.TABLE_RESERVED: "non-zero reserved fields in PTE",
    FaultReason.TRANSLATION_BLOCKED: "PCE for translation request specifies blocking",
    FaultReason.INTERRUPT_RANGE: "Translated address is in the interrupt address range",
    FaultReason.IR_REQUEST_RESERVED: "Detected reserved fields in the decoded interrupt-remapped request",
    FaultReason.IR_INDEX: "Interrupt index exceeded the interrupt-remapping table size",
    FaultReason.IR_NOT_PRESENT: "Present field in the IRTE entry is clear",
    FaultReason.IR_TABLE_ACCESS: "Error accessing interrupt-remapping table pointed by IRTA_REG",
    FaultReason.IR_ENTRY_RESERVED: "Detected reserved fields in the IRTE entry",
    FaultReason.IR_COMPATIBILITY_BLOCKED: "Blocked a compatibility format interrupt request",
    FaultReason.IR_SOURCE_ID: "Blocked an interrupt request due to source-id verification failure",
}

#: Those found once the context entry has been read; the rest are always recorded (table 16, column "Qualified").
_QUALIFIED: Final = frozenset(
    {
        FaultReason.CONTEXT_NOT_PRESENT,
        FaultReason.CONTEXT_INVALID,
        FaultReason.ADDRESS_BEYOND_WIDTH,
        FaultReason.WRITE_DENIED,
        FaultReason.READ_DENIED,
        FaultReason.TABLE_ACCESS,
        FaultReason.CONTEXT_RESERVED,
        FaultReason.TABLE_RESERVED,
        FaultReason.TRANSLATION_BLOCKED,
        FaultReason.INTERRUPT_RANGE,
    }
)

#: A fault record register is 16 bytes; F is bit 63 of its upper word, write 1 to clear.
FAULT_RECORD_SIZE: Final = 16
FAULT_RECORDED: Final = 1 << 63
FAULT_TYPE_READ: Final = 1 << 62
FAULT_SOURCE: Final = 0xFFFF
#: AT of the request, on a unit with device-TLBs.
FAULT_ADDRESS_TYPE_SHIFT: Final = 60
FAULT_REASON_SHIFT: Final = 32


class FaultRecord(NamedTuple):
    """FRCD without its F bit (section 11.4.14)."""

    source: int
    reason: int
    address: int
    """Page address of the request (FI)."""
    write: bool
    address_type: int = 0
    """AT of the request."""

    def encode(self) -> tuple[int, int]:
        """Low and high word, F clear."""
        high = self.source | self.reason << FAULT_REASON_SHIFT | self.address_type << FAULT_ADDRESS_TYPE_SHIFT
        return self.address & ADDRESS_FIELD, high | (0 if self.write else FAULT_TYPE_READ)

    @classmethod
    def decode(cls, low: int, high: int) -> FaultRecord:
        return cls(
            high & FAULT_SOURCE,
            high >> FAULT_REASON_SHIFT & 0xFF,
            low & ADDRESS_FIELD,
            not high & FAULT_TYPE_READ,
            high >> FAULT_ADDRESS_TYPE_SHIFT & 3,
        )


class InterruptFaultRecord(NamedTuple):
    """FRCD of a blocked interrupt: FI holds the index of the table entry, and there is no type (section 11.4.14)."""

    source: int
    reason: int
    entry: int

    def encode(self) -> tuple[int, int]:
        """Low and high word, F clear."""
        return self.entry << _INDEX_SHIFT, self.source | self.reason << FAULT_REASON_SHIFT

    @classmethod
    def decode(cls, low: int, high: int) -> InterruptFaultRecord:
        return cls(high & FAULT_SOURCE, high >> FAULT_REASON_SHIFT & 0xFF, low >> _INDEX_SHIFT)


_INDEX_SHIFT: Final = 48
