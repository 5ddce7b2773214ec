"""A grid of characters to draw boxes and arrows on."""

from __future__ import annotations

from itertools import groupby

from viommu_actors.report.text import Line, Span, Style

#: What a vertical line makes of the horizontal one that it crosses.
_CROSSINGS = {"─": "┼", "╌": "┼", "═": "╪"}


class Canvas:
    def __init__(self) -> None:
        self._cells: dict[tuple[int, int], Span] = {}

    def put(self, x: int, y: int, text: str, style: Style = "") -> None:
        for offset, character in enumerate(text):
            self._cells[x + offset, y] = Span(character, style)

    def box(self, x: int, y: int, width: int, height: int, title: str = "", dashed: bool = False) -> None:
        """Outer measures; the title stands in the top edge, behind where a vertical line may cross."""
        across, down = ("╌", "╎") if dashed else ("─", "│")
        right, bottom = x + width - 1, y + height - 1
        for row in range(y + 1, bottom):
            self.put(x, row, down)
            self.put(right, row, down)
        self.put(x, y, "┌" + across * (width - 2) + "┐")
        self.put(x, bottom, "└" + across * (width - 2) + "┘")
        if title:
            self.put(x + 4, y, fit(f" {title} ", width - 5), "title")

    def vertical(self, x: int, top: int, bottom: int, style: Style) -> None:
        """A line over rows top..bottom, crossing the edges of boxes."""
        for row in range(top, bottom + 1):
            here = self._cells.get((x, row))
            self.put(x, row, _CROSSINGS.get(here.text, "│") if here else "│", style)

    def lines(self) -> list[Line]:
        """From the highest row that has anything, whatever its number, to the lowest."""
        if not self._cells:
            return []
        rows = [y for _, y in self._cells]
        return [self._line(row) for row in range(min(rows), 1 + max(rows))]

    def _line(self, row: int) -> Line:
        columns = [x for x, y in self._cells if y == row]
        cells = [self._cells.get((x, row), Span(" ")) for x in range(max(columns, default=-1) + 1)]
        return tuple(
            Span("".join(cell.text for cell in run), style)
            for style, run in groupby(cells, key=lambda cell: cell.style)
        )


def fit(text: str, width: int) -> str:
    """Cut to so many characters."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"
