"""The stale window: what a device still reaches by an address after the driver's unmap of it has returned."""

from __future__ import annotations

import time
from typing import Any

from viommu_actors.measure.shapes import Probes
from viommu_actors.supervise.owner import Owner
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.resolve import ResolvedDevice

_PATTERN = b"\xde\xad\xbe\xef"
_SETTLE = 2.0
#: A write, and a read that pushes it.
_ACCESSES = 2


def probe_after_unmap(supervisor: Supervisor, device: ResolvedDevice, owner: Owner, rounds: int) -> Probes:
    """Maps a page, unmaps it, and has the device write and read it, before and after; so many times."""
    command = supervisor.command
    mapped_hits = stale_hits = stale_blocked = recorded = 0
    command("host", "faults")
    for _ in range(rounds):
        iova = command(owner.kernel, "offer_control", bdf=owner.bdf)["iova"]
        mapped_hits += _probe(supervisor, device, iova).get("ok", 0)
        command(owner.kernel, "end_control", bdf=owner.bdf)
        outcomes = _probe(supervisor, device, iova)
        stale_hits += outcomes.get("ok", 0)
        stale_blocked += sum(count for outcome, count in outcomes.items() if outcome != "ok")
        faults = command("host", "faults")
        recorded += len(faults["records"]) + faults["lost"]
    return Probes(rounds, rounds * _ACCESSES, mapped_hits, stale_hits, stale_blocked, recorded)


def _probe(supervisor: Supervisor, device: ResolvedDevice, iova: int) -> dict[str, int]:
    """How many of the accesses came to which outcome at the root port."""
    command = supervisor.command
    command("host", "watch", slot=device.slot)
    steps: list[dict[str, Any]] = [
        {"do": "write", "address": iova, "data": _PATTERN},
        {"do": "read", "address": iova, "length": len(_PATTERN)},
    ]
    command(device.name, "attack", steps=steps)
    deadline = time.monotonic() + _SETTLE
    while True:
        outcomes: dict[str, int] = command("host", "evidence", slot=device.slot, pages=[])["outcomes"]
        if sum(outcomes.values()) >= _ACCESSES or time.monotonic() > deadline:
            command("host", "unwatch", slot=device.slot)
            return outcomes
        supervisor.poll(0.01)
