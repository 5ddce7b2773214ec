"""ACPI tables as the firmware writes and a kernel reads them: RSDP, XSDT, MCFG, MADT, DMAR.

ACPI 6.5 sections 5.2.5-5.2.12; PCI Firmware 3.3 section 4.1.2 (MCFG); VT-d section 8 (DMAR).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

#: signature, checksum of the first 20 bytes, OEM id, revision, RSDT, length, XSDT, checksum of all, reserved
RSDP = Struct("<8sB6sBIIQB3s")
RSDP_SIGNATURE = b"RSD PTR "
RSDP_REVISION = 2
RSDP_V1_LENGTH = 20
RSDP_CHECKSUM = 8
RSDP_EXTENDED_CHECKSUM = 32
RSDP_ALIGNMENT = 16

#: signature, length, revision, checksum, OEM id, OEM table id, OEM revision, creator id, creator revision
HEADER = Struct("<4sIBB6s8sI4sI")
HEADER_CHECKSUM = 9

XSDT_SIGNATURE = b"XSDT"
XSDT_ENTRY = Struct("<Q")

MCFG_SIGNATURE = b"MCFG"
MCFG_RESERVED = 8
#: base of bus 0, segment, first bus, last bus, reserved
MCFG_ALLOCATION = Struct("<QHBBI")

MADT_SIGNATURE = b"APIC"
#: local APIC address, flags
MADT_BODY = Struct("<II")
#: type, length, processor uid, APIC id, flags
MADT_LOCAL_APIC = Struct("<BBBBI")
MADT_LOCAL_APIC_TYPE = 0
MADT_LOCAL_APIC_ENABLED = 1
#: type, length, I/O APIC id, reserved, address, number of its first line
MADT_IO_APIC = Struct("<BBBBII")
MADT_IO_APIC_TYPE = 1

DMAR_SIGNATURE = b"DMAR"
#: host address width - 1, flags, reserved
DMAR_BODY = Struct("<BB10s")
#: type, length
DMAR_STRUCTURE = Struct("<HH")
#: type, length, flags, reserved (size), segment, register base
DMAR_DRHD = Struct("<HHBBHQ")
#: type, length, reserved, enumeration id, start bus; then device, function pairs
DMAR_SCOPE = Struct("<BBHBB")
DMAR_PATH = Struct("<BB")


class DmarFlags(IntFlag):
    """Flags of the DMAR table (VT-d section 8.1)."""

    INTR_REMAP = 1
    X2APIC_OPT_OUT = 2
    DMA_CTRL_PLATFORM_OPT_IN = 4


class DmarType(IntEnum):
    """Remapping structures (VT-d section 8.2)."""

    DRHD = 0
    RMRR = 1
    ATSR = 2
    RHSA = 3
    ANDD = 4
    SATC = 5
    SIDP = 6


class DrhdFlags(IntFlag):
    """Flags of a remapping hardware unit definition (VT-d section 8.3)."""

    INCLUDE_PCI_ALL = 1


class ScopeType(IntEnum):
    """Device scope entries (VT-d section 8.3.1)."""

    ENDPOINT = 1
    BRIDGE = 2
    IOAPIC = 3
    HPET = 4
    NAMESPACE = 5


class Ecam(NamedTuple):
    """One MCFG allocation: configuration space of buses first..last of a segment."""

    base: int
    segment: int
    first_bus: int
    last_bus: int


class DeviceScope(NamedTuple):
    """A device, or a bridge with all beneath, by start bus and (device, function) path."""

    kind: int
    enumeration_id: int
    start_bus: int
    path: tuple[tuple[int, int], ...]


class Drhd(NamedTuple):
    """A remapping unit: its registers and the devices in its scope."""

    flags: int
    segment: int
    base: int
    scopes: tuple[DeviceScope, ...]


class Dmar(NamedTuple):
    """The DMAR table; `host_address_width` in bits."""

    host_address_width: int
    flags: int
    units: tuple[Drhd, ...]
