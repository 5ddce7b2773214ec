"""What a picture of a topology shows, whatever draws it: columns, boxes' words, arrows and what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from viommu_actors.app.pci import UserDriver
from viommu_actors.attacks.catalogue import Target
from viommu_actors.report.results import Results, Verdict
from viommu_actors.report.text import Style
from viommu_actors.topology.resolved import (
    ResolvedComponent,
    ResolvedDevice,
    ResolvedTopology,
    ResolvedVirtioNet,
    ResolvedVm,
)

LABELS: dict[Style, str] = {"safe": "safe", "unsafe": "UNSAFE", "unknown": "not observed"}
#: What the labels mean.
LEGEND: dict[Style, str] = {
    "safe": "all that the device tried beyond its mappings was stopped",
    "unsafe": "it got at memory, or raised an interrupt, that nobody had given to it",
    "unknown": "nothing was tried, or not all of the proof is there",
}
#: How applications have devices, in words.
WAYS: dict[UserDriver, str] = {"vfio": "VFIO", "noiommu": "VFIO no-iommu", "uio": "UIO"}
_HARM = ("leaked", "corrupted", "delivered")
_INTERRUPTS = (Target.HOST_VECTOR, Target.OTHER_DEVICE, Target.BEYOND_TABLE, Target.ABSENT_ENTRY)

Machine = Literal["guest", "host"]
What = Literal["memory", "host memory", "page tables", "other guest", "interrupts", "beyond the guest"]


#: What stands at the foot of an arrow.
Endpoint = ResolvedDevice | ResolvedVirtioNet


class Column(NamedTuple):
    """A device beside the VM that has it at last, or a card that the VM's hypervisor emulates, or a VM alone."""

    vm: ResolvedVm | None
    device: ResolvedDevice | None = None
    card: ResolvedVirtioNet | None = None

    @property
    def app(self) -> str | None:
        """The application that has what it is of."""
        own = self.device or self.card
        return None if own is None else own.app


@dataclass(frozen=True)
class Arrow:
    """From a device to what it got at, or tried to; drawn with `machine`; `verdicts` are why."""

    what: What
    machine: Machine
    verdicts: tuple[Verdict, ...]

    @property
    def state(self) -> Style:
        observed = {verdict.observed for verdict in self.verdicts}
        if observed & set(_HARM):
            return "unsafe"
        return "safe" if observed and observed <= {"blocked", "redirected"} else "unknown"

    @property
    def label(self) -> str:
        return f"{self.what}: {LABELS[self.state]}"


