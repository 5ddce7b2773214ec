"""Who drives a device."""

from __future__ import annotations

from dataclasses import dataclass

from viommu_actors.supervise.plan import guest_of, hypervisor_of, process_of
from viommu_actors.topology.resolve import ResolvedAssign, ResolvedDevice, ResolvedTopology


@dataclass(frozen=True)
class Owner:
    """The kernel's actor, its hypervisor if it has one, and the device's BDF as that kernel knows it.

    `app` is the actor of the application that has the device instead of the kernel's driver, if one does.
    """

    kernel: str
    hypervisor: str | None
    bdf: str
    app: str | None = None

    @property
    def driver(self) -> str:
        """The actor whose driver works with the device."""
        return self.app or self.kernel


def assignment_of(topology: ResolvedTopology, device: ResolvedDevice) -> ResolvedAssign:
    """How a device that a VM has was assigned to it."""
    assert device.vm is not None
    return next(each for each in topology.vm(device.vm).assign if each.device == device.name)


def owner_of(topology: ResolvedTopology, device: ResolvedDevice) -> Owner:
    """The host kernel, or the guest kernel of the VM that has the device, with its application."""
    if device.vm is None:
        return Owner("host", None, device.bdf)
    bdf = assignment_of(topology, device).bdf
    app = None if device.app is None else process_of(device.vm, device.app)
    return Owner(guest_of(device.vm), hypervisor_of(device.vm), bdf, app)
