"""Bars and curves as SVG: counts, times in stacked parts, ranges, what changes over time. All tell their figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from viommu_actors.report.markup import Markup, element, svg_text

_ROW, _BAR, _BASELINE = 22, 14, 12
_VALUE, _MORE_VALUE = 84, 180
#: Beside curves, for their scale.
_MARGIN = 130
#: From what width on a part of a bar tells its figure itself.
_INSIDE = 36
#: How many kinds of parts have a colour of their own.
COLOURS = 14


@dataclass(frozen=True)
class Bar:
    """`parts` are (kind, value); `kind` is the CSS class of a part."""

    label: str
    parts: tuple[tuple[str, float], ...]
    told: str

    @property
    def total(self) -> float:
        return sum(value for _, value in self.parts)


@dataclass(frozen=True)
class Range:
    """From `low` to `high` with `marks` (kind, value) on it, all above 0."""

    label: str
    low: float
    high: float
    marks: tuple[tuple[str, float], ...]
    told: str


@dataclass(frozen=True)
class Curve:
    """`colour` is the name of one in the style sheet; `points` are (x, y), none below 0."""

    label: str
    colour: str
    points: tuple[tuple[float, float], ...]


def bars(title: str, rows: Sequence[Bar], width: float = 370, labels: float = 150) -> Markup:
    """Horizontal bars from a common zero, the longest as long as there is room beside `labels` pixels."""
    room = width - labels - _VALUE
    longest = max((row.total for row in rows), default=0) or 1
    drawn: list[Markup] = []
    for index, row in enumerate(rows):
        x, y = labels, index * _ROW
        for kind, value in row.parts:
            size = room * value / longest
            # What is there, but too small to be seen, still shows.
            drawn.append(_rect(x, y, max(size, 1.0) if value else 0.0, kind))
            if len(row.parts) > 1 and size > _INSIDE:
                drawn.append(svg_text(x + size / 2, y + _BASELINE + 1, f"{value:.3g}", "inside middle"))
            x += size
        drawn += _words(row.label, labels, y, x + 6, row.told)
    return _chart(title, rows, drawn, width)


def ranges(title: str, rows: Sequence[Range], unit: str, width: float = 1000, labels: float = 210) -> Markup:
    """Horizontal ranges on a common logarithmic scale with its decades marked."""
    room = width - labels - _MORE_VALUE
    values = [value for row in rows for value in (row.low, row.high, *(mark for _, mark in row.marks))]
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    step = room / max(last - first, 1)

    def place(value: float) -> float:
        return labels + (math.log10(value) - first) * step

    height = len(rows) * _ROW
    drawn: list[Markup] = []
    for decade in range(first, last + 1):
        x = place(10.0**decade)
        drawn.append(element("path", d=f"M{x:.1f} 0V{height}", class_="grid"))
        drawn.append(svg_text(x, height + 14, f"{10.0**decade:g} {unit}", "note middle"))
    for index, row in enumerate(rows):
        y, x = index * _ROW, place(row.low)
        drawn.append(_rect(x, y, max(place(row.high) - x, 2.0), "span"))
        drawn += [
            element("path", d=f"M{place(value):.1f} {y}v{_BAR + 4}", class_=f"mark {kind}") for kind, value in row.marks
        ]
        drawn += _words(
            row.label, labels, y, place(max(row.high, *(value for _, value in row.marks), row.low)) + 8, row.told
        )
    return _chart(title, rows, drawn, width, below=20)


def curves(title: str, rows: Sequence[Curve], x_unit: str, y_unit: str, width: float = 1000) -> Markup:
    """Lines over one another, from zero up, with as much above them as there is to read their scale."""
    room, height = width - _MARGIN - 20, 160.0
    furthest = max((x for row in rows for x, _ in row.points), default=0) or 1
    highest = max((y for row in rows for _, y in row.points), default=0) or 1
    drawn: list[Markup] = []
    for part in (0, 0.5, 1):
        y = height * (1 - part) + 8
        drawn.append(element("path", d=f"M{_MARGIN} {y:.1f}H{_MARGIN + room:.1f}", class_="grid"))
        drawn.append(svg_text(_MARGIN - 8, y + 4, f"{highest * part:,.0f} {y_unit}", "note end"))
        drawn.append(svg_text(_MARGIN + room * part, height + 26, f"{furthest * part:.3g} {x_unit}", "note middle"))
    for row in rows:
        places = (
            f"{_MARGIN + room * x / furthest:.1f},{8 + height * (1 - y / highest):.1f}" for x, y in row.points
        )
        drawn.append(element("polyline", points=" ".join(places), class_="curve", style=f"stroke: var(--{row.colour})"))
    told = [f"{row.label}: {row.points[0][1]:g} to {row.points[-1][1]:g} {y_unit}" for row in rows if row.points]
    return _figure(title, told, drawn, width, height + 32)


def _chart(
    title: str, rows: Sequence[Bar] | Sequence[Range], drawn: list[Markup], width: float, below: float = 0
) -> Markup:
    return _figure(title, [f"{row.label}: {row.told}" for row in rows], drawn, width, len(rows) * _ROW + below)


def _figure(title: str, told: Sequence[str], drawn: list[Markup], width: float, height: float) -> Markup:
    return element(
        "svg",
        element("title", title),
        element("desc", "; ".join(told) or "nothing"),
        *drawn,
        xmlns="http://www.w3.org/2000/svg",
        class_="chart",
        role="img",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
    )


def _rect(x: float, y: float, width: float, kind: str) -> Markup:
    return element("rect", x=f"{x:.1f}", y=y + 2, width=f"{width:.1f}", height=_BAR, class_=f"bar {kind}")


def _words(label: str, room: float, y: float, x: float, told: str) -> list[Markup]:
    y += _BASELINE + 1
    return [svg_text(room - 8, y, label, "end", room - 12), svg_text(x, y, told, "value")]
