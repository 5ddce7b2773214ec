"""The modelled clock: exact counts of a run times published costs, in place of this machine's time.

No time that is measured here compares with a published one, since a hop between two processes costs more than
hardware takes for the whole operation. Counts compare; charged with cited costs they give cycles and throughput.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from viommu_actors.measure.costs import CostTable, System
from viommu_actors.report.results import Io, Modelled


def counts(row: Io) -> dict[str, int]:
    """What a cost table charges for, by the name of its step."""
    # A kernel without translation has nothing to do for a map: no IOVA, no table entry.
    mappings = row.dma_maps + row.dma_unmaps if row.pte_writes else 0
    return {
        "trap": row.traps,
        "invalidation": row.invalidations,
        "vfio_map": row.vfio_maps,
        "vfio_unmap": row.vfio_unmaps,
        "pte_write": row.pte_writes,
        "logic": mappings,
    }


def charge(row: Io, table: CostTable, system: System | None = None) -> Modelled:
    """One device's steady state by the modelled clock; `system` is who drives it, where that is to be held against the
    table. Raises ValueError for a row without operations."""
    if not row.operations:
        raise ValueError(f"{row.device} did no operation that could be charged for")
    counted = counts(row)
    steps: dict[str, float] = {}
    for step, count in counted.items():
        figure = getattr(table.steps, step)
        if figure is not None:
            steps[step] = count * figure.cost / row.operations
    total = sum(steps.values())
    mappings = counted["logic"]
    return Modelled(
        table=table.name,
        device=row.device,
        mapping=row.mapping,
        unit=table.unit,
        steps=steps,
        per_operation=total,
        per_mapping=total * row.operations / mappings if mappings else None,
        per_io=table.line_rate.io.cost + total,
        percent_of_line_rate=percent_of_line_rate(table, total),
        line_rate=table.line_rate.of,
        misfit=_misfit(table, system) if total else "",
    )


def _misfit(table: CostTable, system: System | None) -> str:
    if None in (table.system, system) or table.system == system:
        return ""
    return f"it means nothing: the table charges counts of a {table.system}'s kernel, these are of a {system}'s"


def percent_of_line_rate(table: CostTable, per_io: float) -> float:
    """100 * min(1, B / (A + `per_io`)), where `per_io` is what the maps and unmaps of an I/O cost (published: 2c)."""
    busy = table.line_rate.io.cost + per_io
    return 100.0 if busy <= table.line_rate.full.cost else 100 * table.line_rate.full.cost / busy


def charge_all(rows: Iterable[Io], tables: Iterable[CostTable], of_guests: Container[str]) -> tuple[Modelled, ...]:
    """Every device that worked, by every table; `of_guests` has the names of devices that guests drive."""
    worked = [row for row in rows if row.operations]
    return tuple(
        charge(row, table, "guest" if row.device in of_guests else "host") for table in tables for row in worked
    )
