"""From a resolved topology to processes: each actor's configuration, and the descriptors it inherits."""

from __future__ import annotations

import os
import socket
from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from viommu_actors.spec import platform
from viommu_actors.spec.pci import parse_bdf
from viommu_actors.supervise.actor_plan import ActorPlan, actor_plan, listen, listening_again
from viommu_actors.supervise.placement import Seat, place
from viommu_actors.topology.resolved import ResolvedDevice, ResolvedTopology, ResolvedVm, ResolvedVswitch
from viommu_actors.topology.values import SandboxMode
from viommu_actors.wire.sockets import Listener
from viommu_actors.wire.tally import CABLE

_GIB = 1 << 30
#: The host's RAM: what its firmware needs below 1 MiB, and the rest far above every guest-physical
#: address, so that no address of a guest is one of foreign memory.
HOST_LOW_MEMORY = 2 << 20
HOST_HIGH_BASE = 64 * _GIB
#: Locally administered; a nic's own is this plus its address on the host.
_MAC_BASE = 0x02_00_00_00_00_00


@dataclass
class Plan:
    """All processes, in the order in which they become ready, and where each VM's memory lies."""

    actors: list[ActorPlan] = field(default_factory=list)
    #: VM name -> its slots (gpa, hpa, size)
    memory: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)
    #: nic -> its end of a cable, which is there for whoever is the nic next
    cables: dict[str, dict[str, Any]] = field(default_factory=dict)

    def close(self) -> None:
        """Closes this process's copies of every descriptor but those of cables."""
        cables = {cable["fd"] for cable in self.cables.values()}
        for fd in {fd for actor in self.actors for fd in actor.fds} - cables:
            os.close(fd)

    def pull(self, device: str) -> None:
        """Nobody will be this device any more: its cable's other end is to see that it hangs loose."""
        cable = self.cables.pop(device, None)
        if cable is not None:
            os.close(cable["fd"])

    def unserved(self, lost: Container[str]) -> set[str]:
        """Devices of virtual switches whose front or back end is lost."""
        return {
            device
            for actor in self.actors
            for hypervisor, device in actor.fronts
            if hypervisor in lost or actor.name in lost
        }

    def again(self, name: str) -> ActorPlan:
        """Another process for a device of the topology, or a virtual switch, with links of its own."""
        first = next(actor for actor in self.actors if actor.name == name)
        if first.fronts:
            return listening_again(first)
        inbox, link = Listener.create(), Listener.create()
        ends = {"inbox": inbox, "link": link}
        configuration = first.configuration | {
            key: {"fd": listener.fd, "address": listener.address} for key, listener in ends.items()
        }
        cable = [] if first.configuration["cable"] is None else [first.configuration["cable"]["fd"]]
        fds = [inbox.fd, link.fd, *cable]
        return ActorPlan("device", name, inbox, configuration, fds, trusted=False, fixed_layout=True)


def newcomer(device: ResolvedDevice, sandbox: SandboxMode) -> ActorPlan:
    """A process for a device that comes while the topology is up."""
    plan = _device(device, Listener.create(), None, sandbox)
    plan.configuration["cpus"] = None
    return plan


@dataclass(frozen=True)
class _Slot:
    name: str
    fd: int
    size: int
    gpa: int
    hpa: int

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "fd": self.fd, "size": self.size, "gpa": self.gpa, "hpa": self.hpa}


def guest_of(vm: str) -> str:
    """Name of a VM's guest process."""
    return f"{vm}.guest"


def hypervisor_of(vm: str) -> str:
    """Name of a VM's hypervisor process."""
    return f"{vm}.hypervisor"


def process_of(vm: str, app: str) -> str:
    """Name of the process of an application in a VM."""
    return f"{vm}.{app}"


