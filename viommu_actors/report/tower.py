"""What one map and its unmap cost at each depth of nested VMs: messages of every level, and latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from viommu_actors.report.canvas import fit
from viommu_actors.report.charts import COLOURS, Bar, bars
from viommu_actors.report.markup import Markup, element, join
from viommu_actors.report.results import Counts, Io, Results
from viommu_actors.report.text import Table, line
from viommu_actors.topology.resolved import ResolvedTopology

#: Characters of the longest bar of the text.
_LONGEST = 30
_TITLE = "One map with its unmap, by depth: messages of every level, and latency by the wall clock"


@dataclass(frozen=True)
class _Storey:
    """A device as deep as `depth` VMs, 0 being the host's own.

    `messages` are traps and VFIO calls for one map with its unmap, by the VM that trapped, from the one on the host
    down; `latency` is in microseconds.
    """

    depth: int
    device: str
    messages: dict[str, float]
    latency: float

    @property
    def name(self) -> str:
        return f"L{self.depth}: {self.device}" if self.depth else f"host: {self.device}"

    @property
    def total(self) -> float:
        return sum(self.messages.values())


def tower_table(topology: ResolvedTopology, results: Results) -> Table | None:
    """A row for each device with dynamic maps, a bar of its latency beside it; None where no VM is nested."""
    storeys = _storeys(topology, results)
    if not storeys:
        return None
    levels, longest = _levels(storeys), max(storey.latency for storey in storeys) or 1
    return Table(
        title=_TITLE,
        columns=("", *(f"{vm}: messages" for vm in levels), "together", "µs", ""),
        rows=tuple(
            (
                line(storey.name),
                *(line(f"{storey.messages[vm]:.4g}" if vm in storey.messages else "") for vm in levels),
                line(f"{storey.total:.4g}"),
                line(f"{storey.latency:,.0f}"),
                line("#" * max(round(_LONGEST * storey.latency / longest), 1)),
            )
            for storey in storeys
        ),
        numbers=frozenset(range(1, len(levels) + 3)),
    )


def tower_chart(topology: ResolvedTopology, results: Results) -> Markup | None:
    """The same as bars: messages stacked by level, and latencies; None where no VM is nested."""
    storeys = _storeys(topology, results)
    if not storeys:
        return None
    colours = {vm: f"part{index % COLOURS}" for index, vm in enumerate(_levels(storeys))}
    messages = [
        Bar(
            fit(storey.name, 20),
            tuple((colours[vm], count) for vm, count in storey.messages.items()),
            f"{storey.total:.4g}",
        )
        for storey in storeys
    ]
    latencies = [Bar(fit(each.name, 20), (("span", each.latency),), f"{each.latency:,.0f} µs") for each in storeys]
    key = [element("li", element("span", " ", class_=f"swatch {colour}"), f" {vm}") for vm, colour in colours.items()]
    figures = _figure("messages of every level", messages), _figure("latency, µs", latencies)
    intro = "Traps and VFIO calls for one page, by the VM that trapped, and latency by the wall clock."
    return join(
        element("h3", "One map with its unmap, by depth"),
        element("p", intro),
        element("ul", *key, class_="legend"),
        element("div", *figures, class_="panels"),
    )


def _figure(title: str, rows: Sequence[Bar]) -> Markup:
    return element("figure", element("figcaption", title), bars(f"{title}: one map with its unmap", rows))


def _storeys(topology: ResolvedTopology, results: Results) -> list[_Storey]:
    """The shallowest first."""
    found = []
    for row in results.io:
        if row.map_unmap_us is not None and row.dma_maps:
            vm = topology.device(row.device).vm
            line_of = [] if vm is None else [each.name for each in topology.line(vm)]
            messages = {level.vm: _messages(level.counts, row.dma_maps) for level in row.levels}
            if len(line_of) == 1:
                messages = {line_of[0]: _messages(row, row.dma_maps)}
            found.append(_Storey(len(line_of), row.device, messages, row.map_unmap_us))
    return sorted(found, key=lambda storey: storey.depth)


def _levels(storeys: Sequence[_Storey]) -> list[str]:
    return [*dict.fromkeys(vm for storey in storeys for vm in storey.messages)]


def _messages(counts: Counts | Io, maps: int) -> float:
    return (counts.traps + counts.vfio_maps + counts.vfio_unmaps) / maps
