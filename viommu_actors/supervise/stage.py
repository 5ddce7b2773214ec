"""What the play of an attack has at hand: who owns what, where it lies, and commands to all of them.

The launcher gives the rogue all that an attacker could ever learn. Foreign memory is probed by host-physical
address, that of the kernel which drives the device by this kernel's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from viommu_actors.attacks.catalogue import Attack, Setting, Target
from viommu_actors.attacks.evidence import Fault
from viommu_actors.attacks.expected import Driver
from viommu_actors.pci.watch import Aim
from viommu_actors.supervise.owner import Owner, owner_of
from viommu_actors.supervise.plan import HOST_HIGH_BASE, HOST_LOW_MEMORY, Plan, guest_of
from viommu_actors.supervise.questions import Asked
from viommu_actors.supervise.supervisor import ActorGone, CommandFailed, Supervisor
from viommu_actors.topology.resolved import ResolvedTopology

PAGE = 4096
#: How long posted writes, which nobody answers, are waited for.
SETTLE = 2.0
#: What a rogue writes: a whole number of dwords that no canary holds.
PATTERN = b"\xde\xad\xbe\xef" * 16

#: By the outcome that a port logs; of any other a rejection is told.
_PORT_FAULTS: dict[str, Literal["acs", "malformed"]] = {
    "acs": "acs",
    "acs translation blocking": "acs",
    "malformed": "malformed",
}

Ranges = list[tuple[int, int]]
Steps = list[dict[str, Any]]


class Keep(NamedTuple):
    """Somebody who says how what is attacked stands: `digest` is the command that tells, `restore` one that mends."""

    actor: str
    digest: str = "digest"
    restore: str = "restore"
    arguments: Mapping[str, Any] = MappingProxyType({})
    """Of `digest`."""


@dataclass(frozen=True, kw_only=True)
class Mission:
    """One attack on one target, ready to be played.

    `steps` is the rogue's plan (`devices.rogue_plan`). `aims` are the addresses that it has to try, None for whatever
    it sends, of which `least` must arrive. `guarded` are the host-physical pages that must stay out of its reach;
    `before` is what the keepers said of their state. `source` is the requester that a record must name, where the
    rogue does not use its own. `meanwhile` is done while the rogue plays; `record` tells what blocked it, in place of a
    fault and the port's log of it.
    """

    steps: Steps
    aims: list[Aim] | None
    keeps: tuple[Keep, ...]
    before: str
    guarded: list[int] = field(default_factory=list)
    least: int = 0
    source: str = ""
    meanwhile: Callable[[], None] | None = None
    record: Callable[[], Fault | None] | None = None

    @property
    def aimed(self) -> int:
        """How many addresses, or accesses, have to be seen."""
        return self.least if self.aims is None else sum(aim.size for aim in self.aims)

    @property
    def accesses(self) -> int:
        """How many requests the steps make at least."""
        return sum(
            (step["last"] - step["first"]) // step["stride"] + 1 if step["do"] == "scan" else step.get("times", 1)
            for step in self.steps
        )


class Attacker(Protocol):
    """What attacks: a device, or the back end of an emulated one (`back_end_stage.BackEnd`); see `ResolvedDevice`."""

    @property
    def name(self) -> str: ...
    @property
    def bdf(self) -> str: ...
    @property
    def requester(self) -> str: ...
    @property
    def link(self) -> str: ...
    @property
    def behind(self) -> str | None: ...
    @property
    def vm(self) -> str | None: ...
    @property
    def app(self) -> str | None: ...
    @property
    def rogue(self) -> tuple[str, ...]: ...


class Stage:
    """The surroundings of one device's attacks under one setting."""

    #: Whose fault records tell what an IOMMU blocked.
    unit = "host iommu"

    def __init__(
        self,
        topology: ResolvedTopology,
        plan: Plan,
        supervisor: Supervisor,
        device: Attacker,
        owner: Owner,
    ) -> None:
        self.topology = topology
        self.supervisor = supervisor
        self.command = supervisor.command
        self.device = device
        self.owner = owner
        self._memory = plan.memory
        self._undo: list[Callable[[], Any]] = []

    # --- commands

    def driver(self, name: str, **arguments: Any) -> Any:
        """A command about the device to whoever drives it: the kernel, or the application that has it."""
        return self.command(self.owner.driver, name, bdf=self.owner.bdf, **arguments)

    def own(self, name: str, **arguments: Any) -> Any:
        """A command about the device to the kernel that drives it, or that its application runs on."""
        return self.command(self.owner.kernel, name, bdf=self.owner.bdf, **arguments)

    def rogue(self, steps: Steps) -> Any:
        """Has the rogue do something that is not judged; what it says of it decides nothing."""
        actor, named = self.attacker()
        return self.command(actor, "attack", steps=steps, **named)

    def ask_rogue(self, steps: Steps) -> Asked:
        """The same, to be answered later (`Supervisor.answer`)."""
        actor, named = self.attacker()
        return self.supervisor.ask(actor, "attack", steps=steps, **named)

    def attacker(self, attack: Attack | None = None) -> tuple[str, dict[str, Any]]:
        """Who plays attacks, or this one, and what tells it that this device is meant."""
        app = self.owner.app
        if attack is not None and attack.by == "application" and app is not None:
            return app, {"bdf": self.owner.bdf}
        return self.device.name, {}

    # --- what everybody but the rogue sees

    @property
    def driven_by(self) -> Driver:
        """As verdicts name it."""
        port = self.topology.port(self.device.name)
        return port.driver if port is not None else "host" if self.device.vm is None else "guest"

    def setting_for(self, attack: Attack) -> Setting:
        """The setting that decides about an attack."""
        return self.topology.setting_for(attack.axis, self.device.name)

    @property
    def early_targets(self) -> tuple[Target, ...]:
        """What there is to attack before a kernel has booted."""
        own = () if self.device.vm is None else (Target.GUEST_MEMORY,)
        return (*own, Target.HOST_MEMORY)

    def ready(self) -> None:
        """Before an attack: the device does what its driver lets it."""

    def faults(self) -> dict[str, Any]:
        """Fault records of `unit` since the last call, as its kernel read them, and how many were lost."""
        told: dict[str, Any] = self.command("host", "faults")
        return told

    def accesses(self, mission: Mission) -> int:
        """How many are to be seen at least before the attack is over."""
        return mission.accesses

    def watch(self, mission: Mission) -> None:
        """From here on each access of the rogue is seen."""
        self.command("host", "watch", link=self.device.link, aims=mission.aims, guarded=mission.guarded)

    def evidence(self) -> dict[str, Any]:
        """What was seen of it by now."""
        seen: dict[str, Any] = self.command("host", "evidence", link=self.device.link)
        return seen

    def unwatch(self) -> None:
        """Nobody looks any more."""
        self.command("host", "unwatch", link=self.device.link)

    # --- what is harmed, and taken back

    def undone_by(self, undo: Callable[[], Any]) -> None:
        """To be said before something is harmed, so that a play may be broken off anywhere.

        `undo` takes that back, or what of it came to be; it may be called twice.
        """
        self._undo.append(undo)

    def undo(self) -> None:
        """Takes back what was harmed, the last first; whatever cannot be taken back, the others are.

        Raises the first CommandFailed or ActorGone at the end.
        """
        failed: list[Exception] = []
        while self._undo:
            try:
                self._undo[-1]()
            except (CommandFailed, ActorGone) as error:
                failed.append(error)
            self._undo.pop()
        if failed:
            raise failed[0]

    def offer(self, kind: str, owner: Owner | None = None, avoid: Ranges | None = None) -> dict[str, Any]:
        """A buffer of some kind (`attacks.offers`) for the rogue, or for the device of that owner."""
        owner = owner or self.owner
        self.undone_by(lambda: self.command(owner.kernel, "end_offer"))
        offer: dict[str, Any] = self.command(owner.kernel, "offer", bdf=owner.bdf, kind=kind, avoid=avoid or [])
        return offer

    # --- who it is

    @property
    def bridged(self) -> bool:
        """Whether it stands behind a bridge, which puts its own requester ID in."""
        behind = self.device.behind
        return behind is not None and self.topology.component(behind).kind == "bridge"

    @property
    def source(self) -> str:
        """The requester that the device is known by."""
        return self.device.requester if self.bridged else self.device.bdf

    @property
    def port(self) -> str:
        """What the device's link ends at."""
        behind = self.device.behind
        return "root port" if behind is None else f"{self.topology.component(behind).kind} {behind}"

    # --- proofs

    def control_passes(self, offered: dict[str, Any], actor: str, **named: Any) -> bool:
        """The positive control: whether a legal DMA to the page that the driver `offered` passes.

        `actor` plays it, the rogue or its application, which is told the device by `named`. The page is taken back.
        """
        step = {"do": "control", "iova": offered["iova"], "data": offered["data"]}
        self.command(actor, "attack", steps=[step], **named)
        deadline = time.monotonic() + SETTLE
        while not (arrived := self.driver("check_control")) and time.monotonic() < deadline:
            self.supervisor.poll(0.01)
        self.driver("end_control")
        return bool(arrived)

    def port_fault(self, refusal: dict[str, Any], outcomes: dict[str, int]) -> Fault:
        """What the port that the link ends at logged of its first refusal; `outcomes` counts those like it."""
        outcome = refusal["outcome"]
        return Fault(
            kind=_PORT_FAULTS.get(outcome, "rejected"),
            unit=self.port,
            source=refusal["source"],
            address=f"{refusal['address']:#x}",
            write=refusal["write"],
            text=outcome,
            count=outcomes[outcome],
        )

    # --- others

    def other_guests(self) -> tuple[str, ...]:
        """Guests that neither have the device nor run in the one that has it, of whose memory theirs is a part."""
        own = self.device.vm
        inside = () if own is None else (own, *(vm.name for vm in self.topology.within(own)))
        return tuple(guest_of(vm.name) for vm in self.topology.vms if vm.name not in inside)

    def others(self) -> Iterator[tuple[Attacker, Owner]]:
        """The other devices that a driver works with, and who drives them; those of the same kernel first."""
        others = [
            device
            for device in self.topology.devices
            if device.name != self.device.name and device.operations and device.app is None
        ]
        for device in sorted(others, key=lambda each: each.vm != self.device.vm):
            yield device, owner_of(self.topology, device)

    def neighbour(self) -> tuple[Attacker, Owner] | None:
        """Another device that the same kernel drives."""
        return next((each for each in self.others() if each[0].vm == self.device.vm), None)

    def stranger(self) -> tuple[Attacker, Owner] | None:
        """Another device, in a domain that has nothing to do with the rogue's; of another kernel where there is one."""
        return next(iter(sorted(self.others(), key=lambda each: each[0].vm == self.device.vm)), None)

    # --- memory

    def keepers(self, target: Target) -> tuple[str, ...]:
        """The kernels that own what a target names."""
        if target is Target.HOST_MEMORY:
            return ("host",)
        if target is Target.OTHER_GUEST:
            return self.other_guests()
        return (self.owner.kernel,)

    def withholder(self, target: Target) -> str:
        """Whose tables do not lead a device of a nested VM to a target's memory; nothing for other devices and targets.

        A map goes down through every kernel between: the last that both have in common did not make it.
        """
        if not self.owner.levels:
            return ""
        if target in (Target.GUEST_MEMORY, Target.BUFFER, Target.PAGE_TABLES):
            return self.owner.kernel if self.topology.setting(self.device.name) == "strict" else ""
        if target not in (Target.HOST_MEMORY, Target.OTHER_GUEST):
            return ""
        kernels = ("host", *(guest_of(vm) for vm in self.owner.levels))
        found = []
        for keeper in self.keepers(target):
            above: tuple[str, ...] = ("host",)
            if keeper != "host":
                above += tuple(guest_of(vm.name) for vm in self.topology.line(keeper.removesuffix(".guest")))
            found.append([each for each in kernels if each in above][-1])
        return ", ".join(dict.fromkeys(found))

    def mapped(self) -> Ranges:
        """(IOVA, size) of what the device may reach lawfully by page tables: no address to probe foreign memory by."""
        port = self.topology.port(self.device.name)
        by_vfio = port is not None and port.driver == "vfio"
        if not by_vfio and self.topology.setting(self.device.name) != "strict":
            return []
        return [(iova, size) for iova, size in self.own("mapped")]

    def memory_of(self, keeper: str) -> Ranges:
        """(base, size) of the keeper's memory by the addresses that the rogue would use."""
        if keeper == "host":
            return [(HOST_HIGH_BASE, self.topology.host.memory - HOST_LOW_MEMORY)]
        own = keeper == self.owner.kernel
        return [(gpa if own else hpa, size) for gpa, hpa, size in self._slots(keeper)]

    def physical_of(self, keeper: str) -> Ranges:
        """(base, size) of the keeper's memory by host-physical address."""
        if keeper == "host":
            return [(HOST_HIGH_BASE, self.topology.host.memory - HOST_LOW_MEMORY)]
        return [(hpa, size) for _, hpa, size in self._slots(keeper)]

    def _slots(self, keeper: str) -> list[tuple[int, int, int]]:
        """A guest's slots; of another guest, those that are not lent to the VM which has the device."""
        slots = self._memory[keeper.removesuffix(".guest")]
        if self.device.vm is None or keeper == self.owner.kernel:
            return slots
        own = {hpa for _, hpa, _ in self._memory[self.device.vm]}
        return [slot for slot in slots if slot[1] not in own]

    def physical(self, keeper: str, page: int) -> int:
        """Host-physical address of a page that the keeper's kernel knows by its own."""
        if keeper == "host":
            return page
        for gpa, hpa, size in self._memory[keeper.removesuffix(".guest")]:
            if gpa <= page < gpa + size:
                return hpa + page - gpa
        raise CommandFailed(f"{keeper} has no memory at {page:#x}")

    def aimed_pages(self, told: dict[str, dict[str, Any]]) -> list[int]:
        """The keepers' pages by the addresses that the rogue would use."""
        addresses: list[int] = []
        for keeper, guarded in told.items():
            own = keeper == self.owner.kernel
            addresses += guarded["pages"] if own else [self.physical(keeper, page) for page in guarded["pages"]]
        return addresses

    def guarded_pages(self, told: dict[str, dict[str, Any]]) -> list[int]:
        """The same as `guarded` has them."""
        return sorted(page for keeper, guarded in told.items() for page in self.guarded(keeper, guarded["pages"]))

    def guarded(self, keeper: str, pages: Iterable[int]) -> list[int]:
        """Pages of a keeper as those who watch the rogue know them: by host-physical address."""
        return [self.physical(keeper, page) for page in pages]


def remapping_fault(record: dict[str, Any], count: int, unit: str = Stage.unit) -> Fault:
    """What a kernel told of a fault of its IOMMU, the host's where no other is named; it stands for `count` of them."""
    return Fault(
        kind="remapping",
        unit=unit,
        source=record["source"],
        address=record["place"],
        write=record["write"],
        reason=f"{record['reason']:#x}",
        text=record["text"],
        count=count,
    )


def digest_of(told: dict[str, dict[str, Any]]) -> str:
    """What several keepers said, as one."""
    return " ".join(guarded["digest"] for guarded in told.values())


def without(whole: tuple[int, int], holes: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The (base, size) pieces of `whole` that no hole touches; holes ascend."""
    base, end = whole[0], sum(whole)
    for hole, size in holes:
        if hole < end and hole + size > base:
            if hole > base:
                yield base, hole - base
            base = hole + size
    if base < end:
        yield base, end - base
