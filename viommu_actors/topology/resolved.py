"""A topology with everything filled in: slots, PCI addresses, sizes in bytes, command lines.

Plain data, so that it can be written to the run's `topology.json` and read back.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from viommu_actors.app.pci import UserDriver
from viommu_actors.attacks.catalogue import Axis, DmaSetting, Setting
from viommu_actors.kernel.cmdline import CommandLine
from viommu_actors.topology.model import HostIommu
from viommu_actors.topology.settings import setting_of
from viommu_actors.topology.values import Placement, SandboxMode
from viommu_actors.topology.vm import Edit, Viommu


class ResolvedDevice(Struct, kw_only=True, frozen=True):
    """`link` names the host's end of its link, `slot` is that of its root port, `bdf` its address on the host.

    `requester` is the address that its requests come from, which behind a bridge is that of the bridge's bus. `behind`
    names the switch or bridge that it is behind, if any; `vm` is None where the host kernel drives it,
    `app` names the application that takes it from its guest's kernel, if one does.
    """

    name: str
    model: Literal["nic", "edu"]
    slot: int
    link: str
    behind: str | None
    bdf: str
    requester: str
    peer: str | None
    max_payload: int
    dma_mask_bits: int | None
    operations: int
    ats: bool
    rogue: tuple[str, ...]
    vm: str | None
    app: str | None


class ResolvedComponent(Struct, kw_only=True, frozen=True):
    """A switch or bridge in a slot, and its devices in the order of their numbers; a bridge has no ACS."""

    name: str
    kind: Literal["switch", "bridge"]
    slot: int
    acs: bool
    devices: tuple[str, ...]


class ResolvedAssign(Struct, kw_only=True, frozen=True):
    """`host_bdf` is the address in the kernel that gives it away, `bdf` that in the guest."""

    device: str
    host_bdf: str
    slot: int
    bdf: str
    edit: tuple[Edit, ...]
    bypass_iommu: bool


class ResolvedPort(Struct, kw_only=True, frozen=True):
    """`bdf` is the device's address in the guest."""

    device: str
    bdf: str
    driver: UserDriver
    rx: Literal["poll", "interrupt"]


class ResolvedApp(Struct, kw_only=True, frozen=True):
    """`hugepages` is in bytes."""

    name: str
    hugepages: int
    root: bool
    ports: tuple[ResolvedPort, ...]


class ResolvedVirtioNet(Struct, kw_only=True, frozen=True):
    """A network card that the hypervisor emulates; `bdf` is its address in the guest, `mac` six bytes in hexadecimal.

    `app` names the application that takes it from its guest's kernel, if one does.
    """

    name: str
    vswitch: str
    slot: int
    bdf: str
    mac: str
    operations: int
    rogue: tuple[str, ...]
    app: str | None


class ResolvedVm(Struct, kw_only=True, frozen=True):
    """`memory` is in bytes; `viommu` is None where the guest has none; `parent` is the VM it runs in, if one is."""

    name: str
    parent: str | None
    memory: int
    cmdline: str
    viommu: Viommu | None
    irqfd: bool
    assign: tuple[ResolvedAssign, ...]
    apps: tuple[ResolvedApp, ...]
    virtio: tuple[ResolvedVirtioNet, ...]


class ResolvedVswitch(Struct, kw_only=True, frozen=True):
    """A virtual switch of the host; its ports are the virtio-net devices that name it."""

    name: str
    on_death: Literal["end", "contain", "restart"]


class ResolvedSlot(Struct, kw_only=True, frozen=True):
    """An empty slot; `bdf` is what a device will be that is plugged into it."""

    slot: int
    bdf: str


class ResolvedHost(Struct, kw_only=True, frozen=True):
    """`memory` is in bytes; `cmdline` names what is left to vfio-pci; `spare` are the slots that are empty."""

    memory: int
    cmdline: str
    iommu: HostIommu
    acs: bool
    spare: tuple[ResolvedSlot, ...]


