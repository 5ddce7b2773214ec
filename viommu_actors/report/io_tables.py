"""The I/O of a run and its counts as tables: devices side by side, VMs before them, the modelled clock."""

from __future__ import annotations

from collections.abc import Sequence

from viommu_actors.report.results import Io, Machine, Modelled, PerPacket, Results
from viommu_actors.report.scene import WAYS
from viommu_actors.report.text import Line, Span, Table, line

DEVICES_ABREAST = 4
#: What a row of I/O counts, in words.
COUNTS = (
    ("traps", "traps to the hypervisor"),
    ("queue_tail_writes", "queue tail writes"),
    ("vfio_maps", "VFIO maps"),
    ("vfio_unmaps", "VFIO unmaps"),
    ("pte_writes", "page table writes"),
    ("invalidations", "invalidations"),
    ("device_tlb_invalidations", "device-TLB invalidations"),
    ("interrupts", "interrupts"),
    ("interrupts_forwarded", "  of them through the hypervisor"),
    ("system_calls", "system calls of the application"),
    ("wakes", "times that an interrupt woke it"),
)
#: Told only where there was any.
_OCCASIONAL = ("device_tlb_invalidations", "system_calls", "wakes")
#: The same of a VM, in fewer words.
_MACHINE_COUNTS = (
    ("traps", "traps"),
    ("vfio_maps", "VFIO maps"),
    ("vfio_unmaps", "VFIO unmaps"),
    ("pte_writes", "table writes"),
    ("invalidations", "invalidations"),
)
#: What a packet is told to have cost.
PER_PACKET = {"traps": "traps", "vfio_maps": "VFIO maps", "system_calls": "system calls", "interrupts": "interrupts"}
#: The few of them that tell what a set-up or the other end cost.
_MAIN_COUNTS = tuple(each for each in COUNTS if each[0] in ("traps", "vfio_maps", "vfio_unmaps"))


def io_tables(results: Results) -> list[Table]:
    """Counts for each device's I/O, devices side by side, and those of the VMs before it."""
    tables = [
        _io_table(results.io[start : start + DEVICES_ABREAST]) for start in range(0, len(results.io), DEVICES_ABREAST)
    ]
    return [*tables, _machine_table(results.machines)] if results.machines else tables


def modelled_table(results: Results) -> Table | None:
    """The I/O by the modelled clock, a row for each device and cost table; None where no cost table was given."""
    if not results.modelled:
        return None
    return Table(
        title="The same I/O by the MODELLED clock: the counts above times published costs, no time of this machine",
        columns=("cost table", "device", "mapping", "an operation", "a map or unmap", "unit", "line rate"),
        rows=tuple(_modelled_row(each) for each in results.modelled),
        numbers=frozenset([3, 4]),
        notes=tuple(line(Span(each.misfit, "unknown")) if each.misfit else line() for each in results.modelled),
    )


def rate_notes(results: Results) -> list[list[Line]]:
    """A block that says what packets a second compare; none without those of an application."""
    if not any(row.driver != "kernel" and row.packets_per_second for row in results.io):
        return []
    words = (
        "Packets a second compare bursts that an application polls for with one packet at a time that a kernel's driver"
        " awaits by interrupt. What the mapping alone costs is told by the counts."
    )
    return [[line(words)]]


def _counts_told(rows: Sequence[Io]) -> list[tuple[str, str]]:
    """Which of COUNTS these rows have something to tell of."""
    return [each for each in COUNTS if each[0] not in _OCCASIONAL or any(getattr(row, each[0]) for row in rows)]


