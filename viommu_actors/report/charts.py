"""Bars as SVG: counts side by side, times in stacked parts, and their ranges. Each tells its figure as text too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from viommu_actors.report.markup import Markup, element, svg_text

_ROW, _BAR, _BASELINE = 22, 14, 12
_VALUE, _MORE_VALUE = 84, 180
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


def _chart(
    title: str, rows: Sequence[Bar] | Sequence[Range], drawn: list[Markup], width: float, below: float = 0
) -> Markup:
    height = len(rows) * _ROW + below
    return element(
        "svg",
        element("title", title),
        element("desc", "; ".join(f"{row.label}: {row.told}" for row in rows) or "nothing"),
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
