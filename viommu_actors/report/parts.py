"""Styled lines and tables as HTML."""

from __future__ import annotations

from collections.abc import Sequence

from viommu_actors.report.markup import Markup, element, escape, join
from viommu_actors.report.text import Line, Table, line


def line_html(spans: Line) -> Markup:
    return join(*(element("span", span.text, class_=span.style) if span.style else span.text for span in spans))


def table_html(table: Table, details: Sequence[Markup] = (), captioned: bool = True) -> Markup:
    """Below each row its note, and `details` of it folded away, where there are any."""
    kinds = ["number" if index in table.numbers else None for index in range(len(table.columns))]
    heads = (
        element("th", escape(name), scope="col", class_=kind) for name, kind in zip(table.columns, kinds, strict=True)
    )
    rows: list[Markup] = []
    for index, row in enumerate(table.rows):
        cells = [
            element("td" if column else "th", line_html(cell), class_=kind, scope=None if column else "row")
            for column, (cell, kind) in enumerate(zip(row, kinds, strict=True))
        ]
        rows.append(element("tr", *cells))
        note = table.notes[index] if index < len(table.notes) else line()
        detail = details[index] if index < len(details) else ""
        if note or detail:
            told = line_html(note)
            folded = element("details", element("summary", told or "more"), detail) if detail else told
            rows.append(element("tr", element("td", folded, colspan=len(kinds)), class_="note"))
    caption = (element("caption", escape(table.title)),) if captioned else ()
    head = element("thead", element("tr", *heads))
    return element("div", element("table", *caption, head, element("tbody", *rows)), class_="scroll")


def folded(table: Table) -> Markup:
    """Figures that a chart beside them shows already."""
    return element("details", element("summary", escape(table.title)), table_html(table, captioned=False))
