"""Which CPU each actor runs on.

A trap is a synchronous chain, guest to hypervisor to host and back, in which one process runs at a time: on one
CPU it is two to three times faster than spread over several, since nobody has to be woken on another one.
"""

from __future__ import annotations

from collections.abc import Sequence

from viommu_actors.topology.model import Placement


def place(roles: Sequence[str], placement: Placement, cpus: Sequence[int]) -> list[list[int] | None]:
    """CPUs of each actor, by its role; None where the scheduler decides.

    "pack": the host and every hypervisor, guest and application on the first CPU, the devices in turn on the others.
    "spread": each actor on the next CPU. "free": left to the scheduler.
    """
    if placement == "free":
        return [None] * len(roles)
    if placement == "spread":
        return [[cpus[index % len(cpus)]] for index in range(len(roles))]
    others = cpus[1:] or cpus
    devices = iter(range(len(roles)))
    return [[others[next(devices) % len(others)]] if role == "device" else [cpus[0]] for role in roles]
