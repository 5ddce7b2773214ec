"""The laboratory's results as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from viommu_actors.report.text import Table, line, plain


def render(result: Mapping[str, Any]) -> str:
    """One placement: rows, hops, comparisons, goals, and under what circumstances."""
    hops = [_lines(table) for table in _hops(result)]
    goals = [_lines(_goals(result))] if result["goals"] else []
    parts = [_circumstances(result), _lines(_rows(result)), *hops, _lines(_comparisons(result)), *goals]
    return "\n\n".join([*parts, _host(result), _overhead(result)])


def _circumstances(result: Mapping[str, Any]) -> str:
    cpus = ", ".join(
        f"{name} {'free' if own is None else '+'.join(map(str, own))}" for name, own in result["cpus"].items()
    )
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    subject = result["measured"]
    added = f" ({', '.join(subject['added'])} added for this)" if subject["added"] else ""
    depth = f" at depth {subject['depth']}" if subject["depth"] > 1 else ""
    return (
        f"Measured: {subject['vm']}{depth}, its {subject['nic']} and {subject['edu']}{added}\n"
        f"Placement {result['placement']} (CPU: {cpus}; {result['cpus_available']} CPUs), devices with a "
        f"{result['device_layout']} address layout; wall clock; "
        f"{result['rounds']} rounds in random order\n"
        f"Idle gap {result['idle_gap_us']} us within a batch, {result['idle_gap_posted_us']} us behind a posted write; "
        f"{versions}"
    )


def _rows(result: Mapping[str, Any]) -> Table:
    keys = ("p50_us", "p90_us", "p99_us", "max_us", "mean_us")
    return Table(
        title="Times in us; the ratio is the median of the rounds' ratios to the floor (throughput: ours / floor)",
        columns=("operation", "n", "p50", "p90", "p99", "max", "mean", "floor", "ratio", "quartiles", "a second"),
        rows=tuple(
            tuple(
                line(cell)
                for cell in (
                    row["name"],
                    str(row["n"]),
                    *(_us(row[key]) for key in (*keys, "floor_us")),
                    _ratio(row["ratio"]),
                    _quartiles(row),
                    "" if row["per_second"] is None else f"{row['per_second']:,}",
                )
            )
            for row in result["rows"]
        ),
        numbers=frozenset(range(1, 11)),
    )


def _hops(result: Mapping[str, Any]) -> list[Table]:
    """Each row's hops in the order in which they come, those that meet a hypervisor apart; they add up to its p50."""
    told = [row for row in result["rows"] if row["hops"]]
    by_way: dict[bool, list[Mapping[str, Any]]] = {True: [], False: []}
    for row in told:
        by_way[any("hypervisor" in name for name in row["hops"])].append(row)
    titles = {
        True: "Hops in us: shares of traced operations near the median, of the p50",
        False: "Hops in us, where no hypervisor is on the way",
    }
    return [_hop_table(titles[way], rows) for way, rows in by_way.items() if rows]


def _hop_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    longest = sorted(rows, key=lambda row: -len(row["hops"]))
    names = dict.fromkeys(name for row in longest for name in row["hops"])
    parts = [(name, [row["hops"].get(name) for row in rows]) for name in names]
    parts.append(("whole", [sum(row["hops"].values()) for row in rows]))
    return Table(
        title=title,
        columns=("part", *(row["name"] for row in rows)),
        rows=tuple((line(name), *(line(_us(value)) for value in values)) for name, values in parts),
        numbers=frozenset(range(1, len(rows) + 1)),
    )


def _comparisons(result: Mapping[str, Any]) -> Table:
    return Table(
        title="Compared round by round: medians of the ratios",
        columns=("compared", "ratio", "quartiles"),
        rows=tuple(
            (line(each["name"]), line(_ratio(each["ratio"])), line(_quartiles(each))) for each in result["comparisons"]
        ),
        numbers=frozenset({1, 2}),
    )


def _goals(result: Mapping[str, Any]) -> Table:
    return Table(
        title="Goals",
        columns=("goal", "reached", "limit", ""),
        rows=tuple(
            (
                line(each["name"]),
                line(f"{each['ratio']:.3f}"),
                line(f"{'>=' if each['at_least'] else '<='} {each['limit']:g}"),
                line("met" if each["met"] else "missed"),
            )
            for each in result["goals"]
        ),
        numbers=frozenset({1, 2}),
    )


def _host(result: Mapping[str, Any]) -> str:
    told = result["as_on_the_host"]
    link = ", ".join(f"{n:g} {kind.removeprefix('link ')}" for kind, n in sorted(told["link"]["none"].items()))
    beside = ", ".join(f"{n:g} {kind}" for kind, n in sorted(told["beside"]["none"].items()))
    verdict = "equal" if told["equal"] else f"NOT equal: driven by the host {told['link']['host']}"
    return (
        "As on the host: the nic driven by the host's kernel, and assigned without a vIOMMU\n"
        f"  messages of a packet on its link: {verdict} ({link}); beside it: {beside}\n"
        f"  p50 of a packet: {_us(told['p50_us']['host'])} us by the host, {_us(told['p50_us']['none'])} us assigned"
    )


def _overhead(result: Mapping[str, Any]) -> str:
    parts = (f"{name} {(ratio - 1) * 100:+.0f}%" for name, ratio in result["trace_overhead"].items())
    return f"Overhead of a trace while it is on: {', '.join(parts)}"


def render_soak(result: Mapping[str, Any]) -> str:
    """Throughput and memory over time, what grew, and whether the books balance."""
    samples = result["samples"]
    actors = list(samples[0]["memory_kib"])
    step = max(len(samples) // 12, 1)
    over_time = Table(
        title="Operations a second, and resident memory of each process in KiB",
        columns=("seconds", "a second", *actors),
        rows=tuple(
            (
                line(f"{each['seconds']:.0f}"),
                line(f"{each['per_second']:.0f}"),
                *(line(str(each["memory_kib"][name])) for name in actors),
            )
            for each in samples[::step]
        ),
        numbers=frozenset(range(len(actors) + 2)),
    )
    books = Table(
        title="Books: what was mapped and not unmapped is what is live",
        columns=("level", "mapped", "unmapped", "difference", "live", ""),
        rows=tuple(
            (
                line(each["level"]),
                *(line(str(n)) for n in (each["mapped"], each["unmapped"], each["mapped"] - each["unmapped"])),
                line(str(each["live"])),
                line("balanced" if each["balanced"] else "DIFFERS"),
            )
            for each in result["books"]
        ),
        numbers=frozenset({1, 2, 3, 4}),
    )
    verdicts = [
        f"{result['operations']} operations in {result['seconds']:.0f} s, placement {result['placement']}",
        "grown: " + (", ".join(f"{name} by {kib} KiB" for name, kib in result["grown"].items()) or "nothing"),
        "lost: " + ("; ".join(result["lost"]) or "nothing, both ends of every wire counted the same"),
    ]
    return "\n\n".join([_lines(over_time), _lines(books), "\n".join(verdicts)])


def _lines(table: Table) -> str:
    return "\n".join(plain(each).rstrip() for each in table.lines())


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _quartiles(row: Mapping[str, Any]) -> str:
    return "" if row["ratio"] is None else f"{row['ratio_low']:.2f}..{row['ratio_high']:.2f}"
