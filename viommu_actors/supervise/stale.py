"""The stale window: what a device still reaches by an address after the driver's unmap of it has returned."""

from __future__ import annotations

import time
from typing import Any

from viommu_actors.measure.shapes import Probes
from viommu_actors.pci.link import Outcome
from viommu_actors.supervise.owner import Owner
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.resolved import ResolvedDevice

_PATTERN = b"\xde\xad\xbe\xef"
_SETTLE = 2.0
#: A write, and a read that pushes it.
_ACCESSES = 2


def probe_after_unmap(supervisor: Supervisor, device: ResolvedDevice, owner: Owner, rounds: int) -> Probes:
    """Maps a page, unmaps it, and has the device write and read it, before and after; so many times.

    The device must be idle: whatever else it sent would count as a probe.
    """
    command = supervisor.command
    mapped_hits = stale_hits = stale_blocked = recorded = 0
    command("host", "faults")
    for _ in range(rounds):
        iova = command(owner.kernel, "offer_control", bdf=owner.bdf)["iova"]
        mapped_hits += _probe(supervisor, device, iova)[0]
        command(owner.kernel, "end_control", bdf=owner.bdf)
        hits, blocked = _probe(supervisor, device, iova)
        stale_hits += hits
        stale_blocked += blocked
        faults = command("host", "faults")
        recorded += len(faults["records"]) + faults["lost"]
    return Probes(rounds, rounds * _ACCESSES, mapped_hits, stale_hits, stale_blocked, recorded)


def _probe(supervisor: Supervisor, device: ResolvedDevice, iova: int) -> tuple[int, int]:
    """How many of the accesses the root port let through, and how many the IOMMU stopped."""
    steps: list[dict[str, Any]] = [
        {"do": "write", "address": iova, "data": _PATTERN},
        {"do": "read", "address": iova, "length": len(_PATTERN)},
    ]
    before = _seen(supervisor, device)
    supervisor.command(device.name, "attack", steps=steps)
    deadline = time.monotonic() + _SETTLE
    while True:
        now = _seen(supervisor, device)
        hits, blocked = now[0] - before[0], now[1] - before[1]
        if hits + blocked >= _ACCESSES or time.monotonic() > deadline:
            return hits, blocked
        supervisor.poll(0.01)


def _seen(supervisor: Supervisor, device: ResolvedDevice) -> tuple[int, int]:
    """Requests of the device so far that went through, and that faulted."""
    port: dict[str, int] = supervisor.command("host", "ports")[device.link]
    return port.get("read", 0) + port.get("write", 0), port.get(Outcome.FAULT, 0)
