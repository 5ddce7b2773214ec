"""VT-d tables in memory, legacy mode: root, context and second-level paging entries.

Intel VT-d specification, chapter 9 "Translation Structure Formats" and section 3.6 "Second-Level Translation".
Words are little-endian 64-bit; `haw` is the host address width in bits.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
PAGE_MASK: Final = PAGE_SIZE - 1
#: Address bits that each level of a second-level table resolves.
LEVEL_BITS: Final = 9
TABLE_ENTRIES: Final = 1 << LEVEL_BITS
ADDRESS_FIELD: Final = 0xFFFF_FFFF_FFFF_F000
U64_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF

#: Interrupt address range (section 3.14): never translated, and no mapping may lead into it.
INTERRUPT_FIRST: Final = 0xFEE0_0000
INTERRUPT_LAST: Final = 0xFEEF_FFFF


class Access(IntFlag):
    """What a DMA request does, or what a mapping allows. The values are PTE bits R and W."""

    NONE = 0
    READ = 1
    WRITE = 2
    BOTH = 3


def requester_id(bus: int, device: int, function: int) -> int:
    """Source id: bus 15:8, device 7:3, function 2:0 (section 3.4.1)."""
    return bus << 8 | device << 3 | function


# --- root entry, section 9.1: 16 bytes, index = bus ---------------------------------------------------------------

ENTRY_SIZE: Final = 16
ROOT_PRESENT: Final = 1
ROOT_RESERVED_LOW: Final = 0xFFE


class RootEntry(NamedTuple):
    """Root table entry: the context table of one bus."""

    present: bool
    context_table: int

    def encode(self) -> tuple[int, int]:
        return self.context_table & ADDRESS_FIELD | self.present, 0

    @classmethod
    def decode(cls, low: int, high: int) -> RootEntry:
        return cls(bool(low & ROOT_PRESENT), low & ADDRESS_FIELD)


def root_reserved(low: int, high: int, haw: int) -> bool:
    """Whether a reserved bit is set, address bits beyond the host address width included."""
    return bool(high or low & ROOT_RESERVED_LOW or low >> haw)


# --- context entry, section 9.3: 16 bytes, index = device and function ------------------------------------------------


class TranslationType(IntEnum):
    """TT field."""

    MULTI_LEVEL = 0
    """Untranslated requests walk second-level tables; others are blocked."""
    DEVICE_IOTLB = 1
    """As above, and translation and translated requests (ATS) are allowed."""
    PASS_THROUGH = 2
    RESERVED = 3


CONTEXT_PRESENT: Final = 1
CONTEXT_FPD: Final = 2
CONTEXT_RESERVED_LOW: Final = 0xFF0
CONTEXT_RESERVED_HIGH: Final = 0xFFFF_FFFF_FF00_0080
CONTEXT_WIDTH_MASK: Final = 0x7


class ContextEntry(NamedTuple):
    """Legacy context entry: domain and tables of one function."""

    present: bool
    fault_disable: bool
    """FPD: qualified faults of this function are not recorded."""
    translation_type: int
    table: int
    """Address of the top-level second-level table."""
    width_code: int
    """AW: 1 = 39 bits and 3 levels, 2 = 48 bits and 4 levels."""
    domain: int

    def encode(self) -> tuple[int, int]:
        low = self.table & ADDRESS_FIELD | self.translation_type << 2 | self.fault_disable << 1 | self.present
        return low, self.domain << 8 | self.width_code

    @classmethod
    def decode(cls, low: int, high: int) -> ContextEntry:
        return cls(
            bool(low & CONTEXT_PRESENT),
            bool(low & CONTEXT_FPD),
            low >> 2 & 3,
            low & ADDRESS_FIELD,
            high & CONTEXT_WIDTH_MASK,
            high >> 8 & 0xFFFF,
        )


def context_reserved(low: int, high: int, haw: int) -> bool:
    """Whether a reserved bit is set, address bits beyond the host address width included."""
    return bool(high & CONTEXT_RESERVED_HIGH or low & CONTEXT_RESERVED_LOW or low >> haw)


def width_code(width: int) -> int:
    """AW field for an adjusted guest address width of 39 or 48 bits."""
    return (width - 30) // LEVEL_BITS


def width_of(code: int) -> int:
    """Adjusted guest address width in bits of an AW field (also of a SAGAW bit number)."""
    return 30 + LEVEL_BITS * code


def levels_of(code: int) -> int:
    """Levels of the table that an AW field announces."""
    return 2 + code


# --- second-level paging entries, section 9.8: 8 bytes, 512 a table ------------------------------------------------

PTE_SIZE: Final = 8
PTE_READ: Final = 1 << 0
PTE_WRITE: Final = 1 << 1
PTE_ACCESS: Final = PTE_READ | PTE_WRITE
PTE_LARGE: Final = 1 << 7
PTE_SNOOP: Final = 1 << 11
PTE_TRANSIENT: Final = 1 << 62
#: Bits 61:52 and 63 are software's, at each level; so are 10:2 but for PTE_LARGE.
PTE_IGNORED_HIGH: Final = 0xBFF0_0000_0000_0000
#: Highest level at which PTE_LARGE makes a leaf: 1 GiB.
LARGEST_LEAF_LEVEL: Final = 3


def level_shift(level: int) -> int:
    """log2 of the bytes that one entry of `level` maps (level 1 = 4 KiB)."""
    return PAGE_SHIFT + LEVEL_BITS * (level - 1)


def pte(address: int, access: int, *, large: bool = False, snoop: bool = False) -> int:
    """An entry to a table or a page; `access` are the bits R and W."""
    return address | access & PTE_ACCESS | (PTE_LARGE if large else 0) | (PTE_SNOOP if snoop else 0)


def pte_reserved_mask(level: int, leaf: bool, haw: int, *, snoop_control: bool, device_iotlb: bool) -> int:
    """Bits that must be zero in an entry of `level` (section 9.8, tables 29 to 34).

    Bit 11 (SNP) belongs to leaves of a unit with snoop control, bit 62 (TM) to those of one with device-TLBs;
    elsewhere they are reserved, as are address bits beyond the host address width and, in a large page, below its size.
    """
    address = (1 << haw) - 1
    mask = ~(address | PTE_IGNORED_HIGH) & U64_MASK | PTE_SNOOP
    if level > LARGEST_LEAF_LEVEL:
        mask |= PTE_LARGE
    if leaf:
        mask |= (1 << level_shift(level)) - 1 & ADDRESS_FIELD
        if snoop_control:
            mask &= ~PTE_SNOOP
        if device_iotlb:
            mask &= ~PTE_TRANSIENT
    return mask
