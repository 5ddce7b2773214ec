"""What a topology's values must be together. Each function refuses one kind of contradiction.

What one value may be by itself is said by the types in `model`.
"""

from __future__ import annotations

from collections.abc import Iterator

from viommu_actors.attacks.catalogue import PLAYABLE, Target
from viommu_actors.kernel.cmdline import CommandLine
from viommu_actors.topology.app_refusals import check_apps, check_assign_drivers
from viommu_actors.topology.component_refusals import check_components, check_groups
from viommu_actors.topology.errors import Refusal
from viommu_actors.topology.guess import did_you_mean
from viommu_actors.topology.model import Device, Topology
from viommu_actors.topology.nested_refusals import check_nested, check_parents
from viommu_actors.topology.resolve import EDU_DMA_MASK_BITS, bytes_of, guest_bdfs
from viommu_actors.topology.settings import setting_of
from viommu_actors.topology.values import CONFIG_SPACE
from viommu_actors.topology.vm import Vm
from viommu_actors.topology.vswitch_refusals import check_vswitches
from viommu_actors.vtd.config import CACHING_MODE_NEEDED

MIB = 1 << 20
#: Linux maps RAM with 2 MiB pages; a slot that ends within one would lose them.
MEMORY_STEP = 2 * MIB
MIN_GUEST_MEMORY = 8 * MIB
MIN_HOST_MEMORY = 32 * MIB
MAX_MEMORY = 8 << 30
#: The host's own RAM starts at 64 GiB but for its first few MiB.
_HOST_TOP = (64 << 30) + MAX_MEMORY
#: Driver parameters that name devices, and the model of these.
_STATIC = {"nic.static": "nic", "edu.static": "edu", "virtio_net.static": "virtio-net"}
#: Names of processes that every run has.
RESERVED = ("host", "launcher")
#: QEMU, hw/i386/intel_iommu.c, vtd_iommu_notify_flag_changed().


def check(topology: Topology) -> None:
    """Raises the first `Refusal`; returns when the topology can be started."""
    _names(topology)
    _memory("host.memory", "the host", topology.host.memory, MIN_HOST_MEMORY)
    for index, vm in enumerate(topology.vm):
        _memory(f"vm[{index}].memory", vm.name, vm.memory, MIN_GUEST_MEMORY)
    _devices(topology)
    check_components(topology)
    check_parents(topology)
    _peers(topology)
    _assignments(topology)
    check_groups(topology)
    check_vswitches(topology)
    check_assign_drivers(topology)
    check_apps(topology)
    check_nested(topology)
    _edits(topology)
    _viommus(topology)
    _host_kernel(topology)
    _static_pools(topology)
    _reach(topology)
    _attacks(topology)


def _names(topology: Topology) -> None:
    seen: dict[str, str] = dict.fromkeys(RESERVED, "every run")
    names = [(f"device[{i}].name", device.name) for i, device in enumerate(topology.device)]
    names += [(f"switch[{i}].name", switch.name) for i, switch in enumerate(topology.switch)]
    names += [(f"bridge[{i}].name", bridge.name) for i, bridge in enumerate(topology.bridge)]
    names += [(f"vm[{i}].name", vm.name) for i, vm in enumerate(topology.vm)]
    names += [(f"vswitch[{i}].name", vswitch.name) for i, vswitch in enumerate(topology.vswitch)]
    names += [
        (f"vm[{v}].virtio_net[{c}].name", card.name)
        for v, vm in enumerate(topology.vm)
        for c, card in enumerate(vm.virtio_net)
    ]
    names += [(f"vm[{v}].app[{a}].name", app.name) for v, vm in enumerate(topology.vm) for a, app in enumerate(vm.app)]
    for key, name in names:
        if name in seen:
            taken = f'"{name}" is taken by {seen[name]}'
            raise Refusal(key, taken, "give each device, VM and application a name of its own")
        seen[name] = key.removesuffix(".name")


def _memory(key: str, owner: str, size: str, least: int) -> None:
    size_bytes = bytes_of(size)
    if size_bytes < least:
        raise Refusal(key, f"{size} is too small for {owner}", f"give it at least {least // MIB}M")
    if size_bytes > MAX_MEMORY:
        raise Refusal(key, f"{size} is too large", f"give {owner} at most {MAX_MEMORY >> 30}G")
    if size_bytes % MEMORY_STEP:
        raise Refusal(key, f"{size} is not a multiple of 2 MiB", "round it to whole 2M pages, such as 64M")


def _devices(topology: Topology) -> None:
    if not topology.device and not any(vm.virtio_net for vm in topology.vm):
        raise Refusal("device", "the topology has no devices", "add a [[device]] with a name and a model")
    for index, device in enumerate(topology.device):
        if device.dma_mask_bits is not None and device.model != "edu":
            raise Refusal(
                f"device[{index}].dma_mask_bits", f"a {device.model} has no DMA mask", "leave it out, or use an edu"
            )
        if device.model == "nic" and device.operations % 2:
            raise Refusal(
                f"device[{index}].operations",
                f"{device.operations} is odd, and a packet of a nic is two operations",
                f"make it {device.operations + 1}",
            )


