"""What a topology's switches and bridges must be together with what is behind them, and who may be given that."""

from __future__ import annotations

from collections.abc import Iterator

from viommu_actors.topology.errors import Refusal
from viommu_actors.topology.guess import did_you_mean
from viommu_actors.topology.model import Bridge, Device, Switch, Topology
from viommu_actors.topology.resolve import devices_behind
from viommu_actors.topology.values import MAX_BEHIND
from viommu_actors.topology.vm import Vm


def check_components(topology: Topology) -> None:
    """Raises the first `Refusal` of what stands where in the host."""
    _behind(topology)
    _slots(topology)


def check_groups(topology: Topology) -> None:
    """Devices that the host cannot keep apart go to one user, and into one address space.

    The first as VFIO has it (drivers/vfio/group.c), the second as QEMU does (hw/vfio/common.c, vfio_get_group). Raises
    the first `Refusal`; assignments have been checked.
    """
    # In a guest each device stands alone.
    owner = {assign.device: vm for vm in topology.vm if vm.parent is None for assign in vm.assign}
    for v, vm in enumerate(topology.vm):
        for a, assign in enumerate(vm.assign if vm.parent is None else ()):
            for name, members, why in _groups(topology):
                if assign.device in members:
                    _check_group(f"vm[{v}].assign[{a}].device", assign.device, vm, owner, name, members, why)


def _behind(topology: Topology) -> None:
    components = [each.name for _, each in _components(topology)]
    for index, device in enumerate(topology.device):
        if device.behind is None:
            continue
        key = f"device[{index}].behind"
        if device.behind in [each.name for each in topology.device]:
            raise Refusal(key, f'"{device.behind}" is a device', "name a [[switch]] or a [[bridge]]")
        if device.behind not in components:
            remedy = did_you_mean(device.behind, components) or "add a [[switch]] or a [[bridge]] of that name"
            raise Refusal(key, f'there is no switch or bridge "{device.behind}"', remedy)
        if device.slot is not None:
            raise Refusal(
                f"device[{index}].slot",
                f'"{device.name}" is behind "{device.behind}", which has the root port',
                "leave slot out, or behind",
            )
        if device.ats and device.behind in [bridge.name for bridge in topology.bridge]:
            raise Refusal(
                f"device[{index}].ats",
                f'"{device.name}" is behind "{device.behind}", and conventional PCI has no address types',
                "leave ats out, or put it behind a switch",
            )
        if device.name in devices_behind(topology, device.behind)[MAX_BEHIND:]:
            raise Refusal(
                key,
                f'"{device.behind}" has {MAX_BEHIND} devices behind it already',
                "put it behind another, or at a root port of its own",
            )
    for place, component in _components(topology):
        if not devices_behind(topology, component.name):
            remedy = f'give a device behind = "{component.name}", or take it out'
            raise Refusal(place, f'nothing is behind "{component.name}"', remedy)


def _slots(topology: Topology) -> None:
    """What stands at a root port has it alone."""
    owner: dict[int, str] = {}
    devices: list[tuple[str, Device | Switch | Bridge]] = [
        (f"device[{index}]", device) for index, device in enumerate(topology.device)
    ]
    for place, each in [*devices, *_components(topology)]:
        if each.slot is None:
            continue
        if each.slot in owner:
            raise Refusal(
                f"{place}.slot",
                f'slot {each.slot} is taken by "{owner[each.slot]}"',
                "give each device a root port of its own, or leave slot out",
            )
        owner[each.slot] = each.name


def _components(topology: Topology) -> Iterator[tuple[str, Switch | Bridge]]:
    for index, switch in enumerate(topology.switch):
        yield f"switch[{index}]", switch
    for index, bridge in enumerate(topology.bridge):
        yield f"bridge[{index}]", bridge


def _groups(topology: Topology) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """(component, devices, why) of each IOMMU group of the host that more than one device may be in."""
    for bridge in topology.bridge:
        yield bridge.name, devices_behind(topology, bridge.name), "they share the requester ID of their bridge"
    for switch in topology.switch:
        if not (switch.acs and topology.host.acs):
            where = "the switch" if topology.host.acs else "the root port"
            yield switch.name, devices_behind(topology, switch.name), f"no ACS of {where} keeps them apart"


def _check_group(
    key: str, device: str, vm: Vm, owner: dict[str, Vm], component: str, members: tuple[str, ...], why: str
) -> None:
    others = [each for each in members if each != device]
    foreign = next((each for each in others if owner.get(each) is not vm), None)
    if foreign is not None:
        keeper = f'"{owner[foreign].name}"' if foreign in owner else "the host"
        raise Refusal(
            key,
            f'"{device}" is in one IOMMU group with "{foreign}", which {keeper} has: {why}',
            f'assign all that is behind "{component}" to "{vm.name}"',
        )
    if others and vm.viommu is not None:
        raise Refusal(
            key,
            f'"{device}" is in one IOMMU group with "{others[0]}", and behind a vIOMMU each has an address space of its'
            f" own: {why}",
            f'take viommu out of "{vm.name}", or give each device a root port of its own',
        )
