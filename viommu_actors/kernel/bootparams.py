"""Reads the boot parameters that firmware left: memory map, command line, where ACPI begins."""

from __future__ import annotations

from typing import NamedTuple

from viommu_actors.kernel.machine import KernelPanic
from viommu_actors.memory import Memory, Unclaimed
from viommu_actors.spec import boot

#: The kernel leaves the first MiB to firmware (Linux 5.13: reserve_real_mode).
LOW_RESERVED = 1 << 20
_TOP_OF_32_BIT = 1 << 32
#: A hole below 4 GiB is for BARs from this size on (Linux: e820__setup_pci_gap).
_SMALLEST_GAP = 4 << 20


class BootParams(NamedTuple):
    """What a kernel is told at its entry."""

    e820: tuple[boot.E820Entry, ...]
    command_line: str
    rsdp: int

    @property
    def ram(self) -> list[tuple[int, int]]:
        """(base, size) of the memory that the kernel may use, without the first MiB."""
        usable = []
        for base, size, kind in self.e820:
            start = max(base, LOW_RESERVED)
            if kind == boot.E820Type.RAM and base + size > start:
                usable.append((start, base + size - start))
        return usable

    @property
    def pci_gap(self) -> tuple[int, int]:
        """[first, end) of the largest hole below 4 GiB: where BARs go, as in Linux. Panics without one."""
        end, gap = 0, (0, 0)
        for base, size, _ in [*self.e820, boot.E820Entry(_TOP_OF_32_BIT, 0, 0)]:
            top = min(base, _TOP_OF_32_BIT)
            if top - end > gap[1] - gap[0]:
                gap = end, top
            end = max(end, base + size)
        if gap[1] - gap[0] < _SMALLEST_GAP:
            raise KernelPanic("no room for PCI devices below 4 GiB in the memory map")
        return gap


def read_boot_params(memory: Memory, address: int) -> BootParams:
    """Checks and reads the zero page at `address`. Panics where it is no such page."""
    try:
        page = memory.read(address, boot.BOOT_PARAMS_SIZE)

        def field(offset: int, size: int) -> int:
            return int.from_bytes(page[offset : offset + size], "little")

        if (
            field(boot.BOOT_FLAG, 2) != boot.BOOT_FLAG_VALUE
            or page[boot.HEADER_MAGIC : boot.HEADER_MAGIC + 4] != boot.HEADER_MAGIC_VALUE
        ):
            raise KernelPanic(f"no Linux boot parameters at {address:#x}")
        entries = field(boot.E820_ENTRIES, 1)
        if not 0 < entries <= boot.E820_LIMIT:
            raise KernelPanic(f"a memory map of {entries} ranges in the boot parameters")
        command_line = _command_line(memory, field(boot.COMMAND_LINE_POINTER, 4))
    except Unclaimed as error:
        raise KernelPanic(f"boot parameters lie outside memory: {error}") from error
    e820 = sorted(
        boot.E820Entry(*boot.E820_ENTRY.unpack_from(page, boot.E820_TABLE + index * boot.E820_ENTRY.size))
        for index in range(entries)
    )
    end = 0
    for entry in e820:
        if entry.base < end or entry.base + entry.size > 1 << 64:
            raise KernelPanic(f"the memory map's range at {entry.base:#x} overlaps another or wraps")
        end = entry.base + entry.size
    return BootParams(tuple(e820), command_line, field(boot.ACPI_RSDP_ADDRESS, 8))


def _command_line(memory: Memory, address: int) -> str:
    if not address:
        return ""
    text, nul, _ = memory.read(address, boot.COMMAND_LINE_LIMIT).partition(b"\0")
    if not nul:
        raise KernelPanic(f"the command line at {address:#x} has no end")
    return text.decode("ascii", "replace")
