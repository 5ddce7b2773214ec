"""Latencies of a run while its messages were noted: each request from its first message to its last. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from viommu_actors.measure.hops import Hops, by_level, chained
from viommu_actors.measure.requests import Step, flows, requests
from viommu_actors.measure.statistics import shares, summarize
from viommu_actors.measure.trace import Crossing

#: What is told, in this order. A trapped write of the queue's tail is a map or an unmap by what it has VFIO do.
_NAMES: Final = ("map", "unmap", "trapped write", "trapped read", "register read", "DMA read", "interrupt")
_FIRST: Final = {
    "TrapRead": "trapped read",
    "DirectRead": "register read",
    "MmioRead": "register read",
    "MemRead": "DMA read",
}


class Sample(NamedTuple):
    """The messages while one device worked; `vms` are those down to the one that has it, none for the host's."""

    vms: Sequence[str]
    messages: list[Crossing]


def latencies(samples: Mapping[str, Sample], placement: str) -> dict[str, Any]:
    """As `latency.json` has them: by the device, a row for each kind of request."""
    rows = []
    nested = any(len(sample.vms) > 1 for sample in samples.values())
    for device, (vms, messages) in samples.items():
        called = by_level(vms, nested)
        found: dict[str, list[Hops]] = {}
        for way in flows(messages, requests(messages)):
            crossed = {id(step.message): step.message for step in way}.values()
            if name := _name(way):
                found.setdefault(name, []).append(chained(sorted(crossed, key=lambda each: each.sent), called))
        rows += [_row(f"{device} {name}", found[name], placement) for name in _NAMES if name in found]
    return {"placement": placement, "rows": rows}


def _name(way: Sequence[Step]) -> str | None:
    kinds = [step.message.kind for step in way]
    if kinds[0] == "TrapWrite":
        return "map" if "MapDma" in kinds else "unmap" if "UnmapDma" in kinds else "trapped write"
    return "interrupt" if kinds[0] == "MemWrite" and kinds[-1] == "Inject" else _FIRST.get(kinds[0])


def _row(name: str, operations: list[Hops], placement: str) -> dict[str, Any]:
    summary = summarize(sum(nanoseconds for _, nanoseconds in hops) for hops in operations)
    return {
        "name": name,
        "placement": placement,
        "clock": "wall",
        **{f"{key}_us": round(value, 3) for key, value in summary._asdict().items() if key != "n"},
        "n": summary.n,
        "hops": {part: round(share * summary.p50, 3) for part, share in shares(operations).items()},
    }
