"""What a VM in a VM needs of the one that it runs in."""

from __future__ import annotations

from viommu_actors.kernel.cmdline import CommandLine
from viommu_actors.kernel.vfio.vfio import NO_GROUP
from viommu_actors.spec import platform
from viommu_actors.topology.app_refusals import room_for_hugepages
from viommu_actors.topology.errors import Refusal
from viommu_actors.topology.guess import did_you_mean
from viommu_actors.topology.model import Topology
from viommu_actors.topology.resolve import bytes_of, guest_bdfs, handed_on, lent
from viommu_actors.topology.settings import setting_of
from viommu_actors.topology.vm import Vm


def check_parents(topology: Topology) -> None:
    """Raises the first `Refusal` of who runs in whom; names have been checked."""
    above: list[str] = []
    for v, vm in enumerate(topology.vm):
        if vm.parent is not None and vm.parent not in above:
            names = ", ".join(above) or "none"
            remedy = did_you_mean(vm.parent, above) or f"name one that stands further up; there are {names}"
            raise Refusal(f"vm[{v}].parent", f'no VM "{vm.parent}" stands above "{vm.name}"', remedy)
        above.append(vm.name)


def check_nested(topology: Topology) -> None:
    """Raises the first `Refusal`; parents, assignments and applications have been checked."""
    vms = {vm.name: vm for vm in topology.vm}
    for v, vm in enumerate(topology.vm):
        if CommandLine(vm.cmdline).values("vfio-pci.ids"):
            raise Refusal(f"vm[{v}].cmdline", "vfio-pci.ids is filled in from the assignments", "leave it out")
        if vm.parent is not None:
            _memory(topology, v, vm, vms[vm.parent])
            _assignments(v, vm, vms[vm.parent])
        for a, app in enumerate(vm.app):
            for p, port in enumerate(app.port):
                if port.device in handed_on(topology, vm):
                    place = f"vm[{v}].app[{a}].port[{p}].device"
                    raise Refusal(place, f'"{vm.name}" gives "{port.device}" to a VM in it', "a device has one user")


def _memory(topology: Topology, v: int, vm: Vm, parent: Vm) -> None:
    key = f"vm[{v}].memory"
    if bytes_of(vm.memory) > platform.LOW_MEMORY_LIMIT:
        most = platform.LOW_MEMORY_LIMIT >> 30
        raise Refusal(key, f"{vm.memory} is too large for a VM in a VM", f"give it at most {most}G")
    room = room_for_hugepages(parent)
    if lent(topology, parent) > room:
        raise Refusal(
            key,
            f'"{parent.name}" with {parent.memory} has room for {room >> 20}M of others\' memory',
            f'ask for less, or give "{parent.name}" more memory',
        )


def _assignments(v: int, vm: Vm, parent: Vm) -> None:
    """What VFIO of the parent's kernel says to each assignment (`Vfio.group_of`, `Type1.attach`)."""
    options = CommandLine(parent.cmdline)
    viommu = parent.viommu
    translates = setting_of(parent.cmdline, viommu is not None) != "none"
    bypassing = [assign.device for assign in parent.assign if assign.bypass_iommu]
    addresses = guest_bdfs(parent)
    for a, assign in enumerate(vm.assign):
        key = f"vm[{v}].assign[{a}].device"
        if assign.device not in addresses:
            has = f"it has {', '.join(addresses)}" if addresses else "it has none"
            raise Refusal(
                key, f'"{parent.name}" has no device "{assign.device}" to give away', f"assign it to that first; {has}"
            )
        name = f"0000:{addresses[assign.device]}"
        if viommu is None or not translates or assign.device in bypassing:
            raise Refusal(
                key,
                f'VFIO in "{parent.name}" says: {name} {NO_GROUP}',
                f'give "{parent.name}" a vIOMMU and intel_iommu=on: without, nothing can be assigned on',
            )
        remaps = viommu.intremap and options.get("intremap") != "off"
        if not remaps and not options.enabled("vfio_iommu_type1.allow_unsafe_interrupts"):
            raise Refusal(
                key,
                f'VFIO in "{parent.name}" says: No interrupt remapping support',
                f'set intremap = true in the vIOMMU of "{parent.name}" without intremap=off, or accept forged'
                " interrupts: vfio_iommu_type1.allow_unsafe_interrupts=1",
            )
        if vm.viommu is not None and vm.viommu.aw_bits > viommu.aw_bits:
            raise Refusal(
                f"vm[{v}].viommu.aw_bits",
                f'the vIOMMU of "{parent.name}" has {viommu.aw_bits} bits, so an IOVA of {vm.viommu.aw_bits} bits'
                " cannot be shadowed",
                f"set aw_bits = {viommu.aw_bits}",
            )
