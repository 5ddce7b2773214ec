"""The I/O APIC: registers and redirection table entries (Intel 82093AA sections 3.1-3.2; VT-d section 5.1.5.1).

Version 0x20 has the EOI register besides, as chipsets with more than one such controller have, and QEMU's.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

SIZE: Final = 0x1000
PINS: Final = 24
VERSION: Final = 0x20
IDENTIFIER: Final = 0


class Window(IntEnum):
    """Offsets in its MMIO page: a register is selected, then read or written by its data."""

    SELECT = 0x00
    DATA = 0x10
    #: Ends the level triggered interrupts of the vector that is written.
    EOI = 0x40


class Reg(IntEnum):
    """Registers by their index; from TABLE on the low and the high dword of each entry."""

    ID = 0x00
    VERSION = 0x01
    ARBITRATION = 0x02
    TABLE = 0x10


ID_SHIFT: Final = 24
MAXIMUM_ENTRY_SHIFT: Final = 16
#: Delivery status and remote IRR, which software cannot write.
READ_ONLY: Final = 1 << 12 | 1 << 14
REMOTE_IRR: Final = 1 << 14
MASKED: Final = 1 << 16
_FORMAT: Final = 1 << 48
#: Of a message in the interrupt range.
_TRIGGER_LEVEL: Final = 1 << 15


class Entry(NamedTuple):
    """A redirection table entry. `destination` is what stands in bits 63:48, `high` in bit 11.

    In compatibility format `destination` holds the APIC id in its upper byte, and `high` the destination mode; in
    remappable format they hold the index of an interrupt remapping table entry (`remappable`).
    """

    vector: int = 0
    delivery_mode: int = 0
    high: bool = False
    active_low: bool = False
    level: bool = False
    masked: bool = True
    destination: int = 0

    @classmethod
    def remappable(cls, index: int, vector: int) -> Entry:
        """Level triggered, active low, and open: as PCI's are."""
        destination = (index & 0x7FFF) << 1 | 1
        return cls(vector, 0, bool(index >> 15), True, True, False, destination)

    def encode(self) -> int:
        return (
            self.vector
            | self.delivery_mode << 8
            | self.high << 11
            | self.active_low << 13
            | self.level << 15
            | self.masked << 16
            | self.destination << 48
        )

    @classmethod
    def decode(cls, value: int) -> Entry:
        return cls(
            value & 0xFF,
            value >> 8 & 7,
            bool(value >> 11 & 1),
            bool(value >> 13 & 1),
            bool(value >> 15 & 1),
            bool(value >> 16 & 1),
            value >> 48,
        )

    def message(self, base: int) -> tuple[int, int]:
        """Address and data of the interrupt that it sends; `base` is the first address of the interrupt range."""
        data = self.vector | self.delivery_mode << 8 | (_TRIGGER_LEVEL if self.level else 0)
        return base | self.destination << 4 | self.high << 2, data


def intx_line(slot: int, pin: int) -> int:
    """The line that INTx of a device on a root bus ends at, `pin` 0 being INTA.

    PIRQ E to H, as q35's chipset routes devices 0 to 24 (QEMU: hw/isa/lpc_ich9.c); those beyond, whose routes a
    register may change there, are routed so too.
    """
    return 20 + (slot + pin) % 4
