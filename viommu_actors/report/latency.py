"""What a run's `latency.json` has, typed."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct, field


class LatencyRow(Struct, kw_only=True, frozen=True):
    """One operation, in microseconds of `clock`. `hops` add up to the whole; `ratio` is to the floor."""

    name: str
    placement: str = ""
    clock: str = "wall"
    n: int = 0
    p50_us: float | None = None
    p90_us: float | None = None
    p99_us: float | None = None
    max_us: float | None = None
    mean_us: float | None = None
    per_second: int | None = None
    floor_us: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    hops: dict[str, float] = field(default_factory=dict)


class Comparison(Struct, kw_only=True, frozen=True):
    """Two operations, round by round: the median of the ratios and their quartiles."""

    name: str
    ratio: float
    ratio_low: float
    ratio_high: float


class Goal(Struct, kw_only=True, frozen=True):
    """A limit on a ratio, and whether it was kept."""

    name: str
    ratio: float
    limit: float
    at_least: bool = False
    met: bool


class Measured(Struct, kw_only=True, frozen=True):
    """A VM and its two devices; `added` are those that the topology lacks."""

    vm: str
    nic: str
    edu: str
    added: tuple[str, ...] = ()
    depth: int = 1


class AsOnTheHost(Struct, kw_only=True, frozen=True):
    """A packet of the nic driven by the host ("host"), and assigned without a vIOMMU ("none"): messages, and time."""

    equal: bool
    link: dict[str, dict[str, float]]
    beside: dict[str, dict[str, float]]
    p50_us: dict[str, float]


class Latencies(Struct, kw_only=True, frozen=True):
    """The object of `latency.json`. Where there are several placements, `runs` has what each of them gave."""

    placement: str = ""
    measured: Measured | None = None
    #: of each process of the measured chain, None where the scheduler decides
    cpus: dict[str, list[int] | None] = field(default_factory=dict)
    cpus_available: int = 0
    device_layout: str = ""
    idle_gap_us: float = 0
    idle_gap_posted_us: float = 0
    versions: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    rows: tuple[LatencyRow, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    goals: tuple[Goal, ...] = ()
    trace_overhead: dict[str, float] = field(default_factory=dict)
    as_on_the_host: AsOnTheHost | None = None
    runs: tuple[Latencies, ...] = ()


def read_latencies(path: Path) -> Latencies | None:
    """None where there is no such file. Raises msgspec.DecodeError for one that is something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Latencies)
    except FileNotFoundError:
        return None


def operation(latencies: Latencies, row: LatencyRow) -> str:
    """A row's name, with its placement where there are several, and with its clock where that is not the wall's."""
    several = len({each.placement for each in latencies.rows}) > 1
    clock = row.clock if row.clock != "wall" else ""
    return ", ".join(filter(None, (row.name, row.placement if several else "", clock)))


def microseconds(value: float | None) -> str:
    """With two digits behind the point below 1, one below 1000, and none above; nothing for None."""
    return "" if value is None else f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"
