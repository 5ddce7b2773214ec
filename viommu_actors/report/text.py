"""Text with meaning: spans that are safe, unsafe or neither, lines of them, tables of them.

The words alone must tell all; a style only repeats it in colour where there is a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Style = Literal["", "safe", "unsafe", "unknown", "title"]


class Span(NamedTuple):
    text: str
    style: Style = ""


Line = tuple[Span, ...]


def line(*spans: Span | str) -> Line:
    return tuple(span if isinstance(span, Span) else Span(span) for span in spans)


def plain(spans: Line) -> str:
    return "".join(span.text for span in spans)


@dataclass(frozen=True)
class Table:
    """Rows of cells under column headings; columns in `numbers` are set to the right.

    `notes` tells more of each row: below it in plain text, as a last column that wraps on a terminal.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Line, ...], ...]
    numbers: frozenset[int] = field(default_factory=frozenset)
    notes: tuple[Line, ...] = ()
    notes_column: str = ""


def plain_table(table: Table) -> list[str]:
    """The table in aligned columns, without colours or boxes."""
    cells = [table.columns, *([plain(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = "  ".join("-" * width for width in widths)
    heading, *rows = [_aligned(row, widths, table.numbers) for row in cells]
    if table.notes:
        rows = [each for row, note in zip(rows, table.notes, strict=True) for each in (row, f"    {plain(note)}")]
    return [table.title, heading, rule, *rows]


def _aligned(row: Iterable[str], widths: list[int], numbers: frozenset[int]) -> str:
    cells = (
        cell.rjust(width) if index in numbers else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join(cells).rstrip()