def make_plan(topology: ResolvedTopology) -> Plan:
    """Makes every listener, memory slot and cable of the topology."""
    plan = Plan()
    links = {device.name: Listener.create() for device in topology.devices}
    cables = plan.cables = _cables(topology.devices)
    host = actor_plan("host", "host")
    slots = _place_memory(topology, plan)
    for device in topology.devices:
        plan.actors.append(_device(device, links[device.name], cables.get(device.name), topology.sandbox))
    vswitches = [_vswitch(topology, vswitch) for vswitch in topology.vswitches]
    plan.actors += vswitches
    apps = [app for vm in topology.vms for app in _apps(topology, vm, slots[vm.name], host.inbox)]
    backends = {port["name"]: port["address"] for vswitch in vswitches for port in vswitch.configuration["ports"]}
    vms = _vms(topology, slots, host, apps, backends)
    host.configuration |= {
        "low_memory": HOST_LOW_MEMORY,
        "high_base": HOST_HIGH_BASE,
        "high_memory": topology.host.memory - HOST_LOW_MEMORY,
        "cmdline": topology.host.cmdline,
        "iommu": msgspec.structs.asdict(topology.host.iommu),
        "ports": _ports(topology),
        "links": [
            {"name": device.link, "device": device.name, "address": links[device.name].address}
            for device in topology.devices
        ],
    }
    host.fds += [slot.fd for vm in topology.vms if vm.parent is None for slot in slots[vm.name]]
    plan.actors += [host, *(hypervisor for hypervisor, _ in vms), *(guest for _, guest in vms), *apps]
    available = sorted(os.sched_getaffinity(0))
    # Topologies that run at the same time start at different CPUs.
    first = os.getpid() % len(available)
    names = [actor.name for actor in plan.actors]
    seats = [
        Seat(actor.trusted, None if actor is host else names.index(_asked_by(actor) or host.name))
        for actor in plan.actors
    ]
    cpus = place(seats, topology.placement, available[first:] + available[:first])
    for actor, own in zip(plan.actors, cpus, strict=True):
        actor.configuration["cpus"] = own
    return plan


def _asked_by(actor: ActorPlan) -> str | None:
    """Whose answers an application, a guest or a hypervisor waits for; None for the others, who have a link."""
    configuration = actor.configuration
    asked = configuration.get("kernel") or configuration.get("hypervisor") or configuration.get("parent")
    return None if asked is None else str(asked["name"])


def _ports(topology: ResolvedTopology) -> list[dict[str, Any]]:
    """The root ports, and what stands in their slots in place of a device."""
    below = {
        component.slot: {
            "kind": component.kind,
            "name": component.name,
            "devices": len(component.devices),
            "acs": component.acs,
        }
        for component in topology.components
    }
    slots = sorted({*(device.slot for device in topology.devices), *(spare.slot for spare in topology.host.spare)})
    return [{"slot": slot, "acs": topology.host.acs, "below": below.get(slot)} for slot in slots]


def _device(
    device: ResolvedDevice, link: Listener, cable: dict[str, Any] | None, sandbox: SandboxMode
) -> ActorPlan:
    actor = actor_plan("device", device.name)
    actor.trusted, actor.fixed_layout = False, True
    actor.configuration |= {
        "link": {"fd": link.fd, "address": link.address},
        "model": device.model,
        "max_payload": device.max_payload,
        "ats": device.ats,
        "dma_mask_bits": device.dma_mask_bits,
        "mac": (_MAC_BASE + parse_bdf(device.bdf)).to_bytes(6, "big").hex(),
        "cable": cable,
        "sandbox": sandbox,
    }
    actor.fds += [link.fd] if cable is None else [link.fd, cable["fd"]]
    return actor


def _vswitch(topology: ResolvedTopology, vswitch: ResolvedVswitch) -> ActorPlan:
    """A virtual switch with a port for each of its cards."""
    actor = actor_plan("app", vswitch.name, "vswitch")
    ports = topology.ports_of(vswitch.name)
    actor.trusted, actor.on_death = False, vswitch.on_death
    actor.fronts = tuple((hypervisor_of(vm.name), card.name) for vm, card in ports)
    actor.configuration["sandbox"] = topology.sandbox
    listen(actor, [card.name for _, card in ports])
    return actor


