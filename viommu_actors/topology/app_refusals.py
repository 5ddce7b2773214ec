"""What the applications of a guest must be together with its memory and devices, and what gives a device away."""

from __future__ import annotations

from typing import Final

from viommu_actors.app.application import hugepages_for
from viommu_actors.kernel.cmdline import CommandLine
from viommu_actors.kernel.pages import HUGEPAGE
from viommu_actors.spec import platform
from viommu_actors.topology.errors import Refusal
from viommu_actors.topology.model import Topology
from viommu_actors.topology.resolve import bytes_of
from viommu_actors.topology.vm import App, AppPort, Vm

#: What is left to a guest's kernel beside the hugepages, at least.
_LEAST: Final = 8 << 20
#: Why the host cannot assign a device so (Linux: drivers/vfio/vfio_main.c, drivers/uio/uio_pci_generic.c).
_CANNOT_ASSIGN: Final = {
    "noiommu": (
        "VFIO no-iommu cannot assign a device to a VM: it maps nothing, so that the device would take the guest's"
        " addresses for the host's, and reach all of the host"
    ),
    "uio": (
        "UIO cannot assign a device to a VM: it has no map for DMA, so that the device would take the guest's addresses"
        " for the host's, and no MSI that could be the guest's"
    ),
}


def check_assign_drivers(topology: Topology) -> None:
    """Only VFIO assigns a device to a guest. Raises the first `Refusal`."""
    for v, vm in enumerate(topology.vm):
        for a, assign in enumerate(vm.assign):
            key = f"vm[{v}].assign[{a}]"
            if assign.driver != "vfio":
                raise Refusal(f"{key}.driver", _CANNOT_ASSIGN[assign.driver], 'leave driver out, or set it to "vfio"')
            if assign.bypass_iommu and vm.viommu is None:
                raise Refusal(
                    f"{key}.bypass_iommu", f'"{vm.name}" has no vIOMMU to bypass', "add a [vm.viommu], or leave it out"
                )


def check_apps(topology: Topology) -> None:
    """Raises the first `Refusal`; names, devices and assignments have been checked."""
    for v, vm in enumerate(topology.vm):
        taken: dict[str, str] = {}
        for a, app in enumerate(vm.app):
            _ports(f"vm[{v}].app[{a}]", topology, vm, app, taken)
        _hugepages(v, vm)


def room_for_hugepages(vm: Vm) -> int:
    """How much of a VM's memory its kernel can leave to others, in bytes."""
    memory = bytes_of(vm.memory)
    high = max(0, memory - platform.LOW_MEMORY_LIMIT)
    return (high or memory - _LEAST) // HUGEPAGE * HUGEPAGE


def _ports(key: str, topology: Topology, vm: Vm, app: App, taken: dict[str, str]) -> None:
    devices = {device.name: device for device in topology.device}
    emulated = [card.name for card in vm.virtio_net]
    assigned = [*(assign.device for assign in vm.assign), *emulated]
    #: devices whose frames come from somebody else
    outward = {*emulated, *(device.name for device in topology.device if device.peer is not None)}
    outward &= {port.device for port in app.port}
    for p, port in enumerate(app.port):
        place = f"{key}.port[{p}].device"
        if port.device not in assigned:
            has = f"it has {', '.join(assigned)}" if assigned else "it has none"
            raise Refusal(place, f'"{vm.name}" has no device "{port.device}"', f"assign it to the VM; {has}")
        if port.device in taken:
            has_it = taken[port.device]
            raise Refusal(place, f'"{port.device}" is a port of "{has_it}" already', "name each device once")
        taken[port.device] = app.name
        if port.device in emulated:
            if port.rx == "interrupt":
                words = f'an application polls a virtio-net such as "{port.device}"'
                raise Refusal(f"{key}.port[{p}].rx", words, 'leave it at "poll"')
            continue
        device = devices[port.device]
        if device.model != "nic":
            raise Refusal(place, f'"{port.device}" is an {device.model}, and an application drives nics', "name a nic")
        if device.peer is not None:
            _cable(place, topology, port, device.peer, forwards=len(outward) > 1)


def _cable(place: str, topology: Topology, port: AppPort, peer: str, forwards: bool) -> None:
    """An application takes from a cable what it sleeps for, or forwards, and a kernel sends it."""
    if port.rx != "interrupt" and not forwards:
        raise Refusal(
            place,
            f'"{port.device}" has a cable, and what an application that polls sends it receives itself',
            'leave peer out, for loopback, or set rx = "interrupt", or give the application a virtio-net to forward to',
        )
    if any(peer == each.device for vm in topology.vm for app in vm.app for each in app.port):
        raise Refusal(
            place,
            f'"{port.device}" has a cable to "{peer}", which an application has too',
            "let a kernel drive one of the two, or leave peer out",
        )


def _hugepages(index: int, vm: Vm) -> None:
    if CommandLine(vm.cmdline).get("hugepages"):
        raise Refusal(f"vm[{index}].cmdline", "hugepages is filled in from the applications", "leave it out")
    wanted, room = 0, room_for_hugepages(vm)
    for a, app in enumerate(vm.app):
        size = bytes_of(app.hugepages)
        if size % HUGEPAGE:
            raise Refusal(
                f"vm[{index}].app[{a}].hugepages",
                f"{app.hugepages} is not a multiple of 2 MiB",
                "round it to whole 2M pages, such as 4M",
            )
        least = hugepages_for(len(app.port))
        if size < least:
            raise Refusal(
                f"vm[{index}].app[{a}].hugepages",
                f"{app.hugepages} holds no pool for {len(app.port)} devices",
                f"give it at least {least >> 20}M",
            )
        wanted += size
        if wanted > room:
            raise Refusal(
                f"vm[{index}].app[{a}].hugepages",
                f'"{vm.name}" with {vm.memory} has room for {room >> 20}M of hugepages',
                "ask for less, or give the VM more memory",
            )
