"""A topology with everything filled in: slots, PCI addresses, sizes in bytes, command lines.

Plain data, so that it can be written to the run's `topology.json` and read back.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from viommu_actors.app.pci import UserDriver
from viommu_actors.attacks.catalogue import Axis, DmaSetting, Setting
from viommu_actors.kernel.cmdline import CommandLine
from viommu_actors.kernel.pages import HUGEPAGE
from viommu_actors.pci.component import behind
from viommu_actors.pci.root_port import slot_name
from viommu_actors.spec import platform
from viommu_actors.spec.pci import bdf, format_bdf
from viommu_actors.topology.model import (
    Device,
    Edit,
    HostIommu,
    Placement,
    SandboxMode,
    Topology,
    Viommu,
    Vm,
)

#: In a guest, slot 0 is the host bridge; 1 and 2 are where QEMU puts a display and a network card.
FIRST_GUEST_SLOT = 3
EDU_DMA_MASK_BITS = 28
#: Begins what stands for the name of a device where there is none; no name begins so.
_SPARE = "+"
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


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
        vm = self.device(device).vm
        if vm is None:
            return setting_of(self.host.cmdline, has_iommu=True)
        machine = self.vm(vm)
        bypassing = any(assign.bypass_iommu for assign in machine.assign if assign.device == device)
        return setting_of(machine.cmdline, has_iommu=machine.viommu is not None and not bypassing)

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


def resolve(topology: Topology) -> ResolvedTopology:
    """Fills in a topology that `refusals.check` let pass."""
    slots = host_slots(topology)
    components = _components(topology, slots)
    first = max(slots.values(), default=0) + 1
    spare = {f"{_SPARE}{slot}": slot for slot in range(first, first + topology.host.spare_slots)}
    addresses = _addresses(slots | spare, components)
    links = {name: slot_name(slots[name]) for name in addresses if name in slots}
    aliases: dict[str, str] = {}
    for component in components:
        if component.kind == "bridge":
            aliases |= dict.fromkeys(component.devices, addresses[component.devices[0]])
        links |= {name: behind(component.name, number) for number, name in enumerate(component.devices)}
    # A nested VM stands below the one that it has its devices from.
    owner = {assign.device: vm.name for vm in topology.vm for assign in vm.assign}
    apps = {port.device: app.name for vm in topology.vm for app in vm.app for port in app.port}
    masks = {device.name: _dma_mask_bits(device) for device in topology.device}
    devices = tuple(
        ResolvedDevice(
            name=device.name,
            model=device.model,
            slot=slots[device.behind or device.name],
            link=links[device.name],
            behind=device.behind,
            bdf=addresses[device.name],
            requester=aliases.get(device.name, addresses[device.name]),
            peer=device.peer,
            max_payload=device.max_payload,
            dma_mask_bits=masks[device.name],
            operations=device.operations,
            ats=device.ats,
            rogue=device.rogue,
            vm=owner.get(device.name),
            app=apps.get(device.name),
        )
        for device in topology.device
    )
    return ResolvedTopology(
        name=topology.name,
        description=topology.description,
        on_death=topology.on_death,
        placement=topology.placement,
        sandbox=topology.sandbox,
        host=ResolvedHost(
            memory=bytes_of(topology.host.memory),
            cmdline=_with_parameters(
                topology.host.cmdline,
                assigned=sorted(addresses[name] for name in owner),
                masks=[masks[device.name] for device in topology.device if device.name not in owner],
            ),
            iommu=topology.host.iommu,
            acs=topology.host.acs,
            spare=tuple(ResolvedSlot(slot=slot, bdf=addresses[name]) for name, slot in spare.items()),
        ),
        devices=devices,
        components=components,
        vms=_vms(topology, addresses, masks, owner),
    )


def bytes_of(size: str) -> int:
    """`64M` in bytes; the units are powers of 1024."""
    return int(size[:-1]) * _UNITS[size[-1]]


def host_slots(topology: Topology) -> dict[str, int]:
    """Root port slot of each device that is behind nothing, of each switch and bridge, by name.

    Those that name none take the next free one.
    """
    wanted = {device.name: device.slot for device in topology.device if device.behind is None}
    wanted |= {switch.name: switch.slot for switch in topology.switch}
    wanted |= {bridge.name: bridge.slot for bridge in topology.bridge}
    return _fill(wanted, first=1)


def devices_behind(topology: Topology, name: str) -> tuple[str, ...]:
    """The devices behind a switch or bridge, in the order of their numbers."""
    return tuple(device.name for device in topology.device if device.behind == name)


def guest_slots(vm: Vm) -> dict[str, int]:
    """Slot of each assigned device in the guest."""
    return _fill({assign.device: assign.slot for assign in vm.assign}, first=FIRST_GUEST_SLOT)


def guest_bdfs(vm: Vm) -> dict[str, str]:
    """Address of each assigned device in the guest; one that bypasses the vIOMMU is on a root bus of its own."""
    buses = {assign.device: platform.BYPASSING_BUS if assign.bypass_iommu else 0 for assign in vm.assign}
    return {name: format_bdf(bdf(buses[name], slot, 0)) for name, slot in guest_slots(vm).items()}


def setting_of(cmdline: str, has_iommu: bool) -> DmaSetting:
    """How a kernel with this command line uses its IOMMU, as Linux reads `intel_iommu=` and `iommu=`."""
    options = CommandLine(cmdline)
    if not has_iommu or not options.iommu:
        return "none"
    return "passthrough" if options.get("iommu") == "pt" or options.enabled("iommu.passthrough") else "strict"


def _components(topology: Topology, slots: dict[str, int]) -> tuple[ResolvedComponent, ...]:
    def made(name: str, kind: Literal["switch", "bridge"], acs: bool) -> ResolvedComponent:
        return ResolvedComponent(
            name=name, kind=kind, slot=slots[name], acs=acs, devices=devices_behind(topology, name)
        )

    switches = [made(switch.name, "switch", switch.acs) for switch in topology.switch]
    return (*switches, *(made(bridge.name, "bridge", False) for bridge in topology.bridge))


def _addresses(slots: dict[str, int], components: tuple[ResolvedComponent, ...]) -> dict[str, str]:
    """Host address of each device, as a kernel numbers buses: depth first, in the order of the slots."""
    by_name = {component.name: component for component in components}
    addresses: dict[str, int] = {}
    bus = 0
    for name in sorted(slots, key=lambda name: slots[name]):
        bus += 1
        component = by_name.get(name)
        if component is None:
            addresses[name] = bdf(bus, 0, 0)
        elif component.kind == "switch":
            # The switch's inner bus comes first, then one behind each of its ports.
            bus += 1
            for device in component.devices:
                bus += 1
                addresses[device] = bdf(bus, 0, 0)
        else:
            bus += 1
            addresses |= {device: bdf(bus, number, 0) for number, device in enumerate(component.devices)}
    return {name: format_bdf(address) for name, address in addresses.items()}


def lent(topology: Topology, vm: Vm) -> int:
    """Bytes of a VM's memory that are not its kernel's: those of its applications, and of the VMs in it."""
    apps = sum(bytes_of(app.hugepages) for app in vm.app)
    return apps + sum(bytes_of(each.memory) for each in topology.vm if each.parent == vm.name)


def handed_on(topology: Topology, vm: Vm) -> set[str]:
    """Devices of a VM that it gives to VMs in it."""
    return {assign.device for each in topology.vm if each.parent == vm.name for assign in each.assign}


def _vms(
    topology: Topology, addresses: dict[str, str], masks: dict[str, int | None], owner: dict[str, str]
) -> tuple[ResolvedVm, ...]:
    """`addresses` are those on the host."""
    beneath: dict[str | None, dict[str, str]] = {None: addresses}
    resolved = []
    for vm in topology.vm:
        resolved.append(_resolve_vm(topology, vm, beneath[vm.parent], masks, owner))
        beneath[vm.name] = {assign.device: assign.bdf for assign in resolved[-1].assign}
    return tuple(resolved)


def _resolve_vm(
    topology: Topology, vm: Vm, addresses: dict[str, str], masks: dict[str, int | None], owner: dict[str, str]
) -> ResolvedVm:
    slots, bdfs = guest_slots(vm), guest_bdfs(vm)
    return ResolvedVm(
        name=vm.name,
        parent=vm.parent,
        memory=bytes_of(vm.memory),
        cmdline=_with_parameters(
            vm.cmdline,
            assigned=sorted(bdfs[name] for name in handed_on(topology, vm)),
            masks=[masks[assign.device] for assign in vm.assign if owner[assign.device] == vm.name],
            hugepages=lent(topology, vm) // HUGEPAGE,
            last_bus=platform.BYPASSING_BUS if any(assign.bypass_iommu for assign in vm.assign) else 0,
        ),
        viommu=vm.viommu,
        irqfd=vm.irqfd,
        assign=tuple(
            ResolvedAssign(
                device=assign.device,
                host_bdf=addresses[assign.device],
                slot=slots[assign.device],
                bdf=bdfs[assign.device],
                edit=assign.edit,
                bypass_iommu=assign.bypass_iommu,
            )
            for assign in vm.assign
        ),
        apps=tuple(
            ResolvedApp(
                name=app.name,
                hugepages=bytes_of(app.hugepages),
                root=app.root,
                ports=tuple(
                    ResolvedPort(device=port.device, bdf=bdfs[port.device], driver=port.driver, rx=port.rx)
                    for port in app.port
                ),
            )
            for app in vm.app
        ),
    )


def _dma_mask_bits(device: Device) -> int | None:
    return device.dma_mask_bits or EDU_DMA_MASK_BITS if device.model == "edu" else None


def _with_parameters(
    cmdline: str, assigned: list[str], masks: list[int | None], hugepages: int = 0, last_bus: int = 0
) -> str:
    """The command line with the driver parameters that follow from the devices, where it does not tell them itself.

    A driver has one mask for all its devices, so the shortest one counts.
    """
    options = CommandLine(cmdline)
    words = [options.text] if options.text else []
    if assigned:
        words.append(f"vfio-pci.ids={','.join(assigned)}")
    if last_bus:
        words.append(f"pci=lastbus={last_bus}")
    if hugepages:
        words.append(f"hugepages={hugepages}")
    shortest = min((bits for bits in masks if bits is not None), default=EDU_DMA_MASK_BITS)
    if shortest != EDU_DMA_MASK_BITS and not options.get("edu.dma_bits"):
        words.append(f"edu.dma_bits={shortest}")
    return " ".join(words)


def _fill(wanted: dict[str, int | None], first: int) -> dict[str, int]:
    taken = {slot for slot in wanted.values() if slot is not None}
    filled: dict[str, int] = {}
    for name, slot in wanted.items():
        if slot is None:
            slot = next(free for free in range(first, first + len(wanted) + len(taken)) if free not in taken)
            taken.add(slot)
        filled[name] = slot
    return filled
