"""The tables of the laboratory, and the words around them: the same on a terminal and in the report."""

from __future__ import annotations

from collections.abc import Sequence

from viommu_actors.report.latency import Comparison, Latencies, LatencyRow, microseconds, operation
from viommu_actors.report.text import Line, Span, Table, line


def circumstances(run: Latencies) -> list[str]:
    """Without which no figure means anything: what was measured where, on which CPUs, how often, with what."""
    told = []
    if (measured := run.measured) is not None:
        depth = f" at depth {measured.depth}" if measured.depth > 1 else ""
        added = f" ({', '.join(measured.added)} added for this)" if measured.added else ""
        told.append(f"Measured: {measured.vm}{depth}, its {measured.nic} and {measured.edu}{added}")
    if run.cpus:
        cpus = (f"{name} {'free' if own is None else '+'.join(map(str, own))}" for name, own in run.cpus.items())
        where = f"CPU: {', '.join(cpus)}; {run.cpus_available} CPUs), devices with a {run.device_layout} address layout"
        told.append(f"Placement {run.placement} ({where}; wall clock; {run.rounds} rounds in random order")
        gaps = f"Idle gap {run.idle_gap_us:g} µs within a batch, {run.idle_gap_posted_us:g} µs behind a posted write"
        told.append("; ".join([gaps, ", ".join(f"{name} {number}" for name, number in run.versions.items())]))
    elif run.placement:
        told.append(f"Placement {run.placement}")
    return told


def latency_table(latencies: Latencies) -> Table:
    def figures(row: LatencyRow) -> tuple[str, ...]:
        times = (row.p50_us, row.p90_us, row.p99_us, row.max_us, row.mean_us, row.floor_us)
        rate = "" if row.per_second is None else f"{row.per_second:,}"
        return (str(row.n), *map(microseconds, times), _ratio(row.ratio), _quartiles(row), rate)

    compared = any(row.ratio is not None for row in latencies.rows)
    columns = ["operation", "n", "p50", "p90", "p99", "max", "mean"]
    columns += ["floor", "ratio", "quartiles", "a second"] if compared else []
    told = "; the ratio is the median of the rounds' ratios to the floor (throughput: ours / floor)" if compared else ""
    return Table(
        title=f"Times in µs, wall clock{told}",
        columns=tuple(columns),
        rows=tuple(
            (line(operation(latencies, row)), *(line(figure) for figure in figures(row)[: len(columns) - 1]))
            for row in latencies.rows
        ),
        numbers=frozenset(range(1, len(columns))),
    )


def hop_tables(latencies: Latencies) -> list[Table]:
    """Each row's hops in the order in which they come, those that meet a hypervisor apart; they add up to its p50."""
    told = [row for row in latencies.rows if row.hops]
    by_way: dict[bool, list[LatencyRow]] = {True: [], False: []}
    for row in told:
        by_way[any("hypervisor" in name for name in row.hops)].append(row)
    titles = {
        True: "Hops in µs: shares of traced operations near the median, of the p50",
        False: "Hops in µs, where no hypervisor is on the way",
    }
    return [_hop_table(titles[way], latencies, rows) for way, rows in by_way.items() if rows]


def _hop_table(title: str, latencies: Latencies, rows: Sequence[LatencyRow]) -> Table:
    longest = sorted(rows, key=lambda row: -len(row.hops))
    names = dict.fromkeys(name for row in longest for name in row.hops)
    parts = [(name, [row.hops.get(name) for row in rows]) for name in names]
    parts.append(("whole", [sum(row.hops.values()) for row in rows]))
    return Table(
        title=title,
        columns=("part", *(operation(latencies, row) for row in rows)),
        rows=tuple((line(name), *(line(microseconds(value)) for value in values)) for name, values in parts),
        numbers=frozenset(range(1, len(rows) + 1)),
    )


def comparison_table(run: Latencies) -> Table | None:
    """None where nothing was compared."""
    if not run.comparisons:
        return None
    return Table(
        title="Compared round by round: medians of the ratios",
        columns=("compared", "ratio", "quartiles"),
        rows=tuple((line(each.name), line(_ratio(each.ratio)), line(_quartiles(each))) for each in run.comparisons),
        numbers=frozenset({1, 2}),
    )


def goal_table(latencies: Latencies) -> Table | None:
    """Ratios against what they should be; None where there are no goals."""
    if not latencies.goals:
        return None
    return Table(
        title="Goals",
        columns=("ratio of", "reached", "goal", ""),
        rows=tuple(
            (
                line(goal.name),
                line(f"{goal.ratio:.3f}"),
                line(f"at {'least' if goal.at_least else 'most'} {goal.limit:g}"),
                line(Span("met", "safe") if goal.met else Span("MISSED", "unsafe")),
            )
            for goal in latencies.goals
        ),
        numbers=frozenset({1}),
    )


def as_on_the_host(run: Latencies) -> list[Line]:
    """That an assigned nic's data path has the messages that it has on the host; nothing where nobody looked."""
    told = run.as_on_the_host
    if told is None:
        return []
    link = ", ".join(f"{n:g} {kind.removeprefix('link ')}" for kind, n in sorted(told.link["none"].items()))
    beside = ", ".join(f"{n:g} {kind}" for kind, n in sorted(told.beside["none"].items()))
    verdict = Span("equal", "safe") if told.equal else Span(f"NOT equal: by the host {told.link['host']}", "unsafe")
    times = {setting: microseconds(value) for setting, value in told.p50_us.items()}
    return [
        line("As on the host: the nic driven by the host's kernel, and assigned without a vIOMMU"),
        line("  messages of a packet on its link: ", verdict, f" ({link}); beside it: {beside}"),
        line(f"  p50 of a packet: {times['host']} µs by the host, {times['none']} µs assigned"),
    ]


def trace_overhead(run: Latencies) -> str:
    """Empty where nothing was traced."""
    parts = ", ".join(f"{name} {(ratio - 1) * 100:+.0f}%" for name, ratio in run.trace_overhead.items())
    return f"Overhead of a trace while it is on: {parts}" if parts else ""


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _quartiles(row: LatencyRow | Comparison) -> str:
    return "" if row.ratio_low is None or row.ratio_high is None else f"{row.ratio_low:.2f}..{row.ratio_high:.2f}"
