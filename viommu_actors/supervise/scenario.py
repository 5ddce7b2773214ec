"""What a run does, in order: boot, honest work of each device, attacks of the rogues, verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from viommu_actors.report.results import Counts, Io, Process, Results, Verdict, as_expected
from viommu_actors.supervise.assault import Assault
from viommu_actors.supervise.plan import Plan, guest_of, hypervisor_of
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.resolve import ResolvedDevice, ResolvedTopology

#: Result key -> (whose counter, its name there)
_COUNTED = {
    "traps": ("hypervisor", "traps"),
    "vfio_maps": ("hypervisor", "vfio_maps"),
    "vfio_unmaps": ("hypervisor", "vfio_unmaps"),
    "pte_writes": ("kernel", "pte_writes"),
    "invalidations": ("kernel", "invalidations"),
    "queue_tail_writes": ("kernel", "queue_tail_writes"),
}


@dataclass(frozen=True)
class Owner:
    """Who drives a device: the kernel's actor, its hypervisor if it has one, the device's BDF there."""

    kernel: str
    hypervisor: str | None
    bdf: str


def owner_of(topology: ResolvedTopology, device: ResolvedDevice) -> Owner:
    """The kernel that drives the device."""
    if device.vm is None:
        return Owner("host", None, device.bdf)
    assign = next(each for each in topology.vm(device.vm).assign if each.device == device.name)
    return Owner(guest_of(device.vm), hypervisor_of(device.vm), assign.bdf)


class Scenario:
    """Orders one run over a supervisor; `tell(text)` reports progress."""

    def __init__(
        self, topology: ResolvedTopology, plan: Plan, supervisor: Supervisor, tell: Callable[[str], None]
    ) -> None:
        self._topology = topology
        self._plan = plan
        self._supervisor = supervisor
        self._tell = tell

    def run(self) -> Results:
        """The whole of it. Raises what the supervisor raises."""
        self._boot()
        io = tuple(self._work(device) for device in self._topology.devices if device.operations)
        rogues = [device for device in self._topology.devices if device.rogue]
        verdicts = tuple(verdict for device in rogues for verdict in self._attack(device))
        return self._results(io, verdicts)

    def _boot(self) -> None:
        supervisor = self._supervisor
        self._tell(f"starting {len(supervisor.actors)} processes")
        supervisor.commands(supervisor.actors, "ping")
        self._tell("host kernel boots")
        supervisor.command("host", "boot")
        vms = [vm.name for vm in self._topology.vms]
        if vms:
            self._tell("hypervisors build their guests' machines")
            supervisor.commands([hypervisor_of(vm) for vm in vms], "build")
            self._tell("guest kernels boot")
            supervisor.commands([guest_of(vm) for vm in vms], "boot")

    def _work(self, device: ResolvedDevice) -> Io:
        owner = owner_of(self._topology, device)
        command = self._supervisor.command
        self._tell(f"{device.name}: driver torn down and set up again")
        setup = self._counted(owner, lambda: command(owner.kernel, "rebind", bdf=owner.bdf))[1]
        self._tell(f"{device.name}: {device.operations} operations")
        done, counts = self._counted(
            owner, lambda: command(owner.kernel, "io", bdf=owner.bdf, operations=device.operations)
        )
        return Io(
            device=device.name,
            mapping=done["mapping"],
            operations=done["operations"],
            bytes=done["bytes"],
            verified=done["verified"],
            setup=Counts(**setup),
            **counts,
        )

    def _attack(self, device: ResolvedDevice) -> list[Verdict]:
        assault = Assault(self._topology, self._plan, self._supervisor, device, owner_of(self._topology, device))
        verdicts = []
        for attack, target in assault.applicable():
            self._tell(f"{device.name} turns hostile: {attack.id} {attack.name} on {target}")
            verdicts.append(assault.play(attack, target))
        return verdicts

    def _counted(self, owner: Owner, work: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
        """What the work returned, and what it cost on each side."""
        before = self._counters(owner)
        result = work()
        after = self._counters(owner)
        return result, {key: after[key] - before[key] for key in _COUNTED}

    def _counters(self, owner: Owner) -> dict[str, int]:
        command = self._supervisor.command
        sides: dict[str, dict[str, int]] = {"hypervisor": {}, "kernel": command(owner.kernel, "counters")}
        if owner.hypervisor is not None:
            sides["hypervisor"] = command(owner.hypervisor, "counters")
        return {key: sides[side].get(name, 0) for key, (side, name) in _COUNTED.items()}

    def _results(self, io: tuple[Io, ...], verdicts: tuple[Verdict, ...]) -> Results:
        processes = tuple(
            Process(role=actor.role, name=actor.name, pid=actor.pid)  # type: ignore[arg-type]
            for actor in self._supervisor.actors.values()
        )
        return Results(
            topology=self._topology.name,
            ok=as_expected(verdicts, io),
            processes=processes,
            verdicts=verdicts,
            io=io,
            faults=(),
        )
