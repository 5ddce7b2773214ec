"""What a run does, in order: boot, look at assignments, honest work of each device, attacks of the rogues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from time import perf_counter_ns

import msgspec

from viommu_actors.attacks.catalogue import Setting, Target
from viommu_actors.attacks.evidence import Fault
from viommu_actors.measure.sampled import Sample
from viommu_actors.measure.trace import Crossing, crossings
from viommu_actors.report.results import (
    Absent,
    App,
    Assignment,
    Counts,
    Io,
    Machine,
    Process,
    Results,
    Verdict,
    Vswitch,
    as_expected,
)
from viommu_actors.report.tables import sandbox_words
from viommu_actors.supervise.applications import forward, start, works
from viommu_actors.supervise.assault import Assault
from viommu_actors.supervise.back_end_stage import BackEndStage
from viommu_actors.supervise.confined import confinements
from viommu_actors.supervise.inspection import inspect
from viommu_actors.supervise.owner import Owner, heir_of, owner_of, owner_of_card
from viommu_actors.supervise.plan import Plan, guest_of, hypervisor_of, process_of
from viommu_actors.supervise.plays import BACK_END_PLAYS
from viommu_actors.supervise.stage import Stage, remapping_fault
from viommu_actors.supervise.supervisor import ActorGone, CommandFailed, Supervisor
from viommu_actors.supervise.uplink import mate_of
from viommu_actors.supervise.vswitches import vswitch_rows
from viommu_actors.supervise.work import Work, read_counts
from viommu_actors.topology.resolved import ResolvedApp, ResolvedDevice, ResolvedTopology, ResolvedVirtioNet, ResolvedVm

#: Operations that a kernel does with a device that it has back.
_RECLAIMED = 8
#: Operations whose messages are noted, for the report's latencies.
_SAMPLED = 32


class Scenario:
    """Orders one run over a supervisor; `tell(text)` reports progress. What is in is in `results`, at any time."""

    def __init__(
        self,
        topology: ResolvedTopology,
        plan: Plan,
        supervisor: Supervisor,
        tell: Callable[[str], None],
        setting: Setting | None = None,
        traced: bool = False,
    ) -> None:
        """`traced`: a trace is on from `play` to its end, and no sample is to be taken out of it."""
        self._topology = topology
        self._traced = traced
        self._plan = plan
        self._supervisor = supervisor
        self._tell = tell
        self._processes = tuple(
            Process(role=actor.role, name=actor.name, pid=actor.pid) for actor in supervisor.actors.values()
        )
        self._io: list[Io] = []
        self._verdicts: list[Verdict] = []
        self._assignments: list[Assignment] = []
        self._absent: list[Absent] = []
        self._machines: list[Machine] = []
        self._apps: list[App] = []
        #: why the kernel does not let an application have a device, by the device
        self._refused: dict[str, str] = {}
        #: device -> what crossed while it did some work more
        self.samples: dict[str, Sample] = {}
        #: device -> from when to when it did its work
        self._spans: dict[str, tuple[int, int]] = {}
        self._assaults = {
            device.name: Assault(Stage(topology, plan, supervisor, device, owner_of(topology, device)), setting)
            for device in topology.devices
            if device.rogue
        } | {
            card.name: Assault(BackEndStage(topology, plan, supervisor, vm, card), setting, BACK_END_PLAYS)
            for vm in topology.vms
            for card in vm.virtio
            if card.rogue
        }
        self._vswitches: tuple[Vswitch, ...] = ()
        self._done = False

    def run(self) -> None:
        """The whole of it. Raises what the supervisor raises."""
        self.boot()
        self.play()

    def play(self) -> None:
        """All that comes after the boot; what a contained death took away is left out."""
        for step in (self._inspect, self._work):
            self._for_each_device(step)
        self._for_each_card(self._send)
        for vm in self._topology.vms:
            for app in vm.apps:
                with self._contained(app.name):
                    self._start(vm, app)
        self._for_each_device(self._work_of_app)
        self._for_each_card(self._send_of_app)
        for vm in self._topology.vms:
            for app in vm.apps:
                with self._contained(app.name):
                    self._forward(vm, app)
        self._for_each_device(self._attack)
        self._for_each_card(self._attack_by_back_end)
        self._for_each_device(self._reclaim)
        self._vswitches = vswitch_rows(self._topology, self._supervisor)
        self._done = True

    def _for_each_device(self, step: Callable[[ResolvedDevice], None]) -> None:
        for device in self._topology.devices:
            with self._contained(device.name):
                step(device)

    def _for_each_card(self, step: Callable[[ResolvedVm, ResolvedVirtioNet], None]) -> None:
        for vm in self._topology.vms:
            for card in vm.virtio:
                with self._contained(card.name):
                    step(vm, card)

    @contextmanager
    def _contained(self, name: str) -> Iterator[None]:
        try:
            yield
        except (ActorGone, CommandFailed) as error:
            # What fails with nobody lost is no contained death's doing.
            if not self._supervisor.lost:
                raise
            self._tell(f"{name}: left out: {error}")

    def results(self, ok: bool = True) -> Results:
        """What is in by now; a run that was not played to its end is not ok."""
        rows = tuple(self._verdicts), tuple(self._io), tuple(self._assignments)
        return Results(
            topology=self._topology.name,
            ok=ok and self._done and as_expected(*rows, tuple(self._apps)),
            processes=tuple(map(self._now, self._processes)),
            verdicts=rows[0],
            io=rows[1],
            faults=tuple(
                fault
                for fault in (*(row.fault for row in rows[1]), *(verdict.evidence.fault for verdict in rows[0]))
                if fault is not None
            ),
            assignments=rows[2],
            absent=tuple(self._absent),
            machines=tuple(self._machines),
            apps=tuple(self._apps),
            vswitches=self._vswitches,
        )

    def _now(self, process: Process) -> Process:
        """With the pid of who has the name at last: one that died may have been started again."""
        actor = self._supervisor.actors.get(process.name)
        return process if actor is None else msgspec.structs.replace(process, pid=actor.pid)

    def boot(self) -> None:
        """Host, hypervisors, guests."""
        supervisor = self._supervisor
        self._tell(f"starting {len(supervisor.actors)} processes")
        supervisor.living(list(supervisor.actors), "ping")
        self._confined()
        supervisor.command("host", "train")
        self._attack_early(Target.HOST_MEMORY)
        self._tell("host kernel boots")
        supervisor.command("host", "boot")
        level = [vm.name for vm in self._topology.vms if vm.parent is None]
        while level:
            self._tell("hypervisors build their guests' machines")
            supervisor.living([hypervisor_of(vm) for vm in level], "build")
            built = self._counts(level)
            self._attack_early(Target.GUEST_MEMORY, level)
            self._tell("guest kernels boot")
            supervisor.living([guest_of(vm) for vm in level], "boot")
            for vm, counts in self._counts(level).items():
                counts.subtract(built[vm])
                self._machines.append(Machine(vm=vm, build=Counts(**built[vm]), boot=Counts(**counts)))
            level = [vm.name for vm in self._topology.vms if vm.parent in level]

    def _confined(self) -> None:
        """Before anything reaches a device: it is still what it was started as."""
        untrusted = [device.name for device in self._topology.devices]
        untrusted += [vswitch.name for vswitch in self._topology.vswitches]
        found = confinements(self._supervisor, untrusted)
        self._processes = tuple(
            msgspec.structs.replace(each, sandbox=found[each.name].level, sandbox_detail=found[each.name].detail)
            if each.name in found
            else each
            for each in self._processes
        )
        for told in sandbox_words(self._processes):
            self._tell(told)

    def _counts(self, vms: list[str]) -> dict[str, Counter[str]]:
        """What each of these VMs that is there has counted up to now."""
        counts = {}
        for vm in vms:
            with suppress(ActorGone):
                counts[vm] = read_counts(self._supervisor, guest_of(vm), hypervisor_of(vm))
        return counts

    def _owner(self, device: ResolvedDevice) -> Owner:
        return owner_of(self._topology, device)

    def _peer(self, name: str) -> Owner:
        return self._owner(self._topology.device(name))

    def _inspect(self, device: ResolvedDevice) -> None:
        if device.vm is not None:
            self._tell(f"{device.name}: what the guest sees of it")
            for vm in self._topology.line(device.vm):
                self._assignments.append(inspect(self._topology, self._supervisor, device, vm))

    def _work(self, device: ResolvedDevice) -> None:
        if not device.operations:
            return
        # An application takes the device afterwards.
        work = Work(self._supervisor, device, replace(self._owner(device), app=None), self._tell)
        self._tell(f"{device.name}: driver torn down and set up again")
        work.set_up()
        if device.peer is None:
            self._tell(f"{device.name}: {device.operations} operations")
            began = perf_counter_ns()
            row = work.alone(device.operations)
            self._spans[device.name] = began, perf_counter_ns()
            if any(vm.parent is not None for vm in self._topology.vms):
                row = msgspec.structs.replace(row, map_unmap_us=work.time_maps())
            self._io.append(row)
            if not self._traced:
                self._sample(device)
        else:
            self._tell(f"{device.name}: {device.operations} frames to {device.peer}")
            self._io.append(work.send_to(replace(self._peer(device.peer), app=None), device.operations))

    def _sample(self, device: ResolvedDevice) -> None:
        """After all that is counted, so that no count has it."""
        supervisor, owner = self._supervisor, self._owner(device)
        supervisor.trace(True)
        supervisor.command(owner.kernel, "io", bdf=owner.bdf, operations=_SAMPLED)
        self.samples[device.name] = Sample(self._line(device), crossings(supervisor.stamps()))
        supervisor.trace(False)

    def sample_of(self, messages: list[Crossing]) -> None:
        """The same out of a trace of the whole."""
        for name, (began, ended) in self._spans.items():
            own = [each for each in messages if began <= each.sent <= ended]
            self.samples[name] = Sample(self._line(self._topology.device(name)), own)

    def _line(self, device: ResolvedDevice) -> list[str]:
        return [] if device.vm is None else [vm.name for vm in self._topology.line(device.vm)]

    def _send(self, vm: ResolvedVm, card: ResolvedVirtioNet) -> None:
        """Between the kernels, whoever takes the cards afterwards."""
        if not card.operations:
            return
        mate, peer = mate_of(self._topology, card.name)
        work = Work(self._supervisor, card, replace(owner_of_card(vm, card), app=None), self._tell)
        self._tell(f"{card.name}: driver torn down and set up again")
        work.set_up()
        self._tell(f"{card.name}: {card.operations} frames to {mate} through {card.vswitch}")
        row = work.send_through(replace(peer, app=None), card.operations)
        self._io.append(msgspec.structs.replace(row, peer=mate))

    def _send_of_app(self, vm: ResolvedVm, card: ResolvedVirtioNet) -> None:
        """The same where an application has either end."""
        mate, peer = mate_of(self._topology, card.name)
        ports = self._topology.port(card.name), self._topology.port(mate)
        if not card.operations or not any(ports) or self._refused.keys() & {card.name, mate}:
            return
        self._tell(f"{card.name}: {card.operations} frames to {mate}, of {card.app or 'the kernel'}")
        work = Work(self._supervisor, card, owner_of_card(vm, card), self._tell)
        row = work.send_through(peer, card.operations)
        drivers = ["kernel" if port is None else port.driver for port in ports]
        self._io.append(msgspec.structs.replace(row, peer=mate, driver=drivers[0], peer_driver=drivers[1]))

    def _start(self, vm: ResolvedVm, app: ResolvedApp) -> None:
        self._tell(f"{app.name} starts and takes {', '.join(f'{port.device} by {port.driver}' for port in app.ports)}")
        row = start(self._topology, self._supervisor, vm, app)
        self._apps.append(row)
        for port in row.ports:
            if not port.granted:
                why = f"the kernel refused {port.asked}: {port.errno}, {port.reason}"
                self._tell(f"{port.device}: {why}")
                self._refused[port.device] = why

    def _work_of_app(self, device: ResolvedDevice) -> None:
        port = self._topology.port(device.name)
        if port is None or not device.operations or device.name in self._refused:
            return
        # What an application polls on a cable it forwards.
        if device.peer is not None and port.rx == "poll":
            return
        self._tell(f"{device.name}: {device.operations} operations of {device.app}")
        self._supervisor.command("host", "faults")
        work = Work(self._supervisor, device, self._owner(device), self._tell)
        if device.peer is None:
            row = work.alone(device.operations)
        else:
            row = work.woken_by(self._peer(device.peer), device.operations)
        should = works(self._topology, port)
        fault = None if row.verified else self._first_fault(device)
        self._io.append(msgspec.structs.replace(row, driver=port.driver, should_work=should, fault=fault))

    def _forward(self, vm: ResolvedVm, app: ResolvedApp) -> None:
        name = process_of(vm.name, app.name)
        index = next((i for i, row in enumerate(self._apps) if row.name == name), None)
        if index is None:
            return
        row = forward(self._topology, self._supervisor, vm, app, self._apps[index])
        if row.forwarded is not None:
            self._tell(f"{app.name} forwarded {row.forwarded.packets} packets between its ports")
        self._apps[index] = row

    def _first_fault(self, device: ResolvedDevice) -> Fault | None:
        told = self._supervisor.command("host", "faults")
        own = [record for record in told["records"] if record["source"] == device.bdf]
        return remapping_fault(own[0], len(own) + told["lost"]) if own else None

    def _reclaim(self, device: ResolvedDevice) -> None:
        """A device of a nested VM that is lost goes back to the kernel that had handed it on, which works with it."""
        heir = heir_of(self._topology, device, self._supervisor.lost)
        if heir is None or not device.operations:
            return
        self._tell(f"{device.name}: back with {heir.kernel}, its user is gone")
        self._supervisor.command(heir.kernel, "reclaim", bdf=heir.bdf)
        self._io.append(Work(self._supervisor, device, heir, self._tell).alone(_RECLAIMED))

    def _attack_early(self, target: Target, vms: Collection[str | None] = ()) -> None:
        """Those of all devices, or of those that these VMs have."""
        for name, assault in self._assaults.items():
            machine = self._topology.machine_of(name)
            if not vms or (machine is not None and machine.name in vms):
                assault.play_early(target)

    def _attack(self, device: ResolvedDevice) -> None:
        if device.rogue:
            self._play(device.name, "turns hostile", f"is programmed by {device.app}")

    def _attack_by_back_end(self, vm: ResolvedVm, card: ResolvedVirtioNet) -> None:
        if card.rogue:
            self._play(card.name, f"is served by {card.vswitch}, which turns hostile")

    def _play(self, name: str, turns: str, by_application: str = "") -> None:
        assault = self._assaults[name]
        assault.refused = self._refused.get(name, "")
        for attack, target, reason in assault.choices():
            if reason:
                self._absent.append(assault.absent(attack, target, reason))
                continue
            how = by_application if attack.by == "application" else turns
            self._tell(f"{name} {how}: {attack.id} {attack.name} on {target}")
            self._verdicts.append(assault.play(attack, target))
