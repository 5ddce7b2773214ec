"""Latencies drawn: their distributions, and where the time of each operation went."""

from __future__ import annotations

import math
from collections.abc import Iterable

from viommu_actors.report.charts import COLOURS, Bar, Range, bars, ranges
from viommu_actors.report.latency import Latencies, LatencyRow, microseconds, operation
from viommu_actors.report.latency_tables import hop_tables
from viommu_actors.report.markup import Markup, element, join
from viommu_actors.report.parts import folded

_MARKS = (("p50", "p50_us"), ("p90", "p90_us"), ("p99", "p99_us"), ("max", "max_us"), ("floor", "floor_us"))


def marks_of(latencies: Latencies) -> list[str]:
    """The kinds of marks that `distributions` draws."""
    return [mark for mark, key in _MARKS if _drawable(getattr(row, key) for row in latencies.rows)]


def distributions(latencies: Latencies) -> Markup | None:
    """From the median to the highest figure there is, on one scale; None where nothing can be drawn."""
    rows = [drawn for row in latencies.rows if (drawn := _range(operation(latencies, row), row)) is not None]
    return ranges("Latencies: from p50 to the slowest, beside their floor", rows, "µs") if rows else None


def breakdown(latencies: Latencies) -> Markup | None:
    """Where the time went, hop by hop; None where no row tells."""
    told = [row for row in latencies.rows if any(_drawable([*row.hops.values()]))]
    if not told:
        return None
    hops = dict.fromkeys(hop for row in told for hop in row.hops)
    colours = {hop: f"part{index % COLOURS}" for index, hop in enumerate(hops)}
    rows = [
        Bar(
            operation(latencies, row),
            tuple((colours[hop], value) for hop, value in row.hops.items() if any(_drawable([value]))),
            f"{microseconds(sum(_drawable(row.hops.values())))} µs",
        )
        for row in told
    ]
    key = [element("li", element("span", " ", class_=f"swatch {colour}"), " ", hop) for hop, colour in colours.items()]
    drawn = element("div", bars("Time of each operation, hop by hop", rows, 1000, 210), class_="scroll")
    return join(element("ul", *key, class_="legend parts"), drawn, *map(folded, hop_tables(latencies)))


def _range(name: str, row: LatencyRow) -> Range | None:
    known = [(mark, value) for mark, key in _MARKS if any(_drawable([value := getattr(row, key)]))]
    low = [value for mark, value in known if mark != "floor"]
    if not low:
        return None
    told = ", ".join(f"{mark} {microseconds(value)}" for mark, value in known if mark in ("p50", "p99")) + " µs"
    return Range(name, min(low), max(low), tuple(known), told)


def _drawable(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value) and value > 0]
