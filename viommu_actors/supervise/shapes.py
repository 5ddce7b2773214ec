"""Runs the topology whose counts the shapes are about, and a rogue's probes in it, as processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from viommu_actors.measure.shapes import Probes
from viommu_actors.report.results import Io
from viommu_actors.supervise.owner import owner_of
from viommu_actors.supervise.plan import guest_of
from viommu_actors.supervise.run import Ended, Run
from viommu_actors.supervise.stale import probe_after_unmap
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.resolved import ResolvedTopology

#: The nic that turns rogue, and the nic whose guest asks for lazy invalidation.
_ROGUE, _LAZY = "dynamic", "lazy"
_REFUSED = "IOMMU batching disallowed due to virtualization"


@dataclass(frozen=True)
class Counted:
    """How the run ended, and where it finished, what it counted.

    `batching_refused`: whether the guest that asked for lazy invalidation said that it goes on strict.
    """

    ended: Ended
    folder: Path
    io: Mapping[str, Io]
    batching_refused: bool
    probes: Probes | None


def count(topology: ResolvedTopology, path: Path | None, rounds: int, tell: Callable[[str], None]) -> Counted:
    """Plays the topology, `rounds` of probes after it. Raises OSError where its folder cannot be made."""
    live = Run(topology, path, tell)
    device = topology.device(_ROGUE)
    taken: list[Probes] = []

    def probe(supervisor: Supervisor) -> None:
        tell(f"{device.name}: probes while a page is mapped and after its unmap, {rounds} times")
        taken.append(probe_after_unmap(supervisor, device, owner_of(topology, device), rounds))

    ended = live.play(lambda results: None, stay=False, also=probe)
    results = ended.results
    if ended.how == "finished" and results is not None and not results.ok:
        ended = Ended("failed", "some I/O was not verified, or an assignment is not as it should be", results)
    vm = topology.device(_LAZY).vm
    assert vm is not None
    log = live.folder.path / f"{guest_of(vm)}.log"
    return Counted(
        ended,
        live.folder.path,
        {} if results is None else {row.device: row for row in results.io},
        log.exists() and _REFUSED in log.read_text(errors="replace"),
        taken[0] if taken else None,
    )


def with_operations(topology: ResolvedTopology, operations: int) -> ResolvedTopology:
    """The same, each device with so much honest work."""
    devices = tuple(msgspec.structs.replace(device, operations=operations) for device in topology.devices)
    return msgspec.structs.replace(topology, devices=devices)
