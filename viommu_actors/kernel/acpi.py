"""Finds and checks the ACPI tables. Whatever is wrong with them ends in a `KernelPanic` that says what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from viommu_actors.kernel.lines import IoApicInfo
from viommu_actors.kernel.machine import KernelPanic
from viommu_actors.memory import Memory, Unclaimed
from viommu_actors.spec import acpi

#: Bounds that no real table reaches.
_TABLE_LIMIT = 1 << 20
_TABLES_LIMIT = 256
#: Where an RSDP is looked for when the boot parameters name none (ACPI section 5.2.5.1).
_SCAN_FIRST, _SCAN_END = 0xE_0000, 0x10_0000


class Madt(NamedTuple):
    """Interrupt controllers: the local APICs' address and the ids of enabled processors; the first I/O APIC."""

    local_apic: int
    cpus: tuple[int, ...]
    io_apic: IoApicInfo | None = None


class AcpiTables:
    """Checked tables by signature."""

    def __init__(self, memory: Memory, rsdp: int, log: Callable[[str], None]) -> None:
        """Reads all that the RSDP at physical address `rsdp` leads to (0: searches for it)."""
        self._memory = memory
        self._log = log
        self._tables: dict[bytes, bytes] = {}
        xsdt = self._table(self._read_rsdp(rsdp or self._search()))
        if xsdt[:4] != acpi.XSDT_SIGNATURE:
            raise KernelPanic(f"ACPI: the RSDP leads to a table {xsdt[:4]!r}, not to an XSDT")
        entries = xsdt[acpi.HEADER.size :]
        if len(entries) % acpi.XSDT_ENTRY.size or len(entries) > _TABLES_LIMIT * acpi.XSDT_ENTRY.size:
            raise KernelPanic(f"ACPI: an XSDT of {len(xsdt)} bytes")
        for (address,) in acpi.XSDT_ENTRY.iter_unpack(entries):
            table = self._table(address)
            self._tables.setdefault(table[:4], table)

    def ecam(self) -> acpi.Ecam:
        """The configuration window of segment 0. Panics where MCFG has none that makes sense."""
        for base, segment, first, last, _ in self._rows(acpi.MCFG_SIGNATURE):
            if segment == 0 and first <= last and base % (1 << 20) == 0:
                return acpi.Ecam(base, segment, first, last)
        raise KernelPanic("ACPI: MCFG names no configuration space for PCI segment 0")

    def madt(self) -> Madt:
        """Processors and their local APICs, and the I/O APIC of the first line."""
        table = self._required(acpi.MADT_SIGNATURE, acpi.MADT_BODY.size)
        local_apic, _ = acpi.MADT_BODY.unpack_from(table, acpi.HEADER.size)
        cpus = []
        io_apic = None
        for offset, kind, length in _structures(table, acpi.HEADER.size + acpi.MADT_BODY.size, _madt_head, 2, "MADT"):
            if kind == acpi.MADT_LOCAL_APIC_TYPE:
                if length < acpi.MADT_LOCAL_APIC.size:
                    raise KernelPanic(f"ACPI: MADT has a local APIC entry of {length} bytes")
                *_, apic_id, flags = acpi.MADT_LOCAL_APIC.unpack_from(table, offset)
                if flags & acpi.MADT_LOCAL_APIC_ENABLED:
                    cpus.append(apic_id)
            elif kind == acpi.MADT_IO_APIC_TYPE:
                if length < acpi.MADT_IO_APIC.size:
                    raise KernelPanic(f"ACPI: MADT has an I/O APIC entry of {length} bytes")
                *_, address, first_line = acpi.MADT_IO_APIC.unpack_from(table, offset)
                if first_line == 0:
                    io_apic = IoApicInfo(address, first_line)
        return Madt(local_apic, tuple(cpus), io_apic)

    def dmar(self) -> acpi.Dmar | None:
        """Remapping units, or None where the machine shows none."""
        if acpi.DMAR_SIGNATURE not in self._tables:
            return None
        table = self._required(acpi.DMAR_SIGNATURE, acpi.DMAR_BODY.size)
        width, flags, _ = acpi.DMAR_BODY.unpack_from(table, acpi.HEADER.size)
        units = []
        start = acpi.HEADER.size + acpi.DMAR_BODY.size
        for offset, kind, length in _structures(table, start, _dmar_head, acpi.DMAR_STRUCTURE.size, "DMAR"):
            if kind == acpi.DmarType.DRHD:
                if length < acpi.DMAR_DRHD.size:
                    raise KernelPanic(f"ACPI: DMAR has a DRHD of {length} bytes")
                _, _, drhd_flags, _, segment, base = acpi.DMAR_DRHD.unpack_from(table, offset)
                scopes = tuple(_scopes(table[offset + acpi.DMAR_DRHD.size : offset + length]))
                units.append(acpi.Drhd(drhd_flags, segment, base, scopes))
        if not units:
            raise KernelPanic("ACPI: DMAR defines no remapping unit")
        return acpi.Dmar(width + 1, flags, tuple(units))

    def _rows(self, signature: bytes) -> Iterator[tuple[int, int, int, int, int]]:
        table = self._required(signature, acpi.MCFG_RESERVED)
        rows = table[acpi.HEADER.size + acpi.MCFG_RESERVED :]
        if len(rows) % acpi.MCFG_ALLOCATION.size:
            raise KernelPanic(f"ACPI: MCFG of {len(table)} bytes ends within an allocation")
        return acpi.MCFG_ALLOCATION.iter_unpack(rows)

    def _required(self, signature: bytes, body: int) -> bytes:
        table = self._tables.get(signature)
        if table is None:
            raise KernelPanic(f"ACPI: no {signature.decode()} table")
        if len(table) < acpi.HEADER.size + body:
            raise KernelPanic(f"ACPI: {signature.decode()} is only {len(table)} bytes long")
        return table

    def _search(self) -> int:
        for address in range(_SCAN_FIRST, _SCAN_END, acpi.RSDP_ALIGNMENT):
            if self._read(address, len(acpi.RSDP_SIGNATURE)) == acpi.RSDP_SIGNATURE:
                return address
        raise KernelPanic("ACPI: no RSDP found")

    def _read_rsdp(self, address: int) -> int:
        """Address of the XSDT."""
        data = self._read(address, acpi.RSDP.size)
        signature, _, oem, revision, _, length, xsdt, _, _ = acpi.RSDP.unpack(data)
        if signature != acpi.RSDP_SIGNATURE:
            raise KernelPanic(f"ACPI: no RSDP at {address:#x}")
        if sum(data[: acpi.RSDP_V1_LENGTH]) & 0xFF:
            raise KernelPanic(f"ACPI: the RSDP at {address:#x} has a bad checksum")
        if revision < acpi.RSDP_REVISION or length != acpi.RSDP.size:
            raise KernelPanic(f"ACPI: an RSDP of revision {revision} and {length} bytes; ACPI 2.0 is needed")
        if sum(data) & 0xFF:
            raise KernelPanic(f"ACPI: the RSDP at {address:#x} has a bad extended checksum")
        self._log(f"ACPI: RSDP 0x{address:016X} {length:06X} (v{revision:02d} {_text(oem)})")
        return int(xsdt)

    def _table(self, address: int) -> bytes:
        header = self._read(address, acpi.HEADER.size)
        signature, length, revision, _, oem, oem_table, oem_revision, creator, creator_revision = acpi.HEADER.unpack(
            header
        )
        if not acpi.HEADER.size <= length <= _TABLE_LIMIT:
            raise KernelPanic(f"ACPI: the table {_text(signature)} at {address:#x} claims {length} bytes")
        table = self._read(address, length)
        if sum(table) & 0xFF:
            raise KernelPanic(f"ACPI: the table {_text(signature)} at {address:#x} has a bad checksum")
        self._log(
            f"ACPI: {_text(signature)} 0x{address:016X} {length:06X} (v{revision:02d} {_text(oem)} {_text(oem_table)}"
            f" {oem_revision:08X} {_text(creator)} {creator_revision:08X})"
        )
        return table

    def _read(self, address: int, length: int) -> bytes:
        try:
            return self._memory.read(address, length)
        except Unclaimed as error:
            raise KernelPanic(f"ACPI: a table lies outside memory: {error}") from error


