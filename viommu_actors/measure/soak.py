"""A long run of honest work: throughput and memory of every process over time, and books that must balance."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from viommu_actors.measure.statistics import percentile
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.owner import owner_of
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import ActorDied, CommandFailed, Interrupted, Supervisor
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
    topology: ResolvedTopology,
    folder: RunFolder,
    seconds: float,
    progress: Callable[[float, str], None],
    leave: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """All devices work, in turn, for so long. Raises what the supervisor raises.

    `leave` is called with the result, also with that of a soak which ends before its time; each sample stands in the
    run's events as soon as it is taken.
    """
    plan = make_plan(topology)
    with Supervisor(plan, folder) as supervisor:
        progress(0.0, "boot")
        Scenario(topology, plan, supervisor, lambda _: None).boot()
        folder.write_control(supervisor.door.address)
        samples: list[dict[str, Any]] = []
        try:
            _work(topology, supervisor, folder, seconds, progress, samples)
        except Interrupted as error:
            leave(_result(topology, samples, _account(supervisor), str(error)))
            raise
        except (ActorDied, CommandFailed) as error:
            leave(_result(topology, samples, None, str(error)))
            raise
        account = _account(supervisor)
    result = _result(topology, samples, account)
    leave(result)
    return result


class _Account(NamedTuple):
    """Wires whose ends disagree, and the books of every level."""

    lost: list[str]
    books: list[dict[str, Any]]


def _account(supervisor: Supervisor) -> _Account:
    return _Account(supervisor.reconcile(), _books(supervisor))


def _result(
    topology: ResolvedTopology, samples: list[dict[str, Any]], account: _Account | None, ended: str = ""
) -> dict[str, Any]:
    """`ended` is why it did not go on to its end; `account` is None where nobody could be asked any more."""
    grown = growth(samples)
    lost, books = account or _Account([], [])
    return {
        "topology": topology.name,
        "placement": topology.placement,
        "clock": "wall",
        "seconds": samples[-1]["seconds"] if samples else 0.0,
        "operations": samples[-1]["operations"] if samples else 0,
        "samples": samples,
        "grown": grown,
        "lost": lost,
        "books": books,
        "ended": ended,
        "ok": not ended and not grown and not lost and all(book["balanced"] for book in books),
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
    topology: ResolvedTopology,
    supervisor: Supervisor,
    folder: RunFolder,
    seconds: float,
    progress: Callable[[float, str], None],
    samples: list[dict[str, Any]],
) -> None:
    """Adds to `samples` as it goes on. Raises what the supervisor raises."""
    owners = [owner_of(topology, device) for device in topology.devices if device.peer is None]
    began = last = time.monotonic()
    step = seconds / _SAMPLES
    total = since = 0
    while True:
        for owner in owners:
            done = supervisor.command(owner.kernel, "io", bdf=owner.bdf, operations=_BURST)
            if not done["verified"]:
                raise CommandFailed(f"{owner.kernel}: {owner.bdf}: data came back changed")
            since += done["operations"]
        now = time.monotonic()
        if now - last >= step or now - began >= seconds:
            total += since
            sample = {
                "seconds": round(now - began, 3),
                "operations": total,
                "per_second": round(since / (now - last), 1),
                "memory_kib": {name: resident_kib(actor.pid) for name, actor in supervisor.actors.items()},
            }
            samples.append(sample)
            folder.event("launcher", "sample", **sample)
            since, last = 0, now
            progress((now - began) / seconds, f"soak: {sample['per_second']:.0f} operations a second")
        if now - began >= seconds:
            return


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
