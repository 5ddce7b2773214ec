"""The shapes of published results, and whether this system shows them: published against observed, by tolerance.

No published wall-clock number carries over. Counts do, and shapes: orders, ratios, what grows and what stays flat.
Each check says by which clock it is: exact counts of a run, those counts charged with published costs ("modelled"), or
this machine's time ("wall").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from msgspec import Struct

from viommu_actors.measure.clock import charge
from viommu_actors.measure.costs import CostTable
from viommu_actors.measure.flush import FlushCosts
from viommu_actors.report.results import Io

#: The cost tables that the shapes are modelled with.
TABLES = ("bare-metal", "sidecore", "trap-and-emulate")
_MORE_THAN_1 = math.nextafter(1.0, 2.0)
_ATC = "vIOMMU, USENIX ATC 2011"
_BRUCKER = "virtio-iommu, J.-P. Brucker 2023"


class Check(Struct, kw_only=True, frozen=True):
    """One figure; it is as published where it lies from `low` to `high`."""

    what: str
    clock: Literal["counts", "modelled", "wall"]
    published: str
    observed: float
    low: float | None
    high: float | None
    tolerance: str

    @property
    def ok(self) -> bool:
        return (self.low is None or self.low <= self.observed) and (self.high is None or self.observed <= self.high)


class Probes(NamedTuple):
    """Accesses in `rounds` rounds, as the root port and the IOMMU saw them.

    `mapped_hits` went through while the page was mapped, which shows that the probe works; `stale_hits` went through
    after the unmap had returned, `stale_blocked` were refused then, each of them `recorded` by the IOMMU or lost in
    its overflow.
    """

    rounds: int
    accesses: int
    mapped_hits: int
    stale_hits: int
    stale_blocked: int
    recorded: int


@dataclass(frozen=True)
class Observations:
    """What was run: rows of I/O by the names of `configs/shapes.toml`, and the measurements that were asked for."""

    io: Mapping[str, Io]
    tables: Mapping[str, CostTable]
    batching_refused: bool | None = None
    flushes: FlushCosts | None = None
    probes: Probes | None = None


@dataclass(frozen=True)
class Shape:
    """A published shape. `checks` is None where no mode of today shows any of it; `waits_for` says what the rest needs.

    `needs` says what has to be run for it: the topology's "io", the "flushes" in process, the "probes" of a rogue.
    """

    number: int
    title: str
    reference: str
    needs: frozenset[Literal["io", "flushes", "probes"]] = frozenset()
    checks: Callable[[Observations], list[Check]] | None = None
    waits_for: str = ""


def _exact(what: str, observed: float, expected: float, published: str) -> Check:
    return Check(
        what=what,
        clock="counts",
        published=published,
        observed=observed,
        low=expected,
        high=expected,
        tolerance="exact",
    )


def _modelled(
    what: str, observed: float, published: str, tolerance: str, low: float | None, high: float | None = None
) -> Check:
    return Check(
        what=what, clock="modelled", published=published, observed=observed, low=low, high=high, tolerance=tolerance
    )


def _each(row: Io, key: str) -> float:
    """A count for each operation."""
    return float(getattr(row, key)) / row.operations


def _cycles(seen: Observations, device: str, table: str) -> float:
    """Modelled cost of one map or unmap; a run that mapped nothing has none."""
    per_mapping = charge(seen.io[device], seen.tables[table]).per_mapping
    return math.nan if per_mapping is None else per_mapping


def _order_of_costs(seen: Observations) -> list[Check]:
    bare = _cycles(seen, "bare", "bare-metal")
    side = _cycles(seen, "dynamic", "sidecore")
    same = _cycles(seen, "dynamic", "trap-and-emulate")
    return [
        _exact("bare: invalidations an operation", _each(seen.io["bare"], "invalidations"), 1, "1 (QEMU without CM)"),
        _exact("bare: traps an operation", _each(seen.io["bare"], "traps"), 0, "0"),
        _exact("samecore: traps an operation", _each(seen.io["dynamic"], "traps"), 2, "2 (QEMU with CM)"),
        _modelled("sidecore : bare, cycles a (un)map", side / bare, "1.34", "more than 1", _MORE_THAN_1),
        _modelled("samecore : bare, cycles a (un)map", same / bare, "5.06", "more than sidecore", side / bare),
        _modelled("samecore : sidecore", same / side, "3.79", "2 to 8", 2, 8),
    ]


def _line_rates(seen: Observations) -> list[Check]:
    def percent(device: str, table: str) -> float:
        return charge(seen.io[device], seen.tables[table]).percent_of_line_rate

    return [
        _modelled("bare metal, % of 10 Gb/s", percent("bare", "bare-metal"), "43", "40 to 46", 40, 46),
        _modelled("sidecore, % of 10 Gb/s", percent("dynamic", "sidecore"), "~34", "28 to 36", 28, 36),
        _modelled("samecore, % of 10 Gb/s", percent("dynamic", "trap-and-emulate"), "10", "7 to 13", 7, 13),
    ]


def _static_is_free(seen: Observations) -> list[Check]:
    table = seen.tables["trap-and-emulate"]
    dynamic, static, open_ = (charge(seen.io[name], table).per_io for name in ("dynamic", "static", "passthrough"))
    return [
        _exact("dynamic: requests an I/O", _each(seen.io["dynamic"], "traps"), 2, "2"),
        _exact("static: requests an I/O", _each(seen.io["static"], "traps"), 0, "0"),
        _exact("passthrough: requests an I/O", _each(seen.io["passthrough"], "traps"), 0, "0"),
        _modelled("static : passthrough, cost of an I/O", static / open_, "1.00", "at most 1.05", None, 1.05),
        _modelled("dynamic : passthrough, cost of an I/O", dynamic / open_, "7.2", "at least 5", 5),
    ]


def _lazy_with_caching_mode(seen: Observations) -> list[Check]:
    table = seen.tables["trap-and-emulate"]
    lazy, strict = (charge(seen.io[name], table) for name in ("lazy", "dynamic"))
    gain = lazy.percent_of_line_rate / strict.percent_of_line_rate
    return [
        _exact("lazy asked for: requests an I/O", _each(seen.io["lazy"], "traps"), 2, "2"),
        _exact("guest says that it goes on strict", float(bool(seen.batching_refused)), 1, "1"),
        _modelled("lazy : strict, throughput", gain, "1.1", "0.9 to 1.15", 0.9, 1.15),
    ]


def _flush_costs(seen: Observations) -> list[Check]:
    costs = seen.flushes
    assert costs is not None
    sizes = f"{costs.many:,} : {costs.few:,} mappings"
    domain = f"domain flush, {sizes} ({costs.domain_many_us:,.0f} : {costs.domain_few_us:,.0f} us)"
    page = f"page-selective, {sizes} ({costs.page_many_us:,.0f} : {costs.page_few_us:,.0f} us)"
    return [
        Check(
            what=domain,
            clock="wall",
            published="11.2",
            observed=costs.domain_ratio,
            low=4,
            high=None,
            tolerance="at least 4",
        ),
        Check(
            what=page,
            clock="wall",
            published="1.1",
            observed=costs.page_ratio,
            low=None,
            high=1.5,
            tolerance="at most 1.5",
        ),
    ]


def _no_stale_access(seen: Observations) -> list[Check]:
    probes = seen.probes
    assert probes is not None
    tried = f"of {probes.accesses} probes"
    return [
        _exact(f"while mapped: {tried}, went through", probes.mapped_hits, probes.accesses, "all"),
        _exact(f"after the unmap: {tried}, went through", probes.stale_hits, 0, "0"),
        _exact(f"after the unmap: {tried}, refused and recorded", _refused(probes), probes.accesses, "all"),
    ]


def _refused(probes: Probes) -> int:
    return min(probes.stale_blocked, probes.recorded)


SHAPES: tuple[Shape, ...] = (
    Shape(1, "cost of a (un)map: bare < sidecore << samecore", _ATC, frozenset({"io"}), _order_of_costs),
    Shape(2, "strict throughput by min(1, B / (A + 2c))", _ATC, frozenset({"io"}), _line_rates),
    Shape(3, "static mapping is free, dynamic is not", _BRUCKER, frozenset({"io"}), _static_is_free),
    Shape(
        4,
        "map batching and lazy each recover half of the strict loss",
        _BRUCKER,
        waits_for="virtio-iommu, strict and lazy, with map batching",
    ),
    Shape(
        5,
        "map batching gives nothing for single pages, lazy a fifth of the latency",
        _BRUCKER,
        waits_for="virtio-iommu, strict and lazy, with map batching",
    ),
    Shape(
        6,
        "lazy gains nothing with caching mode: the guest goes on strict",
        f"{_ATC}; Linux 29b32839725f",
        frozenset({"io"}),
        _lazy_with_caching_mode,
        waits_for="lazy without caching mode (bare metal doubles: 43 to 91 %)",
    ),
    Shape(
        7,
        "a domain flush costs by what is mapped, a page-selective one does not",
        "Linux 78d5f0f500e6, 29b32839725f; ratios measured, not published",
        frozenset({"flushes"}),
        _flush_costs,
    ),
    Shape(
        8,
        "nested: map is free, unmap one forward; lazy adds 30 %",
        "Linux 257ec29074",
        waits_for="VT-d nested translation, strict and lazy",
    ),
    Shape(
        9,
        "one trapped doorbell: throughput rises with cores, then collapses",
        "xlab, unpublished",
        waits_for="a doorbell that traps, and a machine with more than 4 CPUs",
    ),
    Shape(
        10,
        "without the trap, invalidation takes 70-90 % less",
        "Tegra CMDQV",
        waits_for="an invalidation queue handed to the guest",
    ),
    Shape(11, "optimistic teardown: cost by 1 - reuse", _ATC, waits_for="optimistic teardown"),
    Shape(
        12,
        "strict: nothing is reached after the unmap",
        "Linux dma-iommu; Gross",
        frozenset({"probes"}),
        _no_stale_access,
        waits_for="lazy (how long a device still reaches the page)",
    ),
)


class Outcome(Struct, kw_only=True, frozen=True):
    """A shape as it came out; one that is `waiting` has no checks. `waits_for` is as in `Shape`."""

    number: int
    title: str
    reference: str
    status: Literal["passed", "failed", "waiting"]
    waits_for: str
    checks: tuple[Check, ...]


def judge(shape: Shape, seen: Observations) -> Outcome:
    """Holds what was observed against what was published."""
    checks = () if shape.checks is None else tuple(shape.checks(seen))
    passed: Literal["passed", "failed"] = "passed" if all(check.ok for check in checks) else "failed"
    return Outcome(
        number=shape.number,
        title=shape.title,
        reference=shape.reference,
        status=passed if checks else "waiting",
        waits_for=shape.waits_for,
        checks=checks,
    )
