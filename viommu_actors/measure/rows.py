"""The table of the laboratory: each operation, its floor, the ratio of the two, and its hops; and the goals."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from viommu_actors.measure.bench import SEGMENTS, Series
from viommu_actors.measure.laboratory import Measured
from viommu_actors.measure.settings import Subject
from viommu_actors.measure.statistics import Spread, percentile, ratios, summarize
from viommu_actors.measure.surroundings import surroundings


class Operation(NamedTuple):
    """A row: its series, that of its floor, what it is. A throughput's ratio is ours over the floor's."""

    name: str
    floor: str | None
    what: str
    series: str | None = None
    throughput: bool = False


OPERATIONS: Final = (
    Operation("hop", "bare_round_trip", "trapped read of a vIOMMU register: guest, hypervisor and back"),
    Operation("mmio_trap", "bare_round_trip", "trapped write of a vIOMMU register"),
    Operation("two_hop_chain", "bare_chain", "trapped read that the host's kernel answers: two hops and back"),
    Operation("map_strict", "bare_round_trip", "map of one page, its invalidation and shadow map in it"),
    Operation("unmap_strict", "bare_round_trip", "unmap of one page, a barrier"),
    Operation("map_unmap_strict", None, "both"),
    *(
        Operation(f"{way}_strict_{pages}", None, f"{way} of {pages} pages")
        for pages in (4, 16, 64, 256)
        for way in ("map", "unmap")
    ),
    Operation(f"map_sg_{SEGMENTS}", None, f"map of {SEGMENTS} scattered pages, one invalidation"),
    Operation(f"unmap_sg_{SEGMENTS}", None, f"unmap of {SEGMENTS} scattered pages"),
    Operation("map_passthrough", None, "map of one page with iommu=pt"),
    Operation("dma_read_hit", "bare_read", "64 bytes, translation in the IOTLB"),
    Operation("dma_read_miss", "bare_read", "64 bytes, after a walk"),
    Operation("dma_write_posted", "bare_posted", "64 bytes, until they are in memory"),
    Operation("mmio_direct", None, "read of a device register that does not trap"),
    Operation("interrupt", None, "from the write that raises it to its arrival in the guest"),
    Operation("pipeline_4k_w64", "bare_pipeline", "4 KiB DMA reads, 64 outstanding", "pipeline", throughput=True),
    Operation("fan_in_16", "bare_fan_in", "64-byte DMA reads of 16 devices at one host", "fan_in", throughput=True),
    Operation("io_strict", None, "packet of a nic to itself: two buffers mapped, moved, unmapped"),
    Operation("io_static", None, "the same with a pool mapped once"),
    Operation("io_passthrough", None, "the same with iommu=pt"),
    Operation("io_none", None, "the same without a vIOMMU"),
    Operation("io_host", None, "the same, driven by the host's kernel"),
    Operation("bare_round_trip", None, "floor: DEALER, ROUTER and back with msgpack"),
    Operation("bare_free", None, "floor: the same, left to the scheduler"),
    Operation("bare_chain", None, "floor: two such hops and back"),
    Operation("bare_unix", None, "floor: AF_UNIX stream, no ZeroMQ"),
)

#: Compared round by round: name -> (series, with what)
COMPARISONS: Final = (
    ("io_strict", "io_passthrough"),
    ("io_static", "io_passthrough"),
    ("io_strict", "io_static"),
    ("io_none", "io_host"),
    (f"map_sg_{SEGMENTS}", f"map_strict_{SEGMENTS}"),
    ("dma_read_miss", "dma_read_hit"),
    ("map_strict", "bare_chain"),
    ("map_strict", "bare_free"),
    ("bare_round_trip", "bare_unix"),
)


class Goal(NamedTuple):
    """A limit on a ratio, from below for a throughput."""

    name: str
    limit: float
    at_least: bool = False


GOALS: Final = (
    Goal("hop", 1.15),
    Goal("map_strict", 2.6),
    Goal("map_strict / bare_chain", 1.25),
    Goal("dma_write_posted", 1.5),
    Goal("pipeline_4k_w64", 0.7, at_least=True),
    Goal("fan_in_16", 0.8, at_least=True),
)
#: Packed on one CPU, a whole strict map against one bare round trip left to the scheduler.
PACKED_GOAL: Final = Goal("map_strict / bare_free", 1.0)


def result_of(measured: Measured, subject: Subject, placement: str) -> dict[str, Any]:
    """What one placement gave, as --json has it; without what is looked at once, where the run did not come so far."""
    rows, compared = table(measured, placement), comparisons(measured.rounds)
    result: dict[str, Any] = {
        "placement": placement,
        "measured": subject._asdict(),
        **surroundings(measured.cpus),
        "rounds": len(measured.rounds),
        "rows": rows,
        "comparisons": compared,
        # They are of a map that takes two hops.
        "goals": goals(rows, compared, placement) if subject.depth == 1 else [],
    }
    if measured.messages:
        result |= {"trace_overhead": measured.trace_overhead, "as_on_the_host": as_on_the_host(measured, rows)}
    return result


def table(measured: Measured, placement: str) -> list[dict[str, object]]:
    """The rows as --json has them. Times are in microseconds; a throughput's are those an operation."""
    return [_row(operation, measured, placement) for operation in OPERATIONS]


