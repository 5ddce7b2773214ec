"""Differential fuzzing: random transcripts recorded from QEMU, replayed on the unit, and shrunk where they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from viommu_actors.recorder.generate import generate
from viommu_actors.recorder.qtest import QemuError
from viommu_actors.recorder.record import Recorder
from viommu_actors.replay import transcript as t
from viommu_actors.replay.compare import Difference
from viommu_actors.replay.judge import first_difference
from viommu_actors.vtd.deviations import Quirk

#: Recordings that shrinking makes at most.
SHRINK_LIMIT = 400


class Found(NamedTuple):
    """A transcript as QEMU recorded it, and where a unit with QEMU's quirks first differs."""

    seed: int
    header: t.Header
    operations: list[t.Operation]
    difference: Difference


def fuzz(seed: int, quirks: frozenset[Quirk], steps: int = 60) -> Found | None:
    """Of one seed: None where all is as in QEMU, else the shortest transcript that is not. Raises QemuError."""
    header, operations = generate(seed, steps)
    found = _compare(header, operations, quirks)
    if found is None:
        return None
    recorded, difference = found

    def differs(fewer: Sequence[t.Operation]) -> bool:
        try:
            return _compare(header, fewer, quirks) is not None
        except (QemuError, t.Malformed):
            return False

    shortest = shrink(recorded[: difference.line - 1], differs)
    found = _compare(header, shortest, quirks)
    if found is None:
        return Found(seed, header, recorded, difference)
    return Found(seed, header, *found)


def shrink(
    operations: Sequence[t.Operation], differs: Callable[[Sequence[t.Operation]], bool], limit: int = SHRINK_LIMIT
) -> list[t.Operation]:
    """Leaves out, in ever smaller pieces, what is not needed for `differs`; asks it `limit` times at most."""
    kept = list(operations)
    size = max(1, len(kept) // 2)
    while True:
        start = len(kept) - size
        removed = False
        while start > -size and limit > 0:
            fewer = kept[: max(0, start)] + kept[start + size :]
            limit -= 1
            if len(fewer) < len(kept) and differs(fewer):
                kept = fewer
                removed = True
            start -= size
        if limit <= 0 or (size == 1 and not removed):
            return kept
        size = max(1, size // 2)


def _compare(
    header: t.Header, operations: Sequence[t.Operation], quirks: frozenset[Quirk]
) -> tuple[list[t.Operation], Difference] | None:
    with Recorder(header) as recorder:
        recorded = recorder.record(operations)
    difference = first_difference(header, list(enumerate(recorded, 2)), quirks)
    return None if difference is None else (recorded, difference)
