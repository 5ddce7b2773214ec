"""ACPI tables: what the firmware writes, an outside judge and the kernel read alike; bad ones panic, and at once."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.judges import require
from viommu_actors.firmware import acpi as build
from viommu_actors.firmware.boot import MachineDescription, install_acpi, remapping_unit
from viommu_actors.kernel.acpi import AcpiTables
from viommu_actors.kernel.machine import KernelPanic
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.spec import acpi, platform

MIB = 1 << 20
SCOPES = (
    acpi.DeviceScope(acpi.ScopeType.ENDPOINT, 0, 0, ((4, 0),)),
    acpi.DeviceScope(acpi.ScopeType.BRIDGE, 0, 0, ((6, 0), (0, 1))),
)
PLAIN = remapping_unit(48, interrupt_remapping=True)
SCOPED = remapping_unit(39, scopes=SCOPES)


def memory_of(dmar: acpi.Dmar | None = PLAIN, cpus: int = 4) -> PhysicalMemory:
    memory = PhysicalMemory([Slot("low", 0, memoryview(bytearray(MIB)))])
    install_acpi(memory, MachineDescription(ram=((0, MIB),), dmar=dmar, cpus=cpus))
    return memory


def parsed(memory: PhysicalMemory, rsdp: int = platform.ACPI_TABLES) -> AcpiTables:
    return AcpiTables(memory, rsdp, lambda line: None)


def place(memory: PhysicalMemory, signature: bytes) -> tuple[int, int]:
    """Address and length of a table."""
    image = memory.read(platform.ACPI_TABLES, platform.FIRMWARE_END - platform.ACPI_TABLES)
    offset = image.index(signature)
    return platform.ACPI_TABLES + offset, int.from_bytes(image[offset + 4 : offset + 8], "little")


def replace(memory: PhysicalMemory, signature: bytes, change: Callable[[bytearray], bytes]) -> None:
    """Puts a changed table in the place of one, its length and checksum made right again."""
    address, length = place(memory, signature)
    data = bytearray(change(bytearray(memory.read(address, length))))
    data[4:8] = len(data).to_bytes(4, "little")
    data[acpi.HEADER_CHECKSUM] = 0
    data[acpi.HEADER_CHECKSUM] = build.checksum(data)
    memory.write(address, bytes(data))


def anonymous(table: bytes) -> bytes:
    """A table without what a compiler puts in: its own name, and the checksum for it."""
    return table[: acpi.HEADER_CHECKSUM] + table[acpi.HEADER_CHECKSUM + 1 : 28] + table[acpi.HEADER.size :]


def test_the_kernel_reads_what_the_firmware_wrote() -> None:
    tables = parsed(memory_of(PLAIN))
    assert tables.dmar() == PLAIN
    assert tables.ecam() == acpi.Ecam(platform.ECAM_BASE, 0, 0, 255)
    assert tables.madt().cpus == (0, 1, 2, 3) and tables.madt().local_apic == platform.LOCAL_APIC_BASE
    assert parsed(memory_of(SCOPED)).dmar() == SCOPED
    assert parsed(memory_of(None)).dmar() is None


def test_the_rsdp_is_searched_for_where_none_is_named() -> None:
    memory = memory_of()
    assert parsed(memory, 0).dmar() == PLAIN
    memory.write(platform.ACPI_TABLES, bytes(8))
    with pytest.raises(KernelPanic, match="no RSDP found"):
        parsed(memory, 0)


@pytest.mark.judge("iasl")
@pytest.mark.parametrize("dmar", [PLAIN, SCOPED], ids=["all", "scoped"])
def test_iasl_decodes_each_table_as_meant(dmar: acpi.Dmar, tmp_path: Path) -> None:
    iasl = require("iasl")
    memory = memory_of(dmar)
    texts = {}
    for signature in (acpi.MCFG_SIGNATURE, acpi.MADT_SIGNATURE, acpi.DMAR_SIGNATURE, acpi.XSDT_SIGNATURE):
        address, length = place(memory, signature)
        name = signature.decode().lower()
        table = tmp_path / f"{name}.dat"
        table.write_bytes(memory.read(address, length))
        run = subprocess.run([iasl, "-d", table.name], cwd=tmp_path, capture_output=True, text=True, timeout=30)
        said = run.stdout + run.stderr
        assert run.returncode == 0 and not re.search(r"error|warning|incorrect|invalid", said, re.IGNORECASE), said
        text = (tmp_path / f"{name}.dsl").read_text()
        assert not re.search(r"error|warning|incorrect|invalid|\*\*\*\*", text, re.IGNORECASE), text
        texts[signature] = text
        if signature != acpi.XSDT_SIGNATURE:
            again = tmp_path / "again"
            run = subprocess.run(
                [iasl, "-p", str(again), f"{name}.dsl"], cwd=tmp_path, capture_output=True, text=True, timeout=30
            )
            assert run.returncode == 0 and re.search(r"0 Errors, 0 Warnings", run.stdout), run.stdout
            assert anonymous(again.with_suffix(".aml").read_bytes()) == anonymous(table.read_bytes())
    read = texts[acpi.DMAR_SIGNATURE]
    unit = dmar.units[0]
    expected = [
        rf"Host Address Width : {dmar.host_address_width - 1:02X}",
        rf"Flags : {dmar.flags:02X}",
        rf"Flags : {unit.flags:02X}",
        rf"Register Base Address : {unit.base:016X}",
        *(rf"PCI Path : {d:02X},{f:02X}" for scope in unit.scopes for d, f in scope.path),
    ]
    for line in expected:
        assert line in read, f"{line} not in\n{read}"


@pytest.mark.parametrize("signature", [b"XSDT", b"MCFG", b"APIC", b"DMAR", b"RSD PTR "])
def test_a_changed_byte_is_a_bad_checksum(signature: bytes) -> None:
    memory = memory_of()
    if signature == b"RSD PTR ":
        for offset in (acpi.RSDP_CHECKSUM, acpi.RSDP_EXTENDED_CHECKSUM):
            memory = memory_of()
            old = memory.read(platform.ACPI_TABLES + offset, 1)[0]
            memory.write(platform.ACPI_TABLES + offset, bytes([old ^ 1]))
            with pytest.raises(KernelPanic, match="checksum"):
                parsed(memory)
        return
    address, length = place(memory, signature)
    old = memory.read(address + length - 1, 1)[0]
    memory.write(address + length - 1, bytes([old ^ 1]))
    with pytest.raises(KernelPanic, match=f"{signature.decode()} at {address:#x} has a bad checksum"):
        parsed(memory)


@pytest.mark.parametrize("claimed", [0, 35, (1 << 20) + 1, 0xFFFF_FFFF])
def test_an_impossible_length(claimed: int) -> None:
    memory = memory_of()
    address, _ = place(memory, b"DMAR")
    memory.write(address + 4, claimed.to_bytes(4, "little"))
    with pytest.raises(KernelPanic, match=f"claims {claimed} bytes"):
        parsed(memory)


def test_tables_that_lead_outside_memory_or_in_circles() -> None:
    memory = memory_of()
    replace(memory, b"XSDT", lambda table: table[: acpi.HEADER.size] + acpi.XSDT_ENTRY.pack(1 << 50))
    with pytest.raises(KernelPanic, match="outside memory"):
        parsed(memory)
    memory = memory_of()
    xsdt, _ = place(memory, b"XSDT")
    replace(memory, b"XSDT", lambda table: table[: acpi.HEADER.size] + acpi.XSDT_ENTRY.pack(xsdt) * 3)
    with pytest.raises(KernelPanic, match="no MCFG table"):
        parsed(memory).ecam()
    memory = memory_of()
    replace(memory, b"XSDT", lambda table: table + b"\0")
    with pytest.raises(KernelPanic, match="an XSDT of"):
        parsed(memory)
    memory = memory_of()
    address, _ = place(memory, b"MCFG")
    memory.write(platform.ACPI_TABLES, build.rsdp(address))
    with pytest.raises(KernelPanic, match="not to an XSDT"):
        parsed(memory)
    memory.write(platform.ACPI_TABLES, bytes(36))
    with pytest.raises(KernelPanic, match="no RSDP at"):
        parsed(memory)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b"\0\0\0\0", "structure of 0 bytes"),
        (b"\0\0", "ends within a structure"),
        (b"\0\0\xff\0", "structure of 255 bytes"),
        (b"\0\0\x08\0\0\0\0\0", "DRHD of 8 bytes"),
        (b"\0\0\x16\0" + bytes(12) + b"\x01\x06\0\0\0\0", "device scope of 6 bytes"),
        (b"\0\0\x16\0" + bytes(12) + b"\x01\x00\0\0\0\0", "structure of 0 bytes"),
        (b"\0\0\x17\0" + bytes(12) + b"\x01\x07\0\0\0\0\0", "device scope of 7 bytes"),
        (b"", "no remapping unit"),
    ],
)
def test_bad_dmar_structures(tail: bytes, reason: str) -> None:
    memory = memory_of()
    head = acpi.HEADER.size + acpi.DMAR_BODY.size
    replace(memory, b"DMAR", lambda table: table[:head] + tail)
    with pytest.raises(KernelPanic, match=reason):
        parsed(memory).dmar()


def test_unknown_structures_are_passed_over() -> None:
    memory = memory_of()
    rmrr = acpi.DMAR_STRUCTURE.pack(acpi.DmarType.RMRR, 24) + bytes(20)
    replace(memory, b"DMAR", lambda table: table + rmrr)
    assert parsed(memory).dmar() == PLAIN
    memory = memory_of(None)
    replace(memory, b"APIC", lambda table: table + b"\x01\x0c" + bytes(10))
    assert len(parsed(memory).madt().cpus) == 4


@pytest.mark.parametrize(
    ("signature", "size", "read"),
    [
        (b"DMAR", 36, AcpiTables.dmar),
        (b"MCFG", 36, AcpiTables.ecam),
        (b"MCFG", 44, AcpiTables.ecam),
        (b"MCFG", 50, AcpiTables.ecam),
        (b"APIC", 40, AcpiTables.madt),
        (b"APIC", 45, AcpiTables.madt),
    ],
)
def test_truncated_tables(signature: bytes, size: int, read: Callable[[AcpiTables], object]) -> None:
    memory = memory_of()
    replace(memory, signature, lambda table: table[:size])
    with pytest.raises(KernelPanic, match="ACPI"):
        read(parsed(memory))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_stands_there_ends_in_a_value_or_a_panic(data: st.DataObject) -> None:
    memory = memory_of(SCOPED)
    signature = data.draw(st.sampled_from([b"DMAR", b"APIC", b"MCFG"]))
    body = data.draw(st.binary(max_size=80))
    keep = data.draw(st.integers(acpi.HEADER.size, place(memory, signature)[1]))
    replace(memory, signature, lambda table: table[:keep] + body)
    try:
        tables = parsed(memory)
        tables.dmar()
        tables.madt()
        tables.ecam()
    except KernelPanic:
        pass
