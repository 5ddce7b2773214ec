"""Who drives a device."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from viommu_actors.supervise.plan import guest_of, hypervisor_of, process_of
from viommu_actors.topology.resolved import (
    ResolvedAssign,
    ResolvedDevice,
    ResolvedTopology,
    ResolvedVirtioNet,
    ResolvedVm,
)


@dataclass(frozen=True)
class Owner:
    """The kernel's actor, its hypervisor if it has one, and the device's BDF as that kernel knows it.

    `app` is the actor of the application that has the device instead of the kernel's driver, if one does. `levels` are
    the VMs that it is handed down through, from the one on the host to the last; only of a nested VM.
    """

    kernel: str
    hypervisor: str | None
    bdf: str
    app: str | None = None
    levels: tuple[str, ...] = ()

    @property
    def driver(self) -> str:
        """The actor whose driver works with the device."""
        return self.app or self.kernel


def assignment_of(topology: ResolvedTopology, device: ResolvedDevice) -> ResolvedAssign:
    """How a device that a VM has was assigned to it."""
    assert device.vm is not None
    return assignment_to(topology.vm(device.vm), device)


def heir_of(topology: ResolvedTopology, device: ResolvedDevice, lost: Container[str]) -> Owner | None:
    """Who has a device again that was handed on to a VM which is lost: the last kernel in the line that is there."""
    line = () if device.vm is None else topology.line(device.vm)
    left = [vm for vm in line if guest_of(vm.name) not in lost]
    if not left or len(left) == len(line):
        return None
    name = left[-1].name
    return Owner(guest_of(name), hypervisor_of(name), assignment_to(left[-1], device).bdf)


def assignment_to(vm: ResolvedVm, device: ResolvedDevice) -> ResolvedAssign:
    """How a VM has a device, be it to hand it on."""
    return next(each for each in vm.assign if each.device == device.name)


def kernel_beneath(vm: ResolvedVm) -> str:
    """The actor of the kernel that a VM runs on."""
    return "host" if vm.parent is None else guest_of(vm.parent)


def owner_of_card(vm: ResolvedVm, card: ResolvedVirtioNet) -> Owner:
    """The guest kernel of the VM that has the card, with its application."""
    app = None if card.app is None else process_of(vm.name, card.app)
    return Owner(guest_of(vm.name), hypervisor_of(vm.name), card.bdf, app)


def owner_of(topology: ResolvedTopology, device: ResolvedDevice) -> Owner:
    """The host kernel, or the guest kernel of the VM that has the device, with its application."""
    if device.vm is None:
        return Owner("host", None, device.bdf)
    bdf = assignment_of(topology, device).bdf
    app = None if device.app is None else process_of(device.vm, device.app)
    line = tuple(vm.name for vm in topology.line(device.vm))
    return Owner(guest_of(device.vm), hypervisor_of(device.vm), bdf, app, line if len(line) > 1 else ())
