"""Text with meaning: spans that are safe, unsafe or neither, lines of them, tables of them.

The words alone must tell all; a style only repeats it in colour where there is a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def table_text(table: Table) -> str:
    return "\n".join(plain(each).rstrip() for each in table.lines())


@dataclass(frozen=True)
class Table:
    """Rows of cells under column headings, and below each row its note, where it has one.

    Columns in `numbers` are set to the right.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Line, ...], ...]
    numbers: frozenset[int] = field(default_factory=frozenset)
    notes: tuple[Line, ...] = ()

    def lines(self) -> list[Line]:
        headings = tuple(line(column) for column in self.columns)
        widths = [max(len(plain(cell)) for cell in column) for column in zip(headings, *self.rows, strict=True)]
        lines = [
            line(Span(self.title, "title")),
            self._aligned(headings, widths),
            line("  ".join("─" * width for width in widths)),
        ]
        for index, row in enumerate(self.rows):
            lines.append(self._aligned(row, widths))
            lines += [(Span("    "), *note) for note in self.notes[index : index + 1] if note]
        return lines

    def _aligned(self, row: Sequence[Line], widths: list[int]) -> Line:
        spans: list[Span] = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            room = Span(" " * (width - len(plain(cell))))
            between = (Span("  "),) if index else ()
            spans += (*between, room, *cell) if index in self.numbers else (*between, *cell, room)
        return tuple(spans)