def _apps(topology: ResolvedTopology, vm: ResolvedVm, slots: list[_Slot], host: Listener) -> list[ActorPlan]:
    """The applications of a VM, each with its own slot and no other; the guest's address comes later."""
    by_name = {slot.name: slot for slot in slots}
    actors = []
    for app in vm.apps:
        actor = actor_plan("app", process_of(vm.name, app.name))
        slot = by_name[_hugepages_of(app.name)]
        actor.configuration |= {
            "fabric": {"name": "host", "address": host.address},
            "hugepages": slot.as_dict(),
            "root": app.root,
        }
        actor.fds.append(slot.fd)
        actor.vms = _line(topology, vm)
        actors.append(actor)
    return actors


def _line(topology: ResolvedTopology, vm: ResolvedVm) -> tuple[str, ...]:
    return tuple(each.name for each in topology.line(vm.name))


def _vms(
    topology: ResolvedTopology,
    slots: dict[str, list[_Slot]],
    host: ActorPlan,
    apps: list[ActorPlan],
    backends: dict[str, str],
) -> list[tuple[ActorPlan, ActorPlan]]:
    """Hypervisor and guest of each VM; each kernel is told of those that run on it.

    `backends` are the addresses of the ports of virtual switches, by the card.
    """
    kernels: dict[str | None, ActorPlan] = {None: host}
    host.configuration["vms"] = []
    made = []
    for vm in topology.vms:
        own = [app for app in apps if app.vms[-1] == vm.name]
        hypervisor, guest = _vm(vm, slots[vm.name], host.inbox, kernels[vm.parent], own)
        hypervisor.configuration["vm"]["virtio"] = [
            {"name": card.name, "slot": card.slot, "mac": card.mac, "backend": backends[card.name]}
            for card in vm.virtio
        ]
        kernels[vm.name] = guest
        told = slots[vm.name]
        if vm.parent is not None:
            names = [slot.name for slot in told]
            told = [slot for slot in slots[vm.parent] if slot.name in names]
        row = {
            "name": vm.name,
            "hypervisor": hypervisor.name,
            "guest": guest.name,
            "guest_address": guest.inbox.address,
            "hypervisor_address": hypervisor.inbox.address,
            "ram": [slot.as_dict() for slot in told],
        }
        if vm.parent is None:
            within = [guest_of(each.name) for each in topology.within(vm.name)]
            row["deeper"] = within + [app.name for app in apps if vm.name in app.vms]
        kernels[vm.parent].configuration["vms"].append(row)
        for actor in (hypervisor, guest):
            actor.vms = _line(topology, vm)
        made.append((hypervisor, guest))
    return made