class ResolvedTopology(Struct, kw_only=True, frozen=True):
    name: str
    description: str
    on_death: Literal["end", "contain"]
    placement: Placement
    sandbox: SandboxMode
    host: ResolvedHost
    devices: tuple[ResolvedDevice, ...]
    components: tuple[ResolvedComponent, ...]
    vms: tuple[ResolvedVm, ...]
    vswitches: tuple[ResolvedVswitch, ...]

    def device(self, name: str) -> ResolvedDevice:
        """Raises KeyError."""
        return {device.name: device for device in self.devices}[name]

    def vm(self, name: str) -> ResolvedVm:
        """Raises KeyError."""
        return {vm.name: vm for vm in self.vms}[name]

    def line(self, vm: str) -> tuple[ResolvedVm, ...]:
        """The VMs from the one on the host down to this one, each in the one before. Raises KeyError."""
        own = self.vm(vm)
        return (own,) if own.parent is None else (*self.line(own.parent), own)

    def within(self, vm: str) -> tuple[ResolvedVm, ...]:
        """The VMs that run in this one, at whatever depth, it not among them."""
        return tuple(each for each in self.vms if each.name != vm and self.vm(vm) in self.line(each.name))

    def component(self, name: str) -> ResolvedComponent:
        """A switch or bridge. Raises KeyError."""
        return {component.name: component for component in self.components}[name]

    def setting(self, device: str) -> DmaSetting:
        """What stands between the device and the memory of the kernel that drives it. Raises KeyError."""
        machine = self.machine_of(device)
        if machine is None:
            return setting_of(self.host.cmdline, has_iommu=True)
        bypassing = any(assign.bypass_iommu for assign in machine.assign if assign.device == device)
        return setting_of(machine.cmdline, has_iommu=machine.viommu is not None and not bypassing)

    def machine_of(self, device: str) -> ResolvedVm | None:
        """The VM whose kernel or application drives a device, physical or emulated, None for the host's. Raises
        KeyError."""
        emulated = (vm for vm in self.vms if any(each.name == device for each in vm.virtio))
        if found := next(emulated, None):
            return found
        vm = self.device(device).vm
        return None if vm is None else self.vm(vm)

    def card(self, name: str) -> ResolvedVirtioNet:
        """A network card that a hypervisor emulates. Raises KeyError."""
        return {card.name: card for vm in self.vms for card in vm.virtio}[name]

    def is_card(self, device: str) -> bool:
        return any(card.name == device for vm in self.vms for card in vm.virtio)

    def operations(self, device: str) -> int:
        """How much honest work a device does, be it physical or emulated. Raises KeyError."""
        return self.card(device).operations if self.is_card(device) else self.device(device).operations

    def ports_of(self, vswitch: str) -> tuple[tuple[ResolvedVm, ResolvedVirtioNet], ...]:
        """The cards that a virtual switch serves, in the order of its ports, with their VMs."""
        return tuple((vm, card) for vm in self.vms for card in vm.virtio if card.vswitch == vswitch)

    def port(self, device: str) -> ResolvedPort | None:
        """How an application has the device, if one does."""
        ports = (port for vm in self.vms for app in vm.apps for port in app.ports)
        return next((port for port in ports if port.device == device), None)

    def interrupt_setting(self, device: str) -> Setting:
        """What stands between the device and the host's interrupt controller. Raises KeyError."""
        options = CommandLine(self.host.cmdline)
        if not self.host.iommu.intremap or options.get("intremap") == "off" or not options.iommu:
            return self.setting(device)
        return "ir-nosid" if options.get("intremap") == "nosid" else "ir"

    def setting_for(self, axis: Axis, device: str) -> Setting:
        """The setting of that part of the protection which decides about an attack. Raises KeyError."""
        if axis == "interrupts":
            return self.interrupt_setting(device)
        if axis == "acs":
            return "acs-on" if self._acs(device) else "acs-off"
        if axis == "ats" and self.translates(device):
            return "ats"
        return self.setting(device)

    def translates(self, device: str) -> bool:
        """Whether the host kernel switches on the device's ATS. Raises KeyError."""
        words = self.host.cmdline
        offered = self.device(device).ats and self.host.iommu.device_iotlb
        return offered and setting_of(words, True) == "strict" and "noats" not in CommandLine(words).values("pci")

    def _acs(self, device: str) -> bool:
        """Whether the first port above the device has access control; a bridge lets no forged ID through either."""
        behind = self.device(device).behind
        above = None if behind is None else self.component(behind)
        return above.acs if above is not None and above.kind == "switch" else self.host.acs
