"""One process to be, before it is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from viommu_actors.report.results import Role
from viommu_actors.wire.sockets import Listener

OnDeath = Literal["end", "contain", "restart"]


@dataclass
class ActorPlan:
    """One process to be: `configuration` is what it reads, `fds` what it inherits."""

    role: Role
    name: str
    inbox: Listener
    configuration: dict[str, Any]
    fds: list[int]
    #: the VM whose hypervisor, guest or application it is, last, after those that it runs in; empty for others
    vms: tuple[str, ...] = ()
    #: False for the untrusted party, a device or a virtual switch: it is confined, and so is what it can say
    trusted: bool = True
    #: whether it is placed in its address space where all so placed are (`supervise.layout`)
    fixed_layout: bool = False
    #: what its death means; None where that is for the whole run to say
    on_death: OnDeath | None = None
    #: of a virtual switch, for each of its ports: the hypervisor that is its front end, and the device
    fronts: tuple[tuple[str, str], ...] = field(default=())


def actor_plan(role: Role, name: str, program: str = "") -> ActorPlan:
    """With an inbox; `program` is what the process runs, where that is not what all of its role do."""
    inbox = Listener.create()
    configuration = {"role": program or role, "name": name, "inbox": {"fd": inbox.fd, "address": inbox.address}}
    return ActorPlan(role, name, inbox, configuration, [inbox.fd])


def listen(plan: ActorPlan, ports: Sequence[str]) -> None:
    """Gives a virtual switch a listener for each of its ports."""
    listeners = {name: Listener.create() for name in ports}
    plan.configuration["ports"] = [
        {"name": name, "fd": listener.fd, "address": listener.address} for name, listener in listeners.items()
    ]
    plan.fds += [listener.fd for listener in listeners.values()]


def listening_again(first: ActorPlan) -> ActorPlan:
    """Another process for a virtual switch, with listeners of its own."""
    plan = actor_plan(first.role, first.name)
    plan.configuration = first.configuration | {"inbox": plan.configuration["inbox"]}
    plan.trusted, plan.on_death, plan.fronts = first.trusted, first.on_death, first.fronts
    listen(plan, [device for _, device in first.fronts])
    return plan
