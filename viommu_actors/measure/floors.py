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
    guest.configuration["ask"] = hypervisor.inbox.address
    free_guest.configuration["ask"] = free_hypervisor.inbox.address
    hypervisor.configuration["ask"] = host.inbox.address
    for actor, end in zip((guest, hypervisor), socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM), strict=True):
        actor.configuration["unix"] = end.detach()
        actor.fds.append(actor.configuration["unix"])
    device = _floor(DEVICE, cpus[DEVICE])
    host.configuration["links"] = [_link(device)]
    crowd = [_floor(name, own) for name, own in zip(many(len(devices)), devices, strict=True)]
    centre = _floor(ROOT, root)
    centre.configuration["links"] = [_link(each) for each in crowd]
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
    return ActorPlan(cast(Role, "floor"), name, inbox, configuration, [inbox.fd])


def _link(device: ActorPlan) -> str:
    """Gives a device its end of a link; the address for the other end."""
    link = Listener.create()
    device.configuration["link"] = {"fd": link.fd, "address": link.address}
    device.fds.append(link.fd)
    return link.address
