"""Latencies as a run's `latency.json` has them, and what the report shows of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct, field

from viommu_actors.report.charts import COLOURS, Bar, Range, bars, ranges
from viommu_actors.report.markup import Markup, element, join
from viommu_actors.report.parts import folded
from viommu_actors.report.text import Line, Span, Table, line

_MARKS = (("p50", "p50_us"), ("p90", "p90_us"), ("p99", "p99_us"), ("max", "max_us"), ("floor", "floor_us"))


class LatencyRow(Struct, kw_only=True, frozen=True):
    """One operation, in microseconds of `clock`. `hops` add up to the whole; `ratio` is to the floor."""

    name: str
    placement: str = ""
    clock: str = "wall"
    n: int = 0
    p50_us: float | None = None
    p90_us: float | None = None
    p99_us: float | None = None
    max_us: float | None = None
    floor_us: float | None = None
    ratio: float | None = None
    hops: dict[str, float] = field(default_factory=dict)


class Goal(Struct, kw_only=True, frozen=True):
    """A limit on a ratio, and whether it was kept."""

    name: str
    ratio: float
    limit: float
    at_least: bool = False
    met: bool


class Latencies(Struct, kw_only=True, frozen=True):
    """The object of `latency.json`."""

    placement: str = ""
    rows: tuple[LatencyRow, ...] = ()
    goals: tuple[Goal, ...] = ()


def read_latencies(path: Path) -> Latencies | None:
    """None where there is no such file. Raises msgspec.DecodeError for one that is something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Latencies)
    except FileNotFoundError:
        return None


def latency_table(latencies: Latencies) -> Table:
    def figures(row: LatencyRow) -> list[Line]:
        return [line(_us(getattr(row, key))) for _, key in _MARKS]

    return Table(
        title="Latencies in µs, beside the floor of bare ZeroMQ in the same run",
        columns=("operation", "clock", "n", "p50", "p90", "p99", "max", "floor", "ratio"),
        rows=tuple(
            (line(_name(latencies, row)), line(row.clock), line(str(row.n)), *figures(row), line(_us(row.ratio)))
            for row in latencies.rows
        ),
        numbers=frozenset(range(2, 9)),
    )


def goal_table(latencies: Latencies) -> Table | None:
    """Ratios against what they should be; None where there are no goals."""
    if not latencies.goals:
        return None
    return Table(
        title="Goals",
        columns=("ratio of", "reached", "goal", ""),
        rows=tuple(
            (
                line(goal.name),
                line(_us(goal.ratio)),
                line(f"at {'least' if goal.at_least else 'most'} {goal.limit:g}"),
                line(Span("met", "safe") if goal.met else Span("MISSED", "unsafe")),
            )
            for goal in latencies.goals
        ),
        numbers=frozenset([1]),
    )


def distributions(latencies: Latencies) -> Markup | None:
    """From the median to the highest figure there is, on one scale; None where nothing can be drawn."""
    rows = [drawn for row in latencies.rows if (drawn := _range(_name(latencies, row), row)) is not None]
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
            _name(latencies, row),
            tuple((colours[hop], value) for hop, value in row.hops.items() if any(_drawable([value]))),
            f"{_us(sum(_drawable(row.hops.values())))} µs",
        )
        for row in told
    ]
    key = [element("li", element("span", " ", class_=f"swatch {colour}"), " ", hop) for hop, colour in colours.items()]
    figures = Table(
        title="Hops in µs",
        columns=("operation", *colours),
        rows=tuple((line(_name(latencies, row)), *(line(_us(row.hops.get(hop))) for hop in colours)) for row in told),
        numbers=frozenset(range(1, 1 + len(colours))),
    )
    drawn = element("div", bars("Time of each operation, hop by hop", rows, 1000, 210), class_="scroll")
    return join(element("ul", *key, class_="legend parts"), drawn, folded(figures))


def _range(name: str, row: LatencyRow) -> Range | None:
    known = [(mark, value) for mark, key in _MARKS if any(_drawable([value := getattr(row, key)]))]
    low = [value for mark, value in known if mark != "floor"]
    if not low:
        return None
    told = ", ".join(f"{mark} {_us(value)}" for mark, value in known if mark in ("p50", "p99")) + " µs"
    return Range(name, min(low), max(low), tuple(known), told)


def _name(latencies: Latencies, row: LatencyRow) -> str:
    """With its placement where there are several, and with its clock where that is not the wall's."""
    several = len({each.placement for each in latencies.rows}) > 1
    clock = row.clock if row.clock != "wall" else ""
    return ", ".join(filter(None, (row.name, row.placement if several else "", clock)))


def _drawable(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value) and value > 0]


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