def _peers(topology: Topology) -> None:
    by_name = {device.name: device for device in topology.device}
    for index, device in enumerate(topology.device):
        if device.peer is None:
            continue
        key = f"device[{index}].peer"
        if device.model != "nic":
            raise Refusal(key, f"{_a(device.model)} has no cable", "leave peer out; only a nic has one")
        if device.peer == device.name:
            raise Refusal(key, f'"{device.name}" is its own peer', "leave peer out for loopback")
        peer = by_name.get(device.peer)
        if peer is None:
            raise Refusal(key, f'there is no device "{device.peer}"', _existing(device.peer, by_name))
        if peer.model != "nic":
            raise Refusal(key, f'"{peer.name}" is {_a(peer.model)}, which has no cable', "name another nic")
        if peer.peer != device.name:
            raise Refusal(
                key, f'"{peer.name}" does not name "{device.name}" as its peer', f'give it peer = "{device.name}"'
            )


def _assignments(topology: Topology) -> None:
    by_name = {device.name: device for device in topology.device}
    #: by device, and by the VM that gives it away
    owner: dict[tuple[str, str | None], str] = {}
    for v, vm in enumerate(topology.vm):
        slots: dict[int, str] = {}
        for a, assign in enumerate(vm.assign):
            key = f"vm[{v}].assign[{a}]"
            if assign.device not in by_name:
                raise Refusal(
                    f"{key}.device", f'there is no device "{assign.device}"', _existing(assign.device, by_name)
                )
            if (assign.device, vm.parent) in owner:
                raise Refusal(
                    f"{key}.device",
                    f'"{assign.device}" is assigned to "{owner[assign.device, vm.parent]}" already',
                    "a device has one user: assign it once",
                )
            owner[assign.device, vm.parent] = vm.name
            if assign.slot is not None:
                if assign.slot in slots:
                    raise Refusal(
                        f"{key}.slot",
                        f'slot {assign.slot} of "{vm.name}" is taken by "{slots[assign.slot]}"',
                        "give it another, or leave slot out",
                    )
                slots[assign.slot] = assign.device
        for c, card in enumerate(vm.virtio_net):
            if card.slot is not None:
                if card.slot in slots:
                    raise Refusal(
                        f"vm[{v}].virtio_net[{c}].slot",
                        f'slot {card.slot} of "{vm.name}" is taken by "{slots[card.slot]}"',
                        "give it another, or leave slot out",
                    )
                slots[card.slot] = card.name


def _edits(topology: Topology) -> None:
    for v, vm in enumerate(topology.vm):
        for a, assign in enumerate(vm.assign):
            for e, edit in enumerate(assign.edit):
                key = f"vm[{v}].assign[{a}].edit[{e}]"
                if edit.hide is not None and (edit.offset, edit.mask, edit.value) == (None, None, None):
                    continue
                if edit.hide is not None or edit.offset is None or edit.mask is None or edit.value is None:
                    raise Refusal(
                        key,
                        "is neither one capability to hide nor one dword to change",
                        'write {hide = "pm"}, or {offset = 0x2C, mask = 0xFFFF, value = 0x1AF4}',
                    )
                if edit.offset % 4 or edit.offset + 4 > CONFIG_SPACE:
                    raise Refusal(
                        f"{key}.offset",
                        f"{edit.offset:#x} is no dword of configuration space",
                        f"use a multiple of 4 below {CONFIG_SPACE:#x}",
                    )
                if edit.value & ~edit.mask:
                    raise Refusal(
                        f"{key}.value", f"{edit.value:#x} has bits outside the mask {edit.mask:#x}", "widen the mask"
                    )


def _viommus(topology: Topology) -> None:
    for index, vm in enumerate(topology.vm):
        if vm.viommu is not None and vm.viommu.eim and not vm.viommu.intremap:
            raise Refusal(f"vm[{index}].viommu.eim", "is a mode of interrupt remapping", "set intremap = true")
        if vm.viommu is None or not vm.assign:
            continue
        if not vm.viommu.caching_mode:
            raise Refusal(
                f"vm[{index}].viommu.caching_mode",
                CACHING_MODE_NEEDED.removesuffix("."),
                f'set caching_mode = true, or take "{vm.assign[0].device}" out of "{vm.name}"',
            )
        if vm.viommu.aw_bits > topology.host.iommu.aw_bits:
            raise Refusal(
                f"vm[{index}].viommu.aw_bits",
                f"the host's IOMMU has {topology.host.iommu.aw_bits} bits, so an IOVA of {vm.viommu.aw_bits} bits"
                " cannot be shadowed",
                f"set aw_bits = {topology.host.iommu.aw_bits}",
            )


