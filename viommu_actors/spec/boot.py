"""Linux x86 boot protocol: the fields of `struct boot_params` ("zero page") that a 64-bit entry needs.

Linux: Documentation/arch/x86/{boot,zero-page}.rst, arch/x86/include/uapi/asm/bootparam.h.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

BOOT_PARAMS_SIZE = 4096

#: Offsets into boot_params.
ACPI_RSDP_ADDRESS = 0x070
E820_ENTRIES = 0x1E8
BOOT_FLAG = 0x1FE
HEADER_MAGIC = 0x202
PROTOCOL_VERSION = 0x206
TYPE_OF_LOADER = 0x210
COMMAND_LINE_POINTER = 0x228
COMMAND_LINE_SIZE = 0x238
E820_TABLE = 0x2D0

BOOT_FLAG_VALUE = 0xAA55
HEADER_MAGIC_VALUE = b"HdrS"
#: 2.14 brought acpi_rsdp_addr.
PROTOCOL_VERSION_VALUE = 0x020E
LOADER_UNDEFINED = 0xFF
#: x86's COMMAND_LINE_SIZE, the final NUL included.
COMMAND_LINE_LIMIT = 2048

E820_ENTRY = Struct("<QQI")
E820_LIMIT = 128


class E820Type(IntEnum):
    """Kinds of a range (ACPI 6.5, section 15)."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4


class E820Entry(NamedTuple):
    """One range of the firmware's memory map, in bytes."""

    base: int
    size: int
    kind: int
