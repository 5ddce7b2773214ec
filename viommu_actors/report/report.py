"""The report of a run as one text, for a terminal or for a file."""

from __future__ import annotations

import io
import shutil
from typing import TYPE_CHECKING, TextIO

from viommu_actors.report.picture import picture
from viommu_actors.report.results import Results
from viommu_actors.report.tables import fault_table, io_tables, summary, verdict_tables
from viommu_actors.report.text import Line, Style, Table, plain, plain_table
from viommu_actors.topology.resolve import ResolvedTopology

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from rich.text import Text as RichText

PLAIN_WIDTH = 100
_COLOURS: dict[Style, str] = {
    "": "",
    "safe": "green",
    "unsafe": "bold red",
    "unknown": "bright_black",
    "title": "bold",
}


def render(topology: ResolvedTopology, results: Results, stream: TextIO) -> str:
    """Coloured for a terminal where rich is installed, plain for anything else."""
    if stream.isatty():
        try:
            return coloured(topology, results, shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns)
        except ImportError:
            pass
    return uncoloured(topology, results, PLAIN_WIDTH)


def uncoloured(topology: ResolvedTopology, results: Results, width: int) -> str:
    lines: list[str] = []
    for block in _blocks(topology, results, width):
        lines += plain_table(block) if isinstance(block, Table) else [plain(each).rstrip() for each in block]
        lines.append("")
    return "\n".join(lines).rstrip("\n")


def coloured(topology: ResolvedTopology, results: Results, width: int) -> str:
    """Raises ImportError without rich."""
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False)
    for block in _blocks(topology, results, width):
        if isinstance(block, Table):
            console.print(_rich_table(block))
        else:
            for each in block:
                console.print(_rich_text(each), no_wrap=True, overflow="ignore", crop=False)
        console.print()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip("\n")


def _blocks(topology: ResolvedTopology, results: Results, width: int) -> list[list[Line] | Table]:
    faults = fault_table(results)
    return [
        picture(topology, results, width),
        *verdict_tables(topology, results),
        *io_tables(results),
        *([faults] if faults else []),
        [summary(results)],
    ]


def _rich_text(spans: Line) -> RichText:
    from rich.text import Text

    return Text.assemble(*((span.text, _COLOURS[span.style]) for span in spans))


def _rich_table(table: Table) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable

    rendered = RichTable(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(table.columns):
        rendered.add_column(column, justify="right" if index in table.numbers else "left")
    if table.notes:
        rendered.add_column(table.notes_column)
    for index, row in enumerate(table.rows):
        rendered.add_row(*(_rich_text(cell) for cell in row), *map(_rich_text, table.notes[index : index + 1]))
    return rendered