def _host_kernel(topology: Topology) -> None:
    key, options = "host.cmdline", CommandLine(topology.host.cmdline)
    if options.values("vfio-pci.ids"):
        raise Refusal(key, "vfio-pci.ids is filled in from the assignments", "leave it out")
    limit = options.get("vfio_iommu_type1.dma_entry_limit", "1")
    if not limit.isdecimal():
        raise Refusal(key, f'vfio_iommu_type1.dma_entry_limit="{limit}" is no number', "write one, such as 65535")
    if not any(vm.assign for vm in topology.vm):
        return
    if setting_of(options.text, has_iommu=True) == "none":
        raise Refusal(key, "VFIO cannot assign a device without the host's IOMMU", "add intel_iommu=on")
    remaps = topology.host.iommu.intremap and options.get("intremap") != "off"
    if not remaps and not options.enabled("vfio_iommu_type1.allow_unsafe_interrupts"):
        raise Refusal(
            key,
            "No interrupt remapping support, so VFIO refuses to assign a device",
            "set host.iommu.intremap = true without intremap=off, or accept forged interrupts:"
            " vfio_iommu_type1.allow_unsafe_interrupts=1",
        )


def _static_pools(topology: Topology) -> None:
    """A wrong address after `nic.static=` would quietly leave that device dynamic."""
    models: dict[str, str] = {device.name: device.model for device in topology.device}
    models |= {card.name: "virtio-net" for vm in topology.vm for card in vm.virtio_net}
    for index, vm in enumerate(topology.vm):
        there = {bdf: models[name] for name, bdf in guest_bdfs(vm).items()}
        for parameter, address in _static_words(vm):
            model = _STATIC[parameter]
            if there.get(address.removeprefix("0000:")) != model:
                found = ", ".join(f"{bdf} ({model})" for bdf, model in there.items()) or "no device"
                raise Refusal(
                    f"vm[{index}].cmdline",
                    f'{parameter} names "{address}", and no such {model} is there',
                    f'"{vm.name}" has {found}',
                )


def _static_words(vm: Vm) -> Iterator[tuple[str, str]]:
    options = CommandLine(vm.cmdline)
    for parameter in _STATIC:
        for address in options.values(parameter):
            yield parameter, address


def _reach(topology: Topology) -> None:
    """An edu whose driver hands it physical addresses must be able to drive all their bits."""
    vm_of = {assign.device: vm for vm in topology.vm for assign in vm.assign}
    for index, device in enumerate(topology.device):
        if device.model != "edu" or not device.operations:
            continue
        vm = vm_of.get(device.name)
        if vm is None:
            setting, top = setting_of(topology.host.cmdline, has_iommu=True), _HOST_TOP
        else:
            setting, top = setting_of(vm.cmdline, vm.viommu is not None), _guest_top(bytes_of(vm.memory))
        bits = device.dma_mask_bits or EDU_DMA_MASK_BITS
        if setting != "strict" and top > 1 << bits:
            raise Refusal(
                f"device[{index}].dma_mask_bits",
                f"{bits} bits do not reach all memory of {vm.name if vm else 'the host'}, and no IOMMU translates",
                f"set it to {(top - 1).bit_length()} or more",
            )


def _guest_top(memory: int) -> int:
    """A guest's RAM is at 0; what is over 2 GiB starts at 4 GiB."""
    return memory if memory <= 2 << 30 else memory + (2 << 30)


def _attacks(topology: Topology) -> None:
    vm_of = {assign.device: vm.name for vm in topology.vm for assign in vm.assign}
    for d, device in enumerate(topology.device):
        for r, attack in enumerate(device.rogue):
            key = f"device[{d}].rogue[{r}]"
            if attack not in PLAYABLE:
                guess = did_you_mean(attack, PLAYABLE)
                raise Refusal(key, f'there is no attack "{attack}"', guess or f"known are {', '.join(PLAYABLE)}")
            if PLAYABLE[attack].by == "back end":
                remedy = "give it to a [[vm.virtio_net]]"
                raise Refusal(key, f'"{attack}" is an attack of the back end of an emulated device', remedy)
            if attack in device.rogue[:r]:
                raise Refusal(key, f'"{attack}" stands there twice', "name each attack once")
            if PLAYABLE[attack].targets == (Target.OTHER_GUEST,) and not _other_guest(device, vm_of, topology):
                raise Refusal(
                    key, f'"{attack}" aims at another guest, and there is none', f"add a [[vm]], or take {attack} out"
                )


def _other_guest(device: Device, vm_of: dict[str, str], topology: Topology) -> bool:
    return any(vm.name != vm_of.get(device.name) for vm in topology.vm)


def _existing(wrong: str, names: dict[str, Device]) -> str:
    return did_you_mean(wrong, names) or f"the devices are {', '.join(names)}"


def _a(model: str) -> str:
    return f"an {model}" if model[0] in "aeiou" else f"a {model}"
