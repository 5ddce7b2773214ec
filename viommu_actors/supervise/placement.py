"""Which CPU each actor runs on.

A trap is a synchronous chain, guest to hypervisor to host and back, in which one process runs at a time: on one
CPU it is two to three times faster than spread over several, since nobody has to be woken on another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from viommu_actors.topology.values import Placement


class Seat(NamedTuple):
    """An actor that wants a CPU."""

    trusted: bool
    #: the one whose answers it waits for, by its place among the seats; None for the host, which waits for nobody
    asks: int | None


def place(seats: Sequence[Seat], placement: Placement, cpus: Sequence[int]) -> list[list[int] | None]:
    """CPUs of each actor; None where the scheduler decides.

    "pack": those that trust each other (the host, hypervisors, guests and their applications) on the first CPU, devices
    and virtual switches in turn on the others.
    "spread": each on the next CPU that is not that of whom it asks. "free": left to the scheduler.
    """
    if placement == "free":
        return [None] * len(seats)
    if placement == "spread":
        return [[cpu] for cpu in _spread(seats, cpus)]
    others = cpus[1:] or cpus
    turn = count()
    return [[cpus[0]] if seat.trusted else [others[next(turn) % len(others)]] for seat in seats]


def _spread(seats: Sequence[Seat], cpus: Sequence[int]) -> list[int]:
    """The host first, then all who ask somebody that has a CPU, devices last."""
    placed: dict[int, int] = {}
    turn = count()

    def ready(index: int) -> bool:
        return index not in placed and (seats[index].asks is None or seats[index].asks in placed)

    while len(placed) < len(seats):
        index = min((index for index in range(len(seats)) if ready(index)), key=lambda index: not seats[index].trusted)
        asked = seats[index].asks
        cpu = cpus[next(turn) % len(cpus)]
        if asked is not None and cpu == placed[asked]:
            cpu = cpus[next(turn) % len(cpus)]
        placed[index] = cpu
    return [placed[index] for index in range(len(seats))]
