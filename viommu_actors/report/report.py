"""The report of a run as one text, for a terminal or for a file."""

from __future__ import annotations

import io
import shutil
from contextlib import suppress
from typing import TextIO

from viommu_actors.report.io_tables import io_tables, modelled_table, rate_notes
from viommu_actors.report.picture import picture
from viommu_actors.report.results import Results, RogueResults
from viommu_actors.report.tables import (
    absent_table,
    app_table,
    assignment_table,
    fault_notes,
    fault_table,
    interrupt_note,
    rogue_summary,
    sandbox_note,
    summary,
    verdict_tables,
)
from viommu_actors.report.text import Line, Style, line, plain
from viommu_actors.report.tower import tower_table
from viommu_actors.report.vswitch_tables import vswitch_table, wire_tables
from viommu_actors.topology.resolved import ResolvedTopology

PLAIN_WIDTH = 100
_COLOURS: dict[Style, str] = {
    "": "",
    "safe": "green",
    "unsafe": "bold red",
    "unknown": "bright_black",
    "title": "bold",
}


#: For a stream whose encoding lacks the drawing characters.
_ASCII = str.maketrans("─│┌┐└┘├┤┴┼╌╎▲▶…", "-|++++++++-:^>.")


def render(topology: ResolvedTopology, results: Results, stream: TextIO) -> str:
    """Coloured for a terminal where rich is installed, plain for anything else."""
    width = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns if stream.isatty() else PLAIN_WIDTH
    return shown(report(topology, results, width), stream)


def render_rogue(topology: ResolvedTopology, rogue: RogueResults, stream: TextIO) -> str:
    """What one rogue got at: accesses tried, what was left out, and the closing line."""
    results = Results(
        topology=topology.name,
        ok=rogue.ok,
        processes=(rogue.process,),
        verdicts=rogue.verdicts,
        io=rogue.io,
        faults=(),
        absent=rogue.absent,
    )
    tables = [*verdict_tables(topology, results), absent_table(results)]
    said = [line(f"the rogue says: {report}") for report in rogue.reports]
    blocks = [
        *(table.lines() for table in tables if table),
        *([said] if said else []),
        *sandbox_note(results.processes),
        [rogue_summary(results)],
    ]
    return shown([each for block in blocks for each in (*block, ())][:-1], stream)


def shown(lines: list[Line], stream: TextIO) -> str:
    """Lines as this stream can show them."""
    text = None
    if stream.isatty():
        with suppress(ImportError):
            text = _painted(lines)
    if text is None:
        text = _bare(lines)
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        text = text.translate(_ASCII)
    return text


def uncoloured(topology: ResolvedTopology, results: Results, width: int) -> str:
    return _bare(report(topology, results, width))


def coloured(topology: ResolvedTopology, results: Results, width: int) -> str:
    """Raises ImportError without rich."""
    return _painted(report(topology, results, width))


def _bare(lines: list[Line]) -> str:
    return "\n".join(plain(each).rstrip() for each in lines)


def _painted(lines: list[Line]) -> str:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=io.StringIO(), force_terminal=True, highlight=False)
    with console.capture() as captured:
        for each in lines:
            text = Text.assemble(*((span.text, _COLOURS[span.style]) for span in each))
            text.rstrip()
            console.print(text, soft_wrap=True)
    return captured.get().rstrip("\n")


def report(topology: ResolvedTopology, results: Results, width: int) -> list[Line]:
    """Picture, accesses tried, assignments, I/O, faults and the closing line, blank lines between."""
    tables = [
        *verdict_tables(topology, results),
        assignment_table(results),
        app_table(results),
        *io_tables(results),
        *wire_tables(results),
        vswitch_table(results),
        tower_table(topology, results),
        modelled_table(results),
        fault_table(results),
        absent_table(results),
    ]
    blocks = [
        picture(topology, results, width),
        *(table.lines() for table in tables if table),
        *rate_notes(results),
        *fault_notes(results),
        *interrupt_note(topology),
        *sandbox_note(results.processes),
        [summary(results)],
    ]
    return [each for block in blocks for each in (*block, ())][:-1]
