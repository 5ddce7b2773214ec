"""The laboratory's results as text."""

from __future__ import annotations

from viommu_actors.report.latency import Latencies
from viommu_actors.report.latency_tables import (
    as_on_the_host,
    circumstances,
    comparison_table,
    goal_table,
    hop_tables,
    latency_table,
    trace_overhead,
)
from viommu_actors.report.text import plain, table_text


def render(run: Latencies) -> str:
    """One placement: rows, hops, comparisons, goals, and under what circumstances."""
    tables = (latency_table(run), *hop_tables(run), comparison_table(run), goal_table(run))
    parts = ["\n".join(circumstances(run)), *(table_text(table) for table in tables if table is not None)]
    parts.append("\n".join(map(plain, as_on_the_host(run))))
    return "\n\n".join(filter(None, (*parts, trace_overhead(run))))
