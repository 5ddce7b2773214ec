"""Rogues that come to a topology while it is up, and go: each job that was asked for at its door.

A rogue is a device process of its own. One that takes over a device's link starts from what the kernel has set up of
the device, and nobody sees a link go down; when it leaves, an honest process does the same, and the device's driver
is bound anew. Whatever becomes of a rogue, the topology goes on.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from viommu_actors.attacks.catalogue import CATALOGUE
from viommu_actors.report.results import Absent, Io, Process, RogueResults, Verdict
from viommu_actors.supervise.assault import Assault
from viommu_actors.supervise.confined import confinements
from viommu_actors.supervise.door import Asked, Door
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.owner import owner_of, owner_of_card
from viommu_actors.supervise.places import OPERATIONS, Attached, Places, Refused, known
from viommu_actors.supervise.plan import Plan
from viommu_actors.supervise.requests import Attack, DeviceAdd, DeviceDel, Script
from viommu_actors.supervise.scripted import Scripted
from viommu_actors.supervise.stage import Stage
from viommu_actors.supervise.supervisor import ActorDied, ActorGone, CommandFailed, Interrupted, Supervisor, Withdrawn
from viommu_actors.supervise.uplink import mate_of
from viommu_actors.supervise.work import Work
from viommu_actors.topology.resolved import ResolvedTopology


class Attachments:
    """The rogues of one run, by the name of their device."""

    def __init__(
        self,
        topology: ResolvedTopology,
        plan: Plan,
        supervisor: Supervisor,
        folder: RunFolder,
        tell: Callable[[str], None],
    ) -> None:
        self._places = Places(topology, plan, supervisor, tell)
        self._plan = plan
        self._supervisor = supervisor
        self._folder = folder
        self._tell = tell
        self._door: Door = supervisor.door
        self._attached: dict[str, Attached] = {}
        self._reports = 0
        supervisor.more_status = self._status

    def serve(self) -> None:
        """Does every job that waits, and takes away rogues whose asker is gone or whose process has died.

        Raises ActorDied, Interrupted.
        """
        while True:
            self._tidy()
            asked = self._door.next_job()
            if asked is None:
                return
            self._serve(asked)

    def _serve(self, asked: Asked) -> None:
        door = self._door
        try:
            result = self._do(asked)
        except Refused as error:
            door.fail(asked, "refused", str(error))
        except ActorGone as error:
            door.fail(asked, "died", str(error))
        except CommandFailed as error:
            door.fail(asked, "failed", str(error))
        except Withdrawn:
            door.fail(asked, "interrupted", "given up")
        except (ActorDied, Interrupted):
            door.fail(asked, "interrupted", "the topology has ended")
            raise
        except Exception as error:  # the boundary: one job's failure must not end the topology
            self._folder.event("launcher", "job failed", trace=traceback.format_exc())
            door.fail(asked, "failed", f"{type(error).__name__}: {error}")
        else:
            door.answer(asked, {"result": result})
        finally:
            door.done()

    def _do(self, asked: Asked) -> dict[str, Any]:
        match asked.request:
            case DeviceAdd() as job:
                return self._add(job, asked.peer)
            case Attack() as job:
                return self._attack(job, asked)
            case Script() as job:
                return self._script(job, asked)
            case DeviceDel(device=device):
                self._find(device)
                self._remove(device)
                return {"device": device}
        raise AssertionError(asked.request)

    def _tidy(self) -> None:
        gone, self._supervisor.departed = self._supervisor.departed, set()
        for name, attached in list(self._attached.items()):
            if name in self._supervisor.fallen:
                self._tell(f"{self._supervisor.fallen[name]}; the topology goes on")
            elif attached.peer in gone:
                self._tell(f"{name}: whoever attached the rogue is gone")
            else:
                continue
            try:
                self._remove(name)
            except (ActorDied, Interrupted):
                raise
            except Exception:  # the boundary, as of a job; what became of the device was told
                self._folder.event("launcher", "removal failed", trace=traceback.format_exc())

    # --- coming and going

    def _add(self, job: DeviceAdd, peer: bytes) -> dict[str, Any]:
        if job.device in self._attached:
            remedy = f"take it away: launch/rogue --remove {job.device}"
            raise Refused(f'"{job.device}" is a rogue already; {remedy}')
        if job.place == "as":
            attached = self._places.take_over(job.device or "")
        elif job.place == "swap":
            attached = self._places.swap(job.device or "", job.model)
        else:
            attached = self._places.plug(job.slot, job.model)
        name = attached.device.name
        attached.confinement = confinements(self._supervisor, [name]).get(name)
        attached.peer = None if job.detach else peer
        self._attached[name] = attached
        self._hold()
        return {"device": msgspec.to_builtins(attached.device)}

    def _remove(self, name: str) -> None:
        attached = self._attached.pop(name)
        self._hold()
        self._places.leave(attached)

    def _hold(self) -> None:
        self._door.held = {each.peer for each in self._attached.values() if each.peer is not None}

    def _find(self, name: str) -> Attached:
        attached = self._attached.get(name)
        if attached is None:
            raise Refused(f'no rogue is attached as "{name}"; {known(name, list(self._attached))}')
        return attached

    # --- attacks

    def _attack(self, job: Attack, asked: Asked) -> dict[str, Any]:
        unknown = next((name for name in job.attacks if name not in CATALOGUE), None)
        if unknown is not None:
            raise Refused(f'there is no attack "{unknown}"; {known(unknown, list(CATALOGUE))}')
        attached = self._find(job.device)
        device = attached.device
        assault = Assault(Stage(self._places.topology, self._plan, self._supervisor, device, attached.owner))
        verdicts: list[Verdict] = []
        absent: list[Absent] = []
        with self._revocable(attached, asked, assault.undo):
            for turn in range(job.repeat):
                for attack, target, reason in assault.choices(job.attacks or tuple(CATALOGUE)):
                    if reason:
                        if not turn:
                            absent.append(assault.absent(attack, target, reason))
                        continue
                    again = f" ({turn + 1} of {job.repeat})" if job.repeat > 1 else ""
                    self._door.progress(asked, f"{device.name}: {attack.id} {attack.name} on {target}{again}")
                    verdicts.append(assault.play(attack, target))
        return self._reported(asked, attached, verdicts, absent, [])

    def _script(self, job: Script, asked: Asked) -> dict[str, Any]:
        attached = self._find(job.device)
        device = attached.device
        stage = Stage(self._places.topology, self._plan, self._supervisor, device, attached.owner)
        scripted = Scripted(stage)
        verdicts: list[Verdict] = []
        reports: list[str] = []
        with self._revocable(attached, asked, stage.undo):
            for turn in range(job.repeat):
                again = f" ({turn + 1} of {job.repeat})" if job.repeat > 1 else ""
                self._door.progress(asked, f"{device.name}: {job.name} runs{again}")
                drawn, said = scripted.play(job.text, job.name, job.seconds)
                verdicts += drawn
                reports += said["reports"]
                if said["error"]:
                    raise CommandFailed(said["error"])
        return self._reported(asked, attached, verdicts, [], reports)

    def _reported(
        self, asked: Asked, attached: Attached, verdicts: list[Verdict], absent: list[Absent], reports: list[str]
    ) -> dict[str, Any]:
        """The result of a rogue's attacks, which stands in the run's folder too."""
        self._door.progress(asked, "honest work of the other devices")
        device, told = attached.device, attached.confinement
        io = list(self._others_work(device.name))
        process = Process(
            role="device",
            name=device.name,
            pid=self._supervisor.actors[device.name].pid,
            sandbox=None if told is None else told.level,
            sandbox_detail="" if told is None else told.detail,
        )
        results = RogueResults(
            device=device.name,
            process=process,
            ok=all(verdict.ok for verdict in verdicts) and all(row.ok for row in io),
            verdicts=tuple(verdicts),
            absent=tuple(absent),
            io=tuple(io),
            reports=tuple(reports),
        )
        plain: dict[str, Any] = msgspec.to_builtins(results)
        self._reports += 1
        self._folder.write(f"rogue-{self._reports}.json", json.dumps(plain, indent=2) + "\n")
        return plain

    @contextmanager
    def _revocable(self, attached: Attached, asked: Asked, undo: Callable[[], None]) -> Iterator[None]:
        """What is done meanwhile may be given up by whoever asked for it, or fail; what it harmed is mended."""
        self._door.revocable = asked.peer
        try:
            yield
        except (ActorDied, Interrupted):
            raise
        except Exception:
            self._door.revocable = None
            self._mend(attached, undo)
            raise
        finally:
            self._door.revocable = None

    def _mend(self, attached: Attached, undo: Callable[[], None]) -> None:
        """After an attack that was broken off: what it harmed, and what was being watched."""
        command = self._supervisor.command
        kernels = {"host", *(name for name, actor in self._supervisor.actors.items() if actor.role == "guest")}
        for kernel, name, arguments in [
            *((kernel, "restore", {}) for kernel in sorted(kernels)),
            ("host", "unwatch", {"link": attached.device.link}),
            (attached.owner.kernel, "end_control", {"bdf": attached.owner.bdf}),
        ]:
            with suppress(CommandFailed, ActorGone):
                command(kernel, name, **arguments)
        with suppress(CommandFailed, ActorGone):
            undo()

    def _others_work(self, rogue: str) -> Iterator[Io]:
        """A little honest work of every other device that is there and that a kernel drives, and of every card of a
        virtual switch, each byte verified."""
        topology = self._places.topology
        there = {device.name for device in topology.devices if device.app is None} & self._supervisor.actors.keys()
        honest = there - {rogue, *self._attached}
        for device in topology.devices:
            if not device.operations or not honest >= {device.name, device.peer or device.name}:
                continue
            work = Work(self._supervisor, device, owner_of(topology, device), self._tell)
            try:
                if device.peer is None:
                    yield work.alone(OPERATIONS)
                else:
                    yield work.send_to(owner_of(topology, topology.device(device.peer)), OPERATIONS)
            except ActorGone:
                continue
            except CommandFailed as error:
                yield work.failed(str(error))
        cards = [(vm, card) for vm in topology.vms for card in vm.virtio if card.operations]
        for vm, card in cards:
            mate, peer = mate_of(topology, card.name)
            work = Work(self._supervisor, card, owner_of_card(vm, card), self._tell)
            try:
                row = work.send_through(peer, OPERATIONS)
            except ActorGone:
                continue
            except CommandFailed as error:
                row = work.failed(str(error))
            yield msgspec.structs.replace(row, peer=mate)

    # ---

    def _status(self) -> dict[str, Any]:
        actors = self._supervisor.actors
        there = {name: each for name, each in self._attached.items() if name in actors}
        return {
            "attached": [
                {"device": name, "slot": each.device.slot, "detached": each.peer is None, "pid": actors[name].pid}
                for name, each in there.items()
            ]
        }
