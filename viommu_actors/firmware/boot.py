"""Writes what a machine's firmware and boot loader leave in memory for a Linux-like kernel."""

from __future__ import annotations

from dataclasses import dataclass

from viommu_actors.firmware import acpi as tables
from viommu_actors.memory import Memory
from viommu_actors.spec import acpi, boot, ioapic, pci, platform

#: Extended BIOS data area and video memory: never RAM for a kernel (QEMU's e820).
_CONVENTIONAL_END = 0x9_FC00
_IO_APIC = acpi.DeviceScope(
    acpi.ScopeType.IOAPIC,
    ioapic.IDENTIFIER,
    pci.bdf_bus(platform.IOAPIC_SOURCE_ID),
    ((pci.bdf_device(platform.IOAPIC_SOURCE_ID), pci.bdf_function(platform.IOAPIC_SOURCE_ID)),),
)


@dataclass(frozen=True)
class MachineDescription:
    """A machine as its firmware describes it.

    `ram` holds (base, size) ranges that do not overlap; one begins at 0 and holds the first MiB.
    `dmar` is None where no remapping unit is present or shown.
    """

    ram: tuple[tuple[int, int], ...]
    command_line: str = ""
    dmar: acpi.Dmar | None = None
    cpus: int = 1


def remapping_unit(
    host_address_width: int, interrupt_remapping: bool = False, scopes: tuple[acpi.DeviceScope, ...] = ()
) -> acpi.Dmar:
    """A DMAR table with the platform's one unit, over all of PCI or over `scopes`; and over the I/O APIC, if it remaps
    interrupts."""
    flags = acpi.DmarFlags.INTR_REMAP if interrupt_remapping else 0
    everything = 0 if scopes else acpi.DrhdFlags.INCLUDE_PCI_ALL
    if interrupt_remapping:
        scopes = (*scopes, _IO_APIC)
    unit = acpi.Drhd(int(everything), 0, platform.REMAPPING_UNIT_BASE, scopes)
    return acpi.Dmar(host_address_width, int(flags), (unit,))


def install(memory: Memory, machine: MachineDescription) -> int:
    """Writes boot parameters, command line and ACPI tables; returns the boot parameters' address.

    Raises ValueError for a command line that is too long or a RAM layout without the first MiB.
    """
    if not any(base == 0 and size >= platform.FIRMWARE_END for base, size in machine.ram):
        raise ValueError("a machine needs RAM in the first MiB for its boot parameters")
    command_line = machine.command_line.encode("ascii") + b"\0"
    if len(command_line) > boot.COMMAND_LINE_LIMIT:
        raise ValueError(f"command line longer than {boot.COMMAND_LINE_LIMIT - 1} characters")
    memory.write(platform.COMMAND_LINE, command_line)
    memory.write(platform.ZERO_PAGE, boot_params(machine, install_acpi(memory, machine), len(command_line) - 1))
    return platform.ZERO_PAGE


def install_acpi(memory: Memory, machine: MachineDescription) -> int:
    """Writes the ACPI tables; returns the RSDP's address."""
    bodies = [
        tables.mcfg(acpi.Ecam(platform.ECAM_BASE, 0, 0, platform.ECAM_BUSES - 1)),
        tables.madt(machine.cpus, platform.LOCAL_APIC_BASE, platform.IOAPIC_BASE),
    ]
    if machine.dmar is not None:
        bodies.append(tables.dmar(machine.dmar))
    xsdt = _aligned(platform.ACPI_TABLES + acpi.RSDP.size)
    address = _aligned(xsdt + acpi.HEADER.size + len(bodies) * acpi.XSDT_ENTRY.size)
    addresses = []
    for body in bodies:
        if address + len(body) > platform.FIRMWARE_END:
            raise ValueError("ACPI tables do not fit below 1 MiB")
        memory.write(address, body)
        addresses.append(address)
        address = _aligned(address + len(body))
    memory.write(xsdt, tables.xsdt(addresses))
    memory.write(platform.ACPI_TABLES, tables.rsdp(xsdt))
    return platform.ACPI_TABLES


def boot_params(machine: MachineDescription, rsdp: int, command_line_size: int) -> bytes:
    """The zero page for `machine`."""
    page = bytearray(boot.BOOT_PARAMS_SIZE)

    def put(offset: int, size: int, value: int) -> None:
        page[offset : offset + size] = value.to_bytes(size, "little")

    put(boot.ACPI_RSDP_ADDRESS, 8, rsdp)
    put(boot.BOOT_FLAG, 2, boot.BOOT_FLAG_VALUE)
    page[boot.HEADER_MAGIC : boot.HEADER_MAGIC + 4] = boot.HEADER_MAGIC_VALUE
    put(boot.PROTOCOL_VERSION, 2, boot.PROTOCOL_VERSION_VALUE)
    put(boot.TYPE_OF_LOADER, 1, boot.LOADER_UNDEFINED)
    put(boot.COMMAND_LINE_POINTER, 4, platform.COMMAND_LINE)
    put(boot.COMMAND_LINE_SIZE, 4, command_line_size)
    entries = memory_map(machine.ram)
    if len(entries) > boot.E820_LIMIT:
        raise ValueError(f"more than {boot.E820_LIMIT} ranges in the memory map")
    put(boot.E820_ENTRIES, 1, len(entries))
    for index, entry in enumerate(entries):
        boot.E820_ENTRY.pack_into(page, boot.E820_TABLE + index * boot.E820_ENTRY.size, *entry)
    return bytes(page)


def memory_map(ram: tuple[tuple[int, int], ...]) -> list[boot.E820Entry]:
    """The e820 table. Below 4 GiB whatever is neither RAM nor the BAR window is reserved.

    So the largest hole that a kernel finds there is the BAR window, wherever RAM ends.
    """
    entries = []
    for base, size in sorted(ram):
        if base == 0:
            entries.append(boot.E820Entry(0, _CONVENTIONAL_END, boot.E820Type.RAM))
            hole = platform.FIRMWARE_END - _CONVENTIONAL_END
            entries.append(boot.E820Entry(_CONVENTIONAL_END, hole, boot.E820Type.RESERVED))
            base, size = platform.FIRMWARE_END, size - platform.FIRMWARE_END
        if size:
            entries.append(boot.E820Entry(base, size, boot.E820Type.RAM))
    low = [entry for entry in entries if entry.base < platform.HIGH_MEMORY]
    holes = []
    bounds = [*((e.base, e.base + e.size) for e in low), (platform.MMIO_FIRST, platform.MMIO_LAST + 1)]
    end = 0
    for first, last in [*bounds, (platform.HIGH_MEMORY, platform.HIGH_MEMORY)]:
        if first > end:
            holes.append(boot.E820Entry(end, first - end, boot.E820Type.RESERVED))
        end = last
    return sorted(entries + holes)


def _aligned(address: int) -> int:
    return -(-address // acpi.RSDP_ALIGNMENT) * acpi.RSDP_ALIGNMENT
