"""The report of a run as one HTML document: it needs no script, and nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from viommu_actors.attacks.catalogue import CATALOGUE, Target
from viommu_actors.attacks.evidence import Evidence
from viommu_actors.attacks.expected import expected
from viommu_actors.report.canvas import fit
from viommu_actors.report.charts import Bar, bars
from viommu_actors.report.io_tables import COUNTS, io_tables, modelled_table, rate_notes
from viommu_actors.report.latency import Latencies
from viommu_actors.report.latency_charts import breakdown, distributions, marks_of
from viommu_actors.report.latency_tables import (
    as_on_the_host,
    circumstances,
    comparison_table,
    goal_table,
    latency_table,
    trace_overhead,
)
from viommu_actors.report.markup import Markup, element, escape
from viommu_actors.report.parts import line_html, table_html
from viommu_actors.report.results import Io, Results, Verdict
from viommu_actors.report.soak import Soak, soak_html
from viommu_actors.report.svg import legend, topology_svg
from viommu_actors.report.tables import (
    absent_table,
    app_table,
    assignment_table,
    fault_notes,
    fault_table,
    interrupt_note,
    process_table,
    sandbox_words,
    summary,
    verdict_tables,
)
from viommu_actors.report.text import Line, Span, Table, line
from viommu_actors.report.tower import tower_chart
from viommu_actors.report.vswitch_tables import vswitch_table, wire_tables
from viommu_actors.topology.resolved import ResolvedTopology

_STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
#: No request to anywhere, whatever a text of the run may have smuggled in.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def html(
    topology: ResolvedTopology,
    results: Results | None,
    facts: Mapping[str, str] | None = None,
    latencies: Latencies | None = None,
    ended: str = "",
    soak: Soak | None = None,
) -> str:
    """The document, readable as XML too. `facts` is the run's environment, `ended` why the run did not just finish.

    `results` is None where nothing was to be tried, but only `latencies` or a `soak` to be measured.
    """
    seen = results or Results(topology=topology.name, ok=True, processes=(), verdicts=(), io=(), faults=())
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{topology.name}: run of a vIOMMU topology"),
        element("style", Markup(_STYLE)),
    )
    sections = (
        _section("picture", "Topology, as observed", *_picture(topology, seen)),
        _section("verdicts", "What rogue devices tried", *(_verdicts(topology, results) if results else ())),
        _section("io", "I/O, and what it cost", *_io(topology, seen)),
        _section("latency", "Latency", *_latency(latencies)),
        _section("soak", "Soak", *(soak_html(soak) if soak else ())),
        _section("assignments", "Assignments", *_tables(assignment_table(seen))),
        _section("applications", "Applications", *_tables(app_table(seen))),
        _section("faults", "Faults", *_faults(seen)),
        _section("environment", "Environment", *_environment(topology, seen, facts or {})),
    )
    there = [section for section in sections if section]
    body = element("body", _header(topology, results, ended), element("main", *there))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _header(topology: ResolvedTopology, results: Results | None, ended: str) -> Markup:
    notes = [block_line for block in interrupt_note(topology) for block_line in block]
    if ended:
        notes.insert(0, line(Span(f"This run did not finish: {ended}", "unsafe")))
    return element(
        "header",
        element("h1", escape(topology.name)),
        *((element("p", escape(topology.description)),) if topology.description else ()),
        *((_told(summary(results), "summary"),) if results else ()),
        *(_told(note, "warning") for note in notes),
    )


def _told(words: Line, kind: str) -> Markup:
    sign = "✓ " if any(span.style == "safe" for span in words) else "✗ "
    return element("p", sign, line_html(words), class_=kind)


def _section(name: str, title: str, *content: Markup) -> Markup:
    """Nothing where there is no content."""
    if not content:
        return Markup()
    return element(
        "section", element("h2", title, id=f"{name}-title"), *content, id=name, aria_labelledby=f"{name}-title"
    )


def _tables(*tables: Table | None) -> list[Markup]:
    return [table_html(table) for table in tables if table is not None]


def _picture(topology: ResolvedTopology, results: Results) -> list[Markup]:
    bands = [element("div", band, class_="scroll band") for band in topology_svg(topology, results)]
    return [*bands, element("p", "Arrows are DMA and interrupts, as observed in this run:"), legend()]


def _verdicts(topology: ResolvedTopology, results: Results) -> list[Markup]:
    """As on a terminal, and the proofs of each verdict folded below it."""
    groups = [[*verdicts] for _, verdicts in groupby(results.verdicts, key=lambda verdict: verdict.device)]
    tables = zip(verdict_tables(topology, results), groups, strict=True)
    shown = [table_html(table, [_proofs(each) for each in group]) for table, group in tables] or [
        element("p", "No device of this run tried anything beyond what it was given.")
    ]
    absent = absent_table(results)
    return shown if absent is None else [*shown, table_html(absent)]


def _proofs(verdict: Verdict) -> Markup:
    evidence = verdict.evidence
    rows = [
        ("setting", verdict.setting),
        ("observed", f"{verdict.observed}, expected {verdict.expected}"),
        ("addresses aimed at", f"{evidence.aimed}, of which {evidence.tried} were tried"),
        ("accesses", _accesses(evidence)),
        ("canary before", evidence.canary_before or "none"),
        ("canary after", evidence.canary_after or "none"),
        ("legal DMA afterwards", "passed" if evidence.control else "failed"),
    ]
    if attack := CATALOGUE.get(verdict.attack):
        rows.insert(0, ("attack", attack.does))
        rows.insert(1, ("what should stop it", attack.stopped_by))
    if reason := _reason(verdict):
        rows.append(("why that is expected", reason))
    if fault := evidence.fault:
        access = f"{'write' if fault.write else 'read'} of {fault.address} by" if fault.address else f"{fault.count} of"
        what = f"{fault.kind} at {fault.unit}: {access} {fault.source}"
        rows.append(("record of a refusal", f"{what}, {' '.join(filter(None, (fault.reason, fault.text)))}"))
    return _pairs(rows)


def _accesses(evidence: Evidence) -> str:
    return (
        f"{evidence.attempts} arrived: {evidence.reached} reached the target, {evidence.elsewhere} other memory, "
        f"{evidence.refused} refused"
    )


def _reason(verdict: Verdict) -> str:
    """From the reviewed file of expectations; a run of another version may hold what it does not know."""
    try:
        cell = expected(verdict.attack, verdict.driver, Target(verdict.target), verdict.setting)
    except (KeyError, ValueError):
        return ""
    return f"{cell.reason} ({cell.source})"


def _io(topology: ResolvedTopology, results: Results) -> list[Markup]:
    if not results.io:
        return []
    panels = []
    for key, words in COUNTS:
        counts = [(row, getattr(row, key)) for row in results.io]
        if not any(count for _, count in counts):
            continue
        rows = [
            Bar(
                f"{fit(_flow(row), 12)}, {row.mapping}" + ("" if row.driver == "kernel" else ", app"),
                ((row.mapping, count / row.operations if row.operations else 0.0),),
                f"{count / row.operations:.3g}" if row.operations else "no operation",
            )
            for row, count in counts
        ]
        title = words.strip().replace("of them", "traps by" if key == "queue_tail_writes" else "interrupts")
        panels.append(element("figure", element("figcaption", title), bars(f"{title} for each operation", rows)))
    key_of = element(
        "ul",
        *(
            element("li", element("span", " ", class_=f"swatch {mapping}"), f" {mapping} mapping")
            for mapping in dict.fromkeys(row.mapping for row in results.io)
        ),
        class_="legend",
    )
    intro = element("p", "In the steady state, for each operation: a single-page buffer transferred and verified.")
    figures = _tables(
        *io_tables(results), *wire_tables(results), vswitch_table(results), modelled_table(results)
    )
    tower = tower_chart(topology, results)
    notes = [element("p", line_html(words)) for block in rate_notes(results) for words in block]
    return [intro, key_of, element("div", *panels, class_="panels"), *((tower,) if tower else ()), *figures, *notes]


def _flow(row: Io) -> str:
    """Whose row it is, and to whom it sent."""
    return f"{row.device}→{row.peer}" if row.peer else row.device


def _faults(results: Results) -> list[Markup]:
    told = [element("p", line_html(words)) for block in fault_notes(results) for words in block]
    return [*_tables(fault_table(results)), *told]


def _latency(latencies: Latencies | None) -> list[Markup]:
    if latencies is None or not latencies.rows:
        return []
    drawn = distributions(latencies)
    marks = element(
        "ul",
        *(element("li", element("span", " ", class_=f"swatch mark {each}"), " ", each) for each in marks_of(latencies)),
        class_="legend",
    )
    hops = breakdown(latencies)
    runs = latencies.runs or (latencies,)
    return [
        *(element("p", escape(each)) for run in runs for each in circumstances(run)),
        *((marks, element("div", drawn, class_="scroll")) if drawn else ()),
        *_tables(latency_table(latencies)),
        *((element("h3", "Hop by hop"), hops) if hops else ()),
        *(part for run in runs for part in _looked_at(run, run.placement if latencies.runs else "")),
        *_tables(goal_table(latencies)),
    ]


def _looked_at(run: Latencies, placement: str) -> list[Markup]:
    """What one placement tells beside its rows; `placement` names it where there are several."""
    parts = [
        *_tables(comparison_table(run)),
        *(element("p", line_html(each)) for each in as_on_the_host(run)),
        *(element("p", escape(each)) for each in (trace_overhead(run),) if each),
    ]
    return [element("h3", escape(placement)), *parts] if parts and placement else parts


def _environment(topology: ResolvedTopology, results: Results, facts: Mapping[str, str]) -> list[Markup]:
    pairs = [
        ("topology", topology.name),
        *facts.items(),
        ("host", _machine(topology.host.memory, topology.host.cmdline)),
    ]
    pairs += [(vm.name, _machine(vm.memory, vm.cmdline)) for vm in topology.vms]
    pairs += [("sandbox", words) for words in sandbox_words(results.processes)]
    return [_pairs(pairs), *_tables(process_table(results) if results.processes else None)]


def _machine(memory: int, cmdline: str) -> str:
    return f"{memory >> 20} MiB, command line: {cmdline or 'empty'}" if memory >> 20 else f"{memory} bytes, {cmdline}"


def _pairs(rows: list[tuple[str, str]]) -> Markup:
    items = [part for name, words in rows for part in (element("dt", escape(name)), element("dd", escape(words)))]
    return element("dl", *items)
