"""Builds ACPI tables as bytes, with right lengths and checksums. The firmware of host and guests."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from viommu_actors.spec import acpi, ioapic

OEM_ID = b"VIOMMU"
OEM_TABLE_ID = b"VIOMMUAC"
CREATOR_ID = b"VACT"


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes `data` plus itself sum to zero modulo 256."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: header and body (ACPI section 5.2.6)."""
    header = acpi.HEADER.pack(
        signature, acpi.HEADER.size + len(body), revision, 0, OEM_ID, OEM_TABLE_ID, 1, CREATOR_ID, 1
    )
    result = bytearray(header + body)
    result[acpi.HEADER_CHECKSUM] = checksum(result)
    return bytes(result)


def rsdp(xsdt: int) -> bytes:
    """Root pointer to the XSDT at physical address `xsdt`."""
    size = acpi.RSDP.size
    result = bytearray(acpi.RSDP.pack(acpi.RSDP_SIGNATURE, 0, OEM_ID, acpi.RSDP_REVISION, 0, size, xsdt, 0, bytes(3)))
    result[acpi.RSDP_CHECKSUM] = checksum(result[: acpi.RSDP_V1_LENGTH])
    result[acpi.RSDP_EXTENDED_CHECKSUM] = checksum(result)
    return bytes(result)


def xsdt(addresses: Iterable[int]) -> bytes:
    """The list of the other tables, by physical address."""
    return table(acpi.XSDT_SIGNATURE, 1, b"".join(acpi.XSDT_ENTRY.pack(address) for address in addresses))


def mcfg(ecam: acpi.Ecam) -> bytes:
    """Where PCI Express configuration space lies."""
    allocation = acpi.MCFG_ALLOCATION.pack(ecam.base, ecam.segment, ecam.first_bus, ecam.last_bus, 0)
    return table(acpi.MCFG_SIGNATURE, 1, bytes(acpi.MCFG_RESERVED) + allocation)


def madt(cpus: int, local_apic: int, io_apic: int) -> bytes:
    """`cpus` enabled processors with local APICs 0, 1, ... and one I/O APIC for all lines."""
    entries = [
        acpi.MADT_LOCAL_APIC.pack(
            acpi.MADT_LOCAL_APIC_TYPE, acpi.MADT_LOCAL_APIC.size, cpu, cpu, acpi.MADT_LOCAL_APIC_ENABLED
        )
        for cpu in range(cpus)
    ]
    entries.append(
        acpi.MADT_IO_APIC.pack(
            acpi.MADT_IO_APIC_TYPE, acpi.MADT_IO_APIC.size, ioapic.IDENTIFIER, 0, io_apic, 0
        )
    )
    return table(acpi.MADT_SIGNATURE, 4, acpi.MADT_BODY.pack(local_apic, 0) + b"".join(entries))


def dmar(description: acpi.Dmar) -> bytes:
    """DMA remapping units and their scopes."""
    head = acpi.DMAR_BODY.pack(description.host_address_width - 1, description.flags, bytes(10))
    return table(acpi.DMAR_SIGNATURE, 1, head + b"".join(map(_drhd, description.units)))


def _drhd(unit: acpi.Drhd) -> bytes:
    scopes = b"".join(map(_scope, unit.scopes))
    size = acpi.DMAR_DRHD.size + len(scopes)
    return acpi.DMAR_DRHD.pack(acpi.DmarType.DRHD, size, unit.flags, 0, unit.segment, unit.base) + scopes


def _scope(scope: acpi.DeviceScope) -> bytes:
    path = _pack_all(acpi.DMAR_PATH, scope.path)
    size = acpi.DMAR_SCOPE.size + len(path)
    return acpi.DMAR_SCOPE.pack(scope.kind, size, 0, scope.enumeration_id, scope.start_bus) + path


def _pack_all(layout: Struct, rows: Iterable[tuple[int, ...]]) -> bytes:
    return b"".join(layout.pack(*row) for row in rows)