class Scene:
    def __init__(self, topology: ResolvedTopology, results: Results) -> None:
        self.topology = topology
        self._results = results
        self._pids = {process.name: process.pid for process in results.processes}

    def columns(self) -> list[Column]:
        """One for each device and card, one for each VM without any. Cards of neighbouring VMs stand side by side, as
        their switch is one box."""
        columns: list[Column] = []
        for number, vm in enumerate(self.topology.vms):
            cards = [Column(vm, card=card) for card in vm.virtio]
            devices = [Column(vm, device) for device in self.devices(vm)]
            columns += [*cards, *devices] if number % 2 else [*devices, *cards]
            if not vm.virtio and not devices:
                columns.append(Column(vm))
        return columns + [Column(None, device) for device in self.topology.devices if device.vm is None]

    def own(self, device: Endpoint) -> Arrow:
        """To the memory of the kernel that drives the device."""
        if isinstance(device, ResolvedDevice) and device.vm is None:
            return self._arrow(device, "host memory", "host", Target.HOST_MEMORY)
        return self._arrow(device, "memory", "guest", Target.GUEST_MEMORY)

    def others(self, device: ResolvedDevice) -> list[Arrow]:
        """To what else it tried."""
        in_guest = device.vm is not None and self.topology.setting(device.name) != "none"
        arrows = [self._arrow(device, "page tables", "guest" if in_guest else "host", Target.PAGE_TABLES)]
        if device.vm is not None:
            arrows.append(self._arrow(device, "host memory", "host", Target.HOST_MEMORY))
        arrows += [self._arrow(device, "other guest", "host", Target.OTHER_GUEST), self.interrupts(device)]
        return [arrow for arrow in arrows if arrow.verdicts]

    def others_of_card(self, card: ResolvedVirtioNet) -> list[Arrow]:
        """To what else the switch tried by its port; the vIOMMU, or the hypervisor, is all that is in its way."""
        arrows = [
            self._arrow(card, "page tables", "guest", Target.PAGE_TABLES),
            self._arrow(card, "beyond the guest", "guest", Target.HOST_MEMORY, Target.OTHER_GUEST),
        ]
        return [arrow for arrow in arrows if arrow.verdicts]

    def interrupts(self, device: ResolvedDevice) -> Arrow:
        return self._arrow(device, "interrupts", "host", *_INTERRUPTS)

    def against(self, vm: ResolvedVm) -> list[tuple[ResolvedDevice, Arrow]]:
        """Devices of the only other VM that tried this one, and how it fared."""
        if len(self.topology.vms) != 2:
            return []
        tries = ((each, self._arrow(each, "other guest", "host", Target.OTHER_GUEST)) for each in self.topology.devices)
        return [(device, arrow) for device, arrow in tries if arrow.verdicts and device.vm != vm.name]

    def devices(self, vm: ResolvedVm) -> list[ResolvedDevice]:
        """What a VM has, and does not hand on."""
        devices = [self.topology.device(assign.device) for assign in vm.assign]
        return [device for device in devices if device.vm == vm.name]

    def guest(self, vm: ResolvedVm) -> str:
        """The title of a guest, with the one that it runs in."""
        where = ": guest" if vm.parent is None else f" in {vm.parent}"
        return self.titled(f"{vm.name}{where}", f"{vm.name}.guest")

    def titled(self, title: str, actor: str) -> str:
        """With the process that plays it."""
        return f"{title}, pid {self._pids[actor]}" if actor in self._pids else title

    def viommu(self, vm: ResolvedVm) -> str:
        """What the vIOMMU of a VM does."""
        if vm.viommu is None:
            return "no vIOMMU"
        own = {device.name for device in self.devices(vm)}
        behind = [assign.device for assign in vm.assign if assign.device in own and not assign.bypass_iommu]
        behind += [card.name for card in vm.virtio]
        if not behind:
            return "for VMs in it" if len(vm.assign) > len(own) else "no device behind it"
        mode = self.topology.setting(behind[0])
        if mode == "passthrough" and any(self._is_shadowed(device) for device in behind):
            return "passes all but VFIO's"
        return {"none": "left off", "strict": "translates, strict", "passthrough": "lets devices pass"}[mode]

    def hypervisor(self, vm: ResolvedVm) -> str:
        """What a hypervisor does for its guest's devices, "" without any."""
        if not vm.assign:
            return ""
        own = {device.name for device in self.devices(vm)}
        # What is handed on is VFIO's in the guest, whose container's domain is translated.
        shadowed = {assign.device not in own or self._is_shadowed(assign.device) for assign in vm.assign}
        if len(shadowed) == 2:
            return "shadow tables, or all RAM"
        return "shadow tables, by VFIO" if True in shadowed else "maps all RAM, by VFIO"

    def application(self, vm: ResolvedVm, app: str) -> str:
        """An application in a guest, with its process."""
        return self.titled(f"{app}: app", f"{vm.name}.{app}")

    def vswitch(self, name: str) -> str:
        """A virtual switch with its process."""
        return self.titled(f"{name}: virtual switch", name)

    def grant(self, device: Endpoint) -> str:
        """How that application has it, or that the kernel refused."""
        port = self.topology.port(device.name)
        if port is None:
            return ""
        rows = (row for app in self._results.apps for row in app.ports if row.device == device.name)
        row = next(rows, None)
        if row is None or row.granted:
            return f"{device.name} by {WAYS[port.driver]}"
        return f"{device.name}: refused, {row.errno}"

    def iommu(self) -> str:
        """What the host's IOMMU does beside translation."""
        return "remaps interrupts too" if self.topology.host.iommu.intremap else "remaps no interrupts"

    def component(self, device: ResolvedDevice) -> ResolvedComponent | None:
        """The switch or bridge that the device is behind."""
        return None if device.behind is None else self.topology.component(device.behind)

    def _is_shadowed(self, device: str) -> bool:
        """Whether the hypervisor follows the guest's tables for it: those of the kernel, or of VFIO's user."""
        setting, port = self.topology.setting(device), self.topology.port(device)
        return setting == "strict" or (setting == "passthrough" and port is not None and port.driver == "vfio")

    def _arrow(self, device: Endpoint, what: What, machine: Machine, *targets: Target) -> Arrow:
        verdicts = tuple(v for v in self._results.verdicts if v.device == device.name and v.target in targets)
        return Arrow(what, machine, verdicts)


def component_title(component: ResolvedComponent) -> str:
    if component.kind == "bridge":
        return f"{component.name}: PCI bridge"
    return f"{component.name}: switch, {'with' if component.acs else 'without'} ACS"


def place_behind(component: ResolvedComponent, device: ResolvedDevice) -> str:
    """Where on a component a device is."""
    number = component.devices.index(device.name)
    return f"port {number}" if component.kind == "switch" else f"device {number}"


def seen_as(vm: ResolvedVm, device: ResolvedDevice) -> str:
    """Where the guest sees a device that is assigned to it, and whether it is past the guest's vIOMMU."""
    assign = next(assign for assign in vm.assign if assign.device == device.name)
    return f"{assign.bdf} {device.name}" + (": no vIOMMU" if assign.bypass_iommu else "")


def manners(device: Endpoint) -> str:
    return "rogue: " + " ".join(device.rogue) if device.rogue else "honest"
