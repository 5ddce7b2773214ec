"""A long run of honest work: throughput and memory of every process over time, and books that must balance."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from viommu_actors.measure.bench import System
from viommu_actors.measure.statistics import percentile
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.resolved import ResolvedTopology

#: Samples of a whole soak.
_SAMPLES: Final = 120
#: Operations in one command: short enough to stop at once.
_BURST: Final = 32
#: A process grows if its median in the last third is above that of the middle third by more than both of these: the
#: first third fills caches and pools.
GROWTH_KIB: Final = 1024
GROWTH_PART: Final = 0.02


def run(
    topology: ResolvedTopology, folder: RunFolder, seconds: float, progress: Callable[[float, str], None]
) -> dict[str, Any]:
    """All devices work, in turn, for so long. Raises what the supervisor raises."""
    plan = make_plan(topology)
    with Supervisor(plan, folder) as supervisor:
        progress(0.0, "boot")
        Scenario(topology, plan, supervisor, lambda _: None).boot()
        system = System(topology, supervisor)
        folder.write_control(supervisor.door.address)
        samples, operations, spent = _work(system, seconds, progress)
        lost = supervisor.reconcile()
        books = _books(supervisor)
    grown = growth(samples)
    return {
        "topology": topology.name,
        "placement": topology.placement,
        "clock": "wall",
        "seconds": round(spent, 3),
        "operations": operations,
        "samples": samples,
        "grown": grown,
        "lost": lost,
        "books": books,
        "ok": not grown and not lost and all(book["balanced"] for book in books),
    }


def growth(samples: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """KiB by which each process grew that did; none where there are too few samples to tell."""
    third = len(samples) // 3
    if third < 3:
        return {}
    grown = {}
    for name in samples[0]["memory_kib"]:
        series = [sample["memory_kib"][name] for sample in samples]
        middle, last = (percentile(sorted(part), 50) for part in (series[third : 2 * third], series[-third:]))
        if last - middle > max(GROWTH_KIB, middle * GROWTH_PART):
            grown[name] = int(last - middle)
    return grown


def _work(
    system: System, seconds: float, progress: Callable[[float, str], None]
) -> tuple[list[dict[str, Any]], int, float]:
    supervisor = system.supervisor
    owners = [system.owner(device) for device in system.topology.devices if device.peer is None]
    began = time.monotonic()
    step = seconds / _SAMPLES
    samples: list[dict[str, Any]] = []
    total = since = 0
    last = began
    while True:
        for owner in owners:
            done = supervisor.command(owner.kernel, "io", bdf=owner.bdf, operations=_BURST)
            if not done["verified"]:
                raise ValueError(f"{owner.kernel}: {owner.bdf}: data came back changed")
            since += done["operations"]
        now = time.monotonic()
        if now - last >= step or now - began >= seconds:
            total += since
            memory = {name: resident_kib(actor.pid) for name, actor in supervisor.actors.items()}
            samples.append(
                {"seconds": round(now - began, 3), "per_second": round(since / (now - last), 1), "memory_kib": memory}
            )
            since, last = 0, now
            progress((now - began) / seconds, f"soak: {samples[-1]['per_second']:.0f} operations a second")
        if now - began >= seconds:
            return samples, total, now - began


def _books(supervisor: Supervisor) -> list[dict[str, Any]]:
    """Of every kernel and hypervisor; balanced where what was mapped and not unmapped is live."""
    found = []
    for name, actor in supervisor.actors.items():
        if actor.role not in ("device", "app"):
            for book in supervisor.command(name, "books"):
                balanced = book["mapped"] - book["unmapped"] == book["live"]
                found.append({**book, "level": f"{name}: {book['level']}", "balanced": balanced})
    return found


def resident_kib(pid: int) -> int:
    """VmRSS of a process, 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmRSS:")[2].split()[0]) if "VmRSS:" in status else 0