def _io_table(rows: tuple[Io, ...]) -> Table:
    lines: list[tuple[str, list[Line]]] = [
        ("mapping", [line(row.mapping) for row in rows]),
        ("operations", [line(str(row.operations)) for row in rows]),
        ("bytes", [_verified(row) for row in rows]),
    ]
    for key, words in _counts_told(rows):
        lines.append((words, [line(_each(getattr(row, key), row.operations)) for row in rows]))
    if any(row.driver != "kernel" for row in rows):
        by = [line(row.driver if row.driver == "kernel" else f"app, {WAYS[row.driver]}") for row in rows]
        lines.insert(0, ("driven by", by))
        for key, words in PER_PACKET.items():
            lines.append((f"a packet: {words}", [line(a_packet(row.per_packet, key)) for row in rows]))
        if any(row.packets_per_second for row in rows):
            lines.append(("packets a second, wall clock", [line(_rate(row)) for row in rows]))
    if any(row.receiver for row in rows):
        lines += [(f"receiver: {words}", [_receivers(row, key) for row in rows]) for key, words in _MAIN_COUNTS]
    if any(row.map_unmap_us is not None for row in rows):
        lines.append(("map and unmap of a page, µs", [line(_told(row.map_unmap_us)) for row in rows]))
    for vm in dict.fromkeys(level.vm for row in rows for level in row.levels):
        lines += [(f"{vm}: {words}", [_of_level(row, vm, key) for row in rows]) for key, words in _MAIN_COUNTS]
    for key, words in _MAIN_COUNTS:
        lines.append((f"driver's set-up: {words}", [_set_up(row, key) for row in rows]))
    return Table(
        title="I/O, and what it cost in the steady state (in brackets: for each operation)",
        columns=("", *(f"{row.device} to {row.peer}" if row.peer else row.device for row in rows)),
        rows=tuple((line(words), *cells) for words, cells in lines),
        numbers=frozenset(range(1, len(rows) + 1)),
    )


def a_packet(counts: PerPacket | None, key: str) -> str:
    return "" if counts is None else f"{getattr(counts, key):.4g}"


def _rate(row: Io) -> str:
    return "" if row.packets_per_second is None else f"{row.packets_per_second:,.0f}"


def _set_up(row: Io, key: str) -> Line:
    """An application's is told with the application."""
    return line(str(getattr(row.setup, key)) if row.driver == "kernel" else "")


def _receivers(row: Io, key: str) -> Line:
    return line("" if row.receiver is None else _each(getattr(row.receiver, key), row.operations))


def _told(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"


def _of_level(row: Io, vm: str, key: str) -> Line:
    counts = next((level.counts for level in row.levels if level.vm == vm), None)
    return line("" if counts is None else _each(getattr(counts, key), row.operations))


def _machine_table(machines: tuple[Machine, ...]) -> Table:
    stages = [
        (each.vm, stage, counts)
        for each in machines
        for stage, counts in (("built", each.build), ("booted", each.boot))
    ]
    return Table(
        title="What each VM cost until its kernel had booted, drivers and all",
        columns=("VM", "", *(words for _, words in _MACHINE_COUNTS)),
        rows=tuple(
            (line(vm), line(stage), *(line(str(getattr(counts, key))) for key, _ in _MACHINE_COUNTS))
            for vm, stage, counts in stages
        ),
        numbers=frozenset(range(2, 2 + len(_MACHINE_COUNTS))),
    )


def _modelled_row(each: Modelled) -> tuple[Line, ...]:
    per_mapping = "none" if each.per_mapping is None else f"{each.per_mapping:,.0f}"
    percent = f"{each.percent_of_line_rate:.1f} % of {each.line_rate}"
    cells = (each.table, each.device, each.mapping, f"{each.per_operation:,.0f}", per_mapping, each.unit, percent)
    return tuple(line(cell) for cell in cells)


def _verified(row: Io) -> Line:
    if not row.should_work and row.ok:
        return line("none, as expected")
    return line(f"{row.bytes}, ", Span("all verified", "safe") if row.verified else Span("NOT VERIFIED", "unsafe"))


def _each(count: int, operations: int) -> str:
    return f"{count} ({count / operations:.4g})" if operations else str(count)
