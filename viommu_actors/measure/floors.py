"""The processes of the floor (`actors.floor`): who they are, where they stand, who is connected with whom."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, Final, cast

from viommu_actors.report.results import Role
from viommu_actors.supervise.actor_plan import ActorPlan
from viommu_actors.supervise.plan import Plan
from viommu_actors.wire.sockets import Listener

GUEST: Final = "floor.guest"
HYPERVISOR: Final = "floor.hypervisor"
HOST: Final = "floor.host"
DEVICE: Final = "floor.device"
ROOT: Final = "floor.root"
#: A trap, a trap that goes on to the host, and a link.
PAIR: Final = (GUEST, HYPERVISOR)
CHAIN: Final = (GUEST, HYPERVISOR, HOST)
LINK: Final = (DEVICE, HOST)
#: The same as PAIR, wherever the scheduler puts them.
FREE: Final = ("free.guest", "free.hypervisor")

Cpus = list[int] | None


def many(count: int) -> list[str]:
    """The devices of the root that has `count` links."""
    return [f"floor.device{number}" for number in range(count)]


def make_floors(cpus: Mapping[str, Cpus], root: Cpus, devices: list[Cpus]) -> Plan:
    """`cpus` of the single processes by their name; `root` has the links of `devices`."""
    guest, hypervisor, host = (_floor(name, cpus[name]) for name in CHAIN)
    free_guest, free_hypervisor = (_floor(name, None) for name in FREE)
    guest.configuration["ask"] = _listener(hypervisor, "serve")
    free_guest.configuration["ask"] = _listener(free_hypervisor, "serve")
    hypervisor.configuration["ask"] = _listener(host, "serve")
    for actor, end in zip((guest, hypervisor), socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM), strict=True):
        actor.configuration["unix"] = end.detach()
        actor.fds.append(actor.configuration["unix"])
    device = _floor(DEVICE, cpus[DEVICE])
    host.configuration["links"] = [_listener(device, "link")]
    crowd = [_floor(name, own) for name, own in zip(many(len(devices)), devices, strict=True)]
    centre = _floor(ROOT, root)
    centre.configuration["links"] = [_listener(each, "link") for each in crowd]
    return Plan(actors=[guest, hypervisor, host, free_guest, free_hypervisor, device, centre, *crowd])


def _floor(name: str, cpus: Cpus) -> ActorPlan:
    inbox = Listener.create()
    part = name.partition(".")[2].rstrip("0123456789")
    configuration: dict[str, Any] = {
        "role": "floor",
        "name": name,
        "part": part,
        "inbox": {"fd": inbox.fd, "address": inbox.address},
        "cpus": cpus,
    }
    # It is in no topology, and so in nobody's results.
    return ActorPlan(
        cast(Role, "floor"), name, inbox, configuration, [inbox.fd], fixed_layout=part == "device"
    )


def _listener(actor: ActorPlan, key: str) -> str:
    """Gives an actor a listener by a key of its configuration; the address for the other end."""
    made = Listener.create()
    actor.configuration[key] = {"fd": made.fd, "address": made.address}
    actor.fds.append(made.fd)
    return made.address
