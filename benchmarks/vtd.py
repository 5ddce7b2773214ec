"""Translations a second on an IOTLB hit and a 4-level walk, beside a bare dict lookup and a bare 4-load loop; replay.

Every round runs all of them one after another, so that a slow moment of the machine falls on each; the median ratio
counts. Goals: at most 3 times the bare form, and tens of thousands of replayed operations a second.
Run: `.venv/bin/python benchmarks/vtd.py`.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from viommu_actors.cli.transcripts import find, lines
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.replay.judge import judge
from viommu_actors.replay.transcript import read_header, read_operations
from viommu_actors.spec.vtd import Access, Command, ContextEntry, Reg, RootEntry, pte
from viommu_actors.vtd import RemappingUnit, UnitConfig, walk

ROUNDS, EACH = 15, 20_000
TRANSCRIPTS = Path(__file__).resolve().parents[1] / "tests" / "transcripts"
SOURCE = 0x18
ROOT, CONTEXTS, TOP, TARGETS = 0x1000, 0x2000, 0x3000, 0x10_0000
#: One table of pages; all of them fit into the IOTLB.
PAGES = 512


def main() -> None:
    """Prints the table."""
    view = memoryview(bytearray(8 << 20))
    memory = PhysicalMemory([Slot("ram", 0, view)])
    unit = build(memory)
    addresses = [index % PAGES << 12 | 8 for index in range(EACH)]
    words = view.cast("Q")
    tlb = dict.fromkeys(range(PAGES), TARGETS)
    context, config = unit.context(SOURCE), unit.config

    def bare_lookup(address: int) -> int:
        return tlb[address >> 12] + address

    def bare_walk(address: int) -> int:
        table = TOP
        for shift in (39, 30, 21, 12):
            table = words[(table >> 3) + (address >> shift & 511)] & ~0xFFF
        return table | address & 0xFFF

    translate, read = unit.translate, Access.READ
    forms: dict[str, Callable[[], object]] = {
        "dict": lambda: [bare_lookup(address) for address in addresses],
        "hit": lambda: [translate(SOURCE, address, read) for address in addresses],
        "loads": lambda: [bare_walk(address) for address in addresses],
        "walk": lambda: [walk(memory, context, address, read, config) for address in addresses],
    }
    assert bare_lookup(0x5008) == bare_walk(0x5008) == translate(SOURCE, 0x5008, read).address
    samples: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            samples[name].append((time.perf_counter() - start) / EACH)
    print(f"VT-d unit; {os.cpu_count()} CPUs; medians of {ROUNDS} interleaved rounds of {EACH}")
    row("bare dict lookup", samples["dict"])
    row("IOTLB hit", samples["hit"], samples["dict"])
    row("bare 4-load loop", samples["loads"])
    row("4-level walk", samples["walk"], samples["loads"])
    for kind, files in (("unit", "random"), ("shadow", "shadow")):
        count, seconds = replay(TRANSCRIPTS / files)
        print(f"replay, {kind:<18}{count / seconds:12,.0f} operations/s ({count} in {seconds:.2f} s)")


def row(name: str, taken: list[float], bare: list[float] | None = None) -> None:
    median = statistics.median(taken)
    text = f"{name:<24}{median * 1e9:8.0f} ns {1 / median:12,.0f} /s"
    if bare is not None:
        ratio = statistics.median(a / b for a, b in zip(taken, bare, strict=True))
        text += f"   {ratio:.1f} x bare (goal: 3)"
    print(text)


def build(memory: PhysicalMemory) -> RemappingUnit:
    """A unit with translation on and one table of pages."""

    def write(address: int, *values: int) -> None:
        for index, value in enumerate(values):
            memory.write_u64(address + 8 * index, value)

    write(ROOT, *RootEntry(True, CONTEXTS).encode())
    write(CONTEXTS + 16 * SOURCE, *ContextEntry(True, False, 0, TOP, 2, 1).encode())
    for level in range(3):
        write(TOP + 0x1000 * level, pte(TOP + 0x1000 * (level + 1), Access.BOTH))
    write(TOP + 0x3000, *(pte(TARGETS + (page << 12), Access.BOTH) for page in range(PAGES)))
    unit = RemappingUnit(UnitConfig(), memory, lambda address, data: None)
    unit.write(Reg.RTADDR, 8, ROOT)
    unit.write(Reg.GCMD, 4, Command.SRTP)
    unit.write(Reg.GCMD, 4, Command.TE)
    return unit


def replay(folder: Path) -> tuple[int, float]:
    """Operations and seconds of every transcript in a folder, judged against the specification."""
    count = 0
    start = time.perf_counter()
    for path in find([folder]):
        numbered = lines(path)
        header = read_header(next(numbered)[1])
        operations = list(read_operations(header, numbered))
        judge(header, operations, "spec")
        count += len(operations)
    return count, time.perf_counter() - start


if __name__ == "__main__":
    main()
