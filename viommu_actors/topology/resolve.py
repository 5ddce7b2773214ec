"""Fills in what a topology leaves out: slots, PCI addresses, sizes in bytes, command lines."""

from __future__ import annotations

from typing import Literal

from viommu_actors.kernel.cmdline import CommandLine
from viommu_actors.kernel.pages import HUGEPAGE
from viommu_actors.pci.component import behind
from viommu_actors.pci.root_port import slot_name
from viommu_actors.spec import platform
from viommu_actors.spec.pci import bdf, format_bdf
from viommu_actors.topology.model import Device, Topology
from viommu_actors.topology.resolved import (
    ResolvedApp,
    ResolvedAssign,
    ResolvedComponent,
    ResolvedDevice,
    ResolvedHost,
    ResolvedPort,
    ResolvedSlot,
    ResolvedTopology,
    ResolvedVirtioNet,
    ResolvedVm,
    ResolvedVswitch,
)
from viommu_actors.topology.vm import Vm

#: In a guest, slot 0 is the host bridge; 1 and 2 are where QEMU puts a display and a network card.
FIRST_GUEST_SLOT = 3
EDU_DMA_MASK_BITS = 28
#: Begins what stands for the name of a device where there is none; no name begins so.
_SPARE = "+"
#: Locally administered, and of no physical nic: a card's is this plus its number in the topology.
_CARD_MAC_BASE = 0x02_00_00_01_00_00
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


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
        vswitches=tuple(
            ResolvedVswitch(name=each.name, on_death=each.on_death or topology.on_death) for each in topology.vswitch
        ),
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
    """Slot of each device in the guest, assigned or emulated."""
    wanted = {assign.device: assign.slot for assign in vm.assign}
    return _fill(wanted | {card.name: card.slot for card in vm.virtio_net}, first=FIRST_GUEST_SLOT)


def guest_bdfs(vm: Vm) -> dict[str, str]:
    """Address of each device in the guest; one that bypasses the vIOMMU is on a root bus of its own."""
    bypassing = {assign.device for assign in vm.assign if assign.bypass_iommu}
    return {
        name: format_bdf(bdf(platform.BYPASSING_BUS if name in bypassing else 0, slot, 0))
        for name, slot in guest_slots(vm).items()
    }


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
    apps = {port.device: app.name for app in vm.app for port in app.port}
    numbers = [card.name for each in topology.vm for card in each.virtio_net]
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
        virtio=tuple(
            ResolvedVirtioNet(
                name=card.name,
                vswitch=card.vswitch,
                slot=slots[card.name],
                bdf=bdfs[card.name],
                mac=(_CARD_MAC_BASE + numbers.index(card.name)).to_bytes(6, "big").hex(),
                operations=card.operations,
                rogue=card.rogue,
                app=apps.get(card.name),
            )
            for card in vm.virtio_net
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