def comparisons(rounds: Sequence[Series]) -> list[dict[str, object]]:
    """Medians of the rounds' ratios, with their quartiles."""
    found = []
    for one, other in COMPARISONS:
        ratio = ratios(medians(rounds, one), medians(rounds, other))
        found.append({"name": f"{one} / {other}", **_spread(ratio)})
    return found


def goals(
    rows: Sequence[dict[str, object]], compared: Sequence[dict[str, object]], placement: str
) -> list[dict[str, object]]:
    """Each goal, what was reached, and whether that is enough."""
    values = {str(row["name"]): row["ratio"] for row in (*rows, *compared)}
    found: list[dict[str, object]] = []
    for goal in (*GOALS, *((PACKED_GOAL,) if placement == "pack" else ())):
        value = values[goal.name]
        assert isinstance(value, float)
        met = value >= goal.limit if goal.at_least else value <= goal.limit
        found.append({"name": goal.name, "ratio": value, "limit": goal.limit, "at_least": goal.at_least, "met": met})
    return found


def to_csv(rows: Sequence[dict[str, object]]) -> str:
    """A line a row; hops as `name=us` separated by semicolons."""
    text = io.StringIO()
    columns = [name for name in rows[0] if name != "hops"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "hops_us"])
    for row in rows:
        hops = row["hops"]
        assert isinstance(hops, dict)
        writer.writerow([*(row[name] for name in columns), ";".join(f"{name}={us}" for name, us in hops.items())])
    return text.getvalue()


def medians(rounds: Sequence[Series], name: str) -> list[float]:
    """Of a series, the median of each round."""
    return [percentile(sorted(series[name]), 50) for series in rounds]


def _row(operation: Operation, measured: Measured, placement: str) -> dict[str, object]:
    rounds = measured.rounds
    name = operation.series or operation.name
    summary = summarize(value for series in rounds for value in series[name])
    floor, ratio = None, None
    if operation.floor is not None:
        floor = summarize(value for series in rounds for value in series[operation.floor]).p50
        pair = medians(rounds, name), medians(rounds, operation.floor)
        ratio = ratios(*(pair[::-1] if operation.throughput else pair))
    parts = measured.shares.get(operation.name, {})
    return {
        "name": operation.name,
        "what": operation.what,
        "placement": placement,
        "clock": "wall",
        "p50_us": round(summary.p50, 3),
        "p90_us": round(summary.p90, 3),
        "p99_us": round(summary.p99, 3),
        "max_us": round(summary.max, 3),
        "mean_us": round(summary.mean, 3),
        "n": summary.n,
        "per_second": round(1e6 / summary.p50) if operation.throughput else None,
        "floor_us": None if floor is None else round(floor, 3),
        **_spread(ratio),
        "hops": {part: round(share * summary.p50, 3) for part, share in parts.items()},
    }


def _spread(ratio: Spread | None) -> dict[str, object]:
    if ratio is None:
        return {"ratio": None, "ratio_low": None, "ratio_high": None}
    return {"ratio": round(ratio.median, 4), "ratio_low": round(ratio.low, 4), "ratio_high": round(ratio.high, 4)}


def as_on_the_host(measured: Measured, rows: Sequence[dict[str, object]]) -> dict[str, object]:
    """The same nic driven by the host's kernel, and assigned without a vIOMMU: messages of a packet, and its time.

    `equal`: as many messages of each kind on the link, which is the data path. What the guest's CPU exchanges with the
    device by way of the host (doorbells and interrupts) crosses a process here, and stands in `beside`.
    """
    p50 = {row["name"]: row["p50_us"] for row in rows}
    paths = {
        setting: {kind: n for kind, n in kinds.items() if kind.startswith("link ")}
        for setting, kinds in measured.messages.items()
    }
    return {
        "equal": paths["host"] == paths["none"],
        "link": paths,
        "beside": {
            setting: {kind: n for kind, n in kinds.items() if kind not in paths[setting]}
            for setting, kinds in measured.messages.items()
        },
        "p50_us": {"host": p50["io_host"], "none": p50["io_none"]},
    }