def _structures(
    table: bytes, start: int, head: Callable[[bytes, int], tuple[int, int]], head_size: int, name: str
) -> Iterator[tuple[int, int, int]]:
    """(offset, type, length) of each structure from `start` to the end of `table`; they must fill it exactly."""
    offset = start
    while offset < len(table):
        if offset + head_size > len(table):
            raise KernelPanic(f"ACPI: {name} ends within a structure")
        kind, length = head(table, offset)
        if length < head_size or offset + length > len(table):
            raise KernelPanic(f"ACPI: {name} has a structure of {length} bytes at {offset:#x}")
        yield offset, kind, length
        offset += length


def _scopes(data: bytes) -> Iterator[acpi.DeviceScope]:
    for offset, kind, length in _structures(data, 0, _scope_head, acpi.DMAR_SCOPE.size, "DMAR device scope"):
        _, _, _, enumeration, bus = acpi.DMAR_SCOPE.unpack_from(data, offset)
        path = data[offset + acpi.DMAR_SCOPE.size : offset + length]
        if not path or len(path) % acpi.DMAR_PATH.size:
            raise KernelPanic(f"ACPI: DMAR device scope of {length} bytes")
        steps = tuple((device, function) for device, function in acpi.DMAR_PATH.iter_unpack(path))
        yield acpi.DeviceScope(kind, enumeration, bus, steps)


def _madt_head(table: bytes, offset: int) -> tuple[int, int]:
    return table[offset], table[offset + 1]


_scope_head = _madt_head


def _dmar_head(table: bytes, offset: int) -> tuple[int, int]:
    kind, length = acpi.DMAR_STRUCTURE.unpack_from(table, offset)
    return kind, length


def _text(raw: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in raw)
