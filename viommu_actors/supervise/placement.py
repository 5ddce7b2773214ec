"""Which CPU each actor runs on.

A trap is a synchronous chain, guest to hypervisor to host and back, in which one process runs at a time: on one
CPU it is two to three times faster than spread over several, since nobody has to be woken on another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from viommu_actors.topology.values import Placement


def place(trusted: Sequence[bool], placement: Placement, cpus: Sequence[int]) -> list[list[int] | None]:
    """CPUs of each actor; None where the scheduler decides.

    "pack": those that trust each other (the host, hypervisors, guests and their applications) on the first CPU, devices
    and virtual switches in turn on the others.
    "spread": each actor on the next CPU. "free": left to the scheduler.
    """
    if placement == "free":
        return [None] * len(trusted)
    if placement == "spread":
        return [[cpus[index % len(cpus)]] for index in range(len(trusted))]
    others = cpus[1:] or cpus
    turn = count()
    return [[cpus[0]] if each else [others[next(turn) % len(others)]] for each in trusted]
