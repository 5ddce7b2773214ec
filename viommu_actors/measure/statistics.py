"""What is said of many times: percentiles, and ratios that survive a noisy machine.

A ratio is taken within each round, where both sides met the same machine, and the median of the rounds' ratios is what
counts. Pure, on nanoseconds in and microseconds out.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """A distribution, in microseconds."""

    p50: float
    p90: float
    p99: float
    max: float
    mean: float
    n: int


class Spread(NamedTuple):
    """The median of the rounds, and the quartiles around it."""

    median: float
    low: float
    high: float
    rounds: int


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed (nearest rank). `ordered` is ascending."""
    if not ordered:
        raise ValueError("no percentile of nothing")
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank), 1) - 1]


def summarize(nanoseconds: Iterable[int]) -> Summary:
    """Raises ValueError where there is nothing."""
    ordered = sorted(nanoseconds)
    p50, p90, p99 = (percentile(ordered, percent) / 1000 for percent in (50, 90, 99))
    return Summary(p50, p90, p99, ordered[-1] / 1000, statistics.fmean(ordered) / 1000, len(ordered))


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError where there is nothing."""
    if not values:
        raise ValueError("no spread of nothing")
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Spread(statistics.median(values), quartiles[0], quartiles[2], len(values))


def ratios(ours: Sequence[float], others: Sequence[float]) -> Spread:
    """Of two series with a value for each round: the ratios round by round."""
    return spread([one / other for one, other in zip(ours, others, strict=True)])


def rounds_of(names: Sequence[str], seed: int) -> Iterator[list[str]]:
    """Every name once a round, each round in another order; without end."""
    shuffled = random.Random(seed)
    while True:
        order = list(names)
        shuffled.shuffle(order)
        yield order


def shares(hops: Sequence[Sequence[tuple[str, int]]]) -> dict[str, float]:
    """What part of the whole each hop took in the operations nearest the median, a fifth of all; adds up to 1.

    `hops` holds the (name, nanoseconds) of each operation in order; those that took another way than most are left
    out. A name that comes twice in one operation, as a wire there and back, is one part.
    """
    if not hops:
        return {}
    ways = [tuple(name for name, _ in one) for one in hops]
    usual = statistics.mode(ways)
    ordered = sorted((one for one, way in zip(hops, ways, strict=True) if way == usual), key=_whole)
    middle = len(ordered) // 2
    near = ordered[max(middle - len(ordered) // 10, 0) : middle + len(ordered) // 10 + 1]
    total = sum(map(_whole, near))
    parts: dict[str, float] = {}
    for one in near:
        for name, nanoseconds in one:
            parts[name] = parts.get(name, 0.0) + nanoseconds / total
    return parts


def _whole(hops: Sequence[tuple[str, int]]) -> int:
    return sum(nanoseconds for _, nanoseconds in hops)