def _vm(
    vm: ResolvedVm, slots: list[_Slot], host: Listener, kernel: ActorPlan, apps: list[ActorPlan]
) -> tuple[ActorPlan, ActorPlan]:
    """`kernel` is the one that it runs on."""
    hypervisor, guest = actor_plan("hypervisor", hypervisor_of(vm.name)), actor_plan("guest", guest_of(vm.name))
    ram = [slot.as_dict() for slot in slots]
    viommu = vm.viommu
    hypervisor.configuration |= {
        "parent": {"name": kernel.name, "address": kernel.inbox.address},
        "guest": guest.name,
        # Those that come to it by themselves, for what it emulates.
        "apps": [app.name for app in apps] if vm.virtio else [],
        "ram": ram,
        "vm": {
            "name": vm.name,
            "cmdline": vm.cmdline,
            "irqfd": vm.irqfd,
            "viommu": viommu
            and {
                "aw_bits": viommu.aw_bits,
                "caching_mode": viommu.caching_mode,
                "pass_through": viommu.pt,
                "intremap": viommu.intremap,
                "eim": viommu.eim,
                "quirks": viommu.quirks,
            },
            "assign": [
                {
                    "host": f"0000:{assign.host_bdf}",
                    "slot": assign.slot,
                    "bypass_iommu": assign.bypass_iommu,
                    "edits": [
                        {"hide": edit.hide}
                        if edit.hide
                        else {"offset": edit.offset, "mask": edit.mask, "value": edit.value}
                        for edit in assign.edit
                    ],
                }
                for assign in vm.assign
            ],
        },
    }
    guest.configuration |= {
        "fabric": {"name": "host", "address": host.address},
        "hypervisor": {"name": hypervisor.name, "address": hypervisor.inbox.address},
        "ram": ram,
        "vms": [],
        "apps": [
            {
                "name": app.name,
                "address": app.inbox.address,
                "root": app.configuration["root"],
                "hugepages": app.configuration["hugepages"],
            }
            for app in apps
        ],
    }
    for app in apps:
        app.configuration["kernel"] = {"name": guest.name, "address": guest.inbox.address}
        app.configuration["hypervisor"] = guest.configuration["hypervisor"] if vm.virtio else None
    for actor in (hypervisor, guest):
        actor.fds += [slot.fd for slot in slots]
    return hypervisor, guest


def _place_memory(topology: ResolvedTopology, plan: Plan) -> dict[str, list[_Slot]]:
    """A memfd for each slot, at host-physical addresses aligned for the largest page."""
    hpa = HOST_HIGH_BASE + _gib_up(topology.host.memory)
    placed: dict[str, list[_Slot]] = {}
    for vm in topology.vms:
        slots = []
        there = {} if vm.parent is None else {slot.name: slot for slot in placed[vm.parent]}
        for name, gpa, size in _parts(topology, vm):
            if name in there:
                slots.append(replace(there[name], gpa=gpa))
            elif size:
                fd = os.memfd_create(f"{vm.name}-{name}")
                os.ftruncate(fd, size)
                slots.append(_Slot(name, fd, size, gpa, hpa))
                hpa += _gib_up(size)
        placed[vm.name] = slots
        plan.memory[vm.name] = [(slot.gpa, slot.hpa, slot.size) for slot in slots]
    return placed


def _parts(topology: ResolvedTopology, vm: ResolvedVm) -> list[tuple[str, int, int]]:
    """(name, gpa, size) of a VM's slots. At the top, where its kernel reserves hugepages, are those of each application
    and of each VM in it; a slot has one name at all levels."""
    # No name of a VM or an application has a colon, so that this is none of the other parts.
    own = "ram" if vm.parent is None else f"ram:{vm.name}"
    low = min(vm.memory, platform.LOW_MEMORY_LIMIT)
    parts = [part for part in [(own, 0, low), ("ram-high", platform.HIGH_MEMORY, vm.memory - low)] if part[2]]
    name, gpa, size = parts.pop()
    end = gpa + size
    top = []
    for app in vm.apps:
        end -= app.hugepages
        top.append((_hugepages_of(app.name), end, app.hugepages))
    for nested in topology.vms:
        if nested.parent == vm.name:
            end -= nested.memory
            top += [(part, end + at, length) for part, at, length in _parts(topology, nested)]
    return [*parts, (name, gpa, end - gpa), *top]


def _hugepages_of(app: str) -> str:
    """Name of the slot of an application."""
    return f"hugepages-{app}"


def _cables(devices: tuple[ResolvedDevice, ...]) -> dict[str, dict[str, Any]]:
    """One end of a socket pair for each nic that has a peer."""
    ends: dict[str, dict[str, Any]] = {}
    for device in devices:
        if device.peer is not None and device.name not in ends:
            wire = f"cable:{device.name}{CABLE}{device.peer}"
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for name, end in zip((device.name, device.peer), pair, strict=True):
                ends[name] = {"fd": end.detach(), "wire": wire}
    return ends


def _gib_up(size: int) -> int:
    return (size + _GIB - 1) // _GIB * _GIB
