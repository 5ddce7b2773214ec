"""The surroundings of attacks by the back end of an emulated card: a virtual switch that has turned hostile.

Its wire ends at the hypervisor, which makes each access for it: what it did is seen there, in addresses of the guest.
What the guest's own vIOMMU blocked is told by the guest's kernel.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from viommu_actors.attacks.catalogue import Attack, Setting, Target
from viommu_actors.attacks.expected import BACK_ENDS, Driver
from viommu_actors.supervise.owner import Owner, owner_of_card
from viommu_actors.supervise.plan import Plan
from viommu_actors.supervise.stage import Attacker, Mission, Stage
from viommu_actors.supervise.supervisor import CommandFailed, Supervisor
from viommu_actors.topology.resolved import ResolvedTopology, ResolvedVirtioNet, ResolvedVm

#: Seconds in which a port's wire is back.
_BACK = 5.0


@dataclass(frozen=True)
class BackEnd:
    """The back end of a card, as an `Attacker`; `bdf` is the card's in its guest."""

    name: str
    vm: str
    bdf: str
    app: str | None
    rogue: tuple[str, ...]
    behind: None = None

    @property
    def requester(self) -> str:
        return self.bdf

    @property
    def link(self) -> str:
        """The wire has the card's name."""
        return self.name


def back_end_of(vm: ResolvedVm, card: ResolvedVirtioNet) -> BackEnd:
    """The one of a VM's card."""
    return BackEnd(card.name, vm.name, card.bdf, card.app, card.rogue)


class BackEndStage(Stage):
    """As of a device. Addresses are the guest's, and those who watch know no others."""

    def __init__(
        self, topology: ResolvedTopology, plan: Plan, supervisor: Supervisor, vm: ResolvedVm, card: ResolvedVirtioNet
    ) -> None:
        super().__init__(topology, plan, supervisor, back_end_of(vm, card), owner_of_card(vm, card))
        self.unit = f"{vm.name} viommu"
        self.vswitch = card.vswitch
        assert self.owner.hypervisor is not None
        self.hypervisor = self.owner.hypervisor

    @property
    def port(self) -> str:
        return self.hypervisor

    def attacker(self, attack: Attack | None = None) -> tuple[str, dict[str, Any]]:
        return self.vswitch, {"port": self.device.name}

    @property
    def driven_by(self) -> Driver:
        port = self.topology.port(self.device.name)
        return BACK_ENDS["guest" if port is None else port.driver]

    def setting_for(self, attack: Attack) -> Setting:
        return self.topology.setting(self.device.name)

    @property
    def early_targets(self) -> tuple[Target, ...]:
        return (Target.GUEST_MEMORY,)

    def ready(self) -> None:
        """The driver has the device running: the back end of another is served nothing, which would prove little."""
        self.driver("listen")

    def faults(self) -> dict[str, Any]:
        told: dict[str, Any] = self.command(self.owner.kernel, "faults")
        return told

    def accesses(self, mission: Mission) -> int:
        """Each is made once more after a miss: a read as often as it is asked for, a write once."""
        steps = mission.steps
        again = sum(step["do"] in ("read", "write") for step in steps)
        for step in steps:
            if step["do"] == "scan":
                again += (step["last"] - step["first"]) // step["stride"] + 1
        return mission.accesses + again

    def watch(self, mission: Mission) -> None:
        named = {"device": self.device.name, "aims": mission.aims, "guarded": mission.guarded}
        self.command(self.hypervisor, "watch", **named)

    def evidence(self) -> dict[str, Any]:
        seen: dict[str, Any] = self.command(self.hypervisor, "evidence", device=self.device.name)
        return seen

    def unwatch(self) -> None:
        self.command(self.hypervisor, "unwatch", device=self.device.name)

    def guarded(self, keeper: str, pages: Iterable[int]) -> list[int]:
        """Those of its own guest; of others the hypervisor knows no page, and their owners' canaries tell."""
        return list(pages) if keeper == self.owner.kernel else []

    def others(self) -> Iterator[tuple[Attacker, Owner]]:
        """The other cards of the same switch that a kernel drives, and devices; those of the same kernel first."""
        cards = [
            (back_end_of(vm, card), owner_of_card(vm, card))
            for vm in self.topology.vms
            for card in vm.virtio
            if card.name != self.device.name and card.app is None
        ]
        found: list[tuple[Attacker, Owner]] = [*cards, *super().others()]
        yield from sorted(found, key=lambda each: each[0].vm != self.device.vm)

    def counters(self) -> dict[str, int]:
        """The hypervisor's."""
        told: dict[str, int] = self.command(self.hypervisor, "counters")
        return told

    def rejected(self) -> int:
        """How much came by its wire that is no message."""
        wire = f"vhost:{self.device.name}"
        [tally] = [each for each in self.command(self.hypervisor, "counts") if each["wire"] == wire]
        return sum(n for kind, n in tally["received"].items() if kind.startswith("malformed: "))

    def reconnect(self) -> None:
        """A back end that was cut off has its wire again, at once. One that was not keeps it. Raises CommandFailed."""
        name = self.device.name
        if self.command(self.hypervisor, "links")[name]:
            return
        ports = self.supervisor.actors[self.vswitch].plan.configuration["ports"]
        [address] = [port["address"] for port in ports if port["name"] == name]
        self.command(self.hypervisor, "connect_backend", device=name, address=address)
        deadline = time.monotonic() + _BACK
        while not self.command(self.hypervisor, "links")[name]:
            if time.monotonic() > deadline:
                raise CommandFailed(f"{self.vswitch} does not come back to {name}")
            self.supervisor.poll(0.01)
