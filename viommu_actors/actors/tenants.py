"""The VMs that run on a kernel, the host's or a guest's: their hypervisors are its processes, their guests get its
interrupts."""

from __future__ import annotations

from typing import Any

from viommu_actors.actors.kernel_service import KernelService
from viommu_actors.actors.outlet import Outlet
from viommu_actors.spec.privileges import Capability
from viommu_actors.wire import messages as m
from viommu_actors.wire.tally import Tally

#: They open /dev/vfio/N, which is root's.
_OF_HYPERVISORS = frozenset({Capability.DAC_OVERRIDE})


class Tenants:
    """`outlets` are the one-way messages of this kernel, by receiver."""

    def __init__(self, kernel: str, vms: list[dict[str, Any]]) -> None:
        """`kernel` is the actor's name."""
        self._kernel = kernel
        self._vms = vms
        self._guest_of = {vm["name"]: vm["guest"] for vm in vms}
        #: hypervisor -> the VM that it runs (`Kvm`)
        self.vm_of: dict[str, str] = {vm["hypervisor"]: vm["name"] for vm in vms}
        self.outlets: dict[str, Outlet] = {}

    def add_all(self, service: KernelService, address: str) -> list[Tally]:
        """Makes the hypervisors processes of the kernel. A slot's `address` is the key of where the kernel has it."""
        tallies = []
        for vm in self._vms:
            hypervisor, guest = vm["hypervisor"], vm["guest"]
            vfio = Tally(f"vfio:{hypervisor}", self._kernel)
            ram = {slot["name"]: (slot[address], slot["size"]) for slot in vm["ram"]}
            service.add_process(hypervisor.encode(), vfio, ram, _OF_HYPERVISORS)
            inject, notify = Tally(f"inject:{guest}", self._kernel), Tally(f"notify:{hypervisor}", self._kernel)
            self.outlets[guest] = Outlet(self._kernel, vm["guest_address"], m.INJECT, inject)
            self.outlets[hypervisor] = Outlet(self._kernel, vm["hypervisor_address"], m.NOTIFY, notify)
            tallies += [vfio, inject, notify]
        return tallies

    def inject(self, vm: str, vector: int) -> None:
        """Interrupts a guest."""
        self.outlets[self._guest_of[vm]].post(m.Inject(vector))

    def notify(self, process: str, eventfd: int) -> None:
        """Wakes a user process whose eventfd was signalled."""
        self.outlets[process].post(m.EventfdSignal(eventfd))
