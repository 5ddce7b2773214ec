"""The results of a soak, `soak.json`: as text, and drawn over time."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from viommu_actors.report.charts import COLOURS, Curve, curves
from viommu_actors.report.markup import Markup, element
from viommu_actors.report.parts import line_html, table_html
from viommu_actors.report.text import Line, Span, Table, line, plain, table_text

#: Rows of the table over time.
_ROWS = 12


class Sample(Struct, kw_only=True, frozen=True):
    """At a time: operations up to then, how many a second since the sample before, and what each process holds."""

    seconds: float
    operations: int
    per_second: float
    memory_kib: dict[str, int]


class Book(Struct, kw_only=True, frozen=True):
    """What one level has mapped and unmapped, and what is live there."""

    level: str
    mapped: int
    unmapped: int
    live: int
    balanced: bool


class Soak(Struct, kw_only=True, frozen=True):
    """The object of `soak.json`. `ended` is why it did not go on to its end."""

    placement: str = ""
    seconds: float = 0.0
    operations: int = 0
    samples: tuple[Sample, ...] = ()
    #: process -> KiB
    grown: dict[str, int] = {}
    lost: tuple[str, ...] = ()
    books: tuple[Book, ...] = ()
    ended: str = ""
    ok: bool = False


def read_soak(path: Path) -> Soak | None:
    """None where there is no such file. Raises msgspec.DecodeError for one that is something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Soak)
    except FileNotFoundError:
        return None


def soak_text(soak: Soak) -> str:
    """Throughput and memory over time, what grew, and whether the books balance."""
    tables = (_over_time(soak), _books(soak))
    return "\n\n".join([*map(table_text, tables), "\n".join(map(plain, _verdicts(soak)))])


def soak_html(soak: Soak) -> list[Markup]:
    """The same for the report, with curves."""
    samples = soak.samples
    rate = Curve("operations a second", "part0", tuple((each.seconds, each.per_second) for each in samples))
    memory = [
        Curve(name, f"part{number % COLOURS}", tuple((each.seconds, each.memory_kib[name] / 1024) for each in samples))
        for number, name in enumerate(samples[0].memory_kib if samples else ())
    ]
    key = [element("li", element("span", " ", class_=f"swatch {each.colour}"), " ", each.label) for each in memory]
    drawn = (
        element("h3", "Operations a second"),
        element("div", curves("Operations a second", [rate], "s", "/s"), class_="scroll"),
        element("h3", "Resident memory of each process"),
        element("ul", *key, class_="legend parts"),
        element("div", curves("Resident memory of each process", memory, "s", "MiB"), class_="scroll"),
    )
    return [*(element("p", line_html(each)) for each in _verdicts(soak)), *drawn, table_html(_books(soak))]


def _over_time(soak: Soak) -> Table:
    actors = list(soak.samples[0].memory_kib) if soak.samples else []
    step = max(len(soak.samples) // _ROWS, 1)
    return Table(
        title="Operations a second, and resident memory of each process in KiB",
        columns=("seconds", "a second", *actors),
        rows=tuple(
            (
                line(f"{each.seconds:.0f}"),
                line(f"{each.per_second:.0f}"),
                *(line(str(each.memory_kib[name])) for name in actors),
            )
            for each in soak.samples[::step]
        ),
        numbers=frozenset(range(len(actors) + 2)),
    )


def _books(soak: Soak) -> Table:
    return Table(
        title="Books: what was mapped and not unmapped is what is live",
        columns=("level", "mapped", "unmapped", "difference", "live", ""),
        rows=tuple(
            (
                line(each.level),
                *(line(str(n)) for n in (each.mapped, each.unmapped, each.mapped - each.unmapped, each.live)),
                line(Span("balanced", "safe") if each.balanced else Span("DIFFERS", "unsafe")),
            )
            for each in soak.books
        ),
        numbers=frozenset({1, 2, 3, 4}),
    )


def _verdicts(soak: Soak) -> list[Line]:
    grown = ", ".join(f"{name} by {kib} KiB" for name, kib in soak.grown.items())
    lost = "; ".join(soak.lost)
    told = [line(f"{soak.operations} operations in {soak.seconds:.0f} s, placement {soak.placement}")]
    told.append(line("grown: ", Span(grown, "unsafe") if grown else Span("nothing", "safe")))
    if soak.books:
        kept = Span("nothing, both ends of every wire counted the same", "safe")
        told.append(line("lost: ", Span(lost, "unsafe") if lost else kept))
    return told
