"""One topology in the settings that are compared: everything else about them is the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

from msgspec.structs import replace

from viommu_actors.topology.errors import Refusal
from viommu_actors.topology.model import Device, Topology
from viommu_actors.topology.refusals import check
from viommu_actors.topology.resolve import guest_bdfs, resolve
from viommu_actors.topology.resolved import ResolvedTopology
from viommu_actors.topology.settings import setting_of
from viommu_actors.topology.values import MAX_DEVICES, Placement
from viommu_actors.topology.vm import Assign, Vm

Model = Literal["nic", "edu"]
MODELS: Final[tuple[Model, ...]] = get_args(Model)
#: Setting -> what it is.
SETTINGS: Final = {
    "strict": "assigned, behind a vIOMMU, each buffer mapped and unmapped",
    "static": "assigned, behind a vIOMMU, a pool mapped once",
    "passthrough": "assigned, the vIOMMU lets it pass",
    "none": "assigned, no vIOMMU",
    "host": "driven by the host's kernel",
    "many": f"{MAX_DEVICES} devices, driven by the host's kernel",
}
FAN_IN: Final = MAX_DEVICES
_STATIC = "nic.static="
_REMEDY = "start from a copy of configs/latency.toml"


class Subject(NamedTuple):
    """What is measured: a VM, a nic and an edu that its kernel drives; 1 is the depth of a VM on the host."""

    vm: str
    nic: str
    edu: str
    #: those of them that the topology lacks, so that the laboratory has added them
    added: tuple[str, ...] = ()
    depth: int = 1

    def device(self, model: Model) -> str:
        return self.nic if model == "nic" else self.edu


class Settings(NamedTuple):
    """What is measured, and the topology in each of `SETTINGS`."""

    subject: Subject
    topologies: dict[str, ResolvedTopology]


def settings_of(topology: Topology, placement: Placement, vm: str | None = None) -> Settings:
    """`vm` names the VM that is measured; without, the one that drives most of what is needed, the first of several.

    VMs in the measured one are left out: its kernel drives what it would hand on. Raises Refusal where there is no
    guest to measure.
    """
    chosen = _chosen(topology, vm)
    subject, base = _completed(_alone(topology, chosen), chosen.name)
    base = replace(base, placement=placement, device=tuple(replace(device, rogue=()) for device in base.device))
    measured = next(each for each in base.vm if each.name == subject.vm)
    bare = replace(base, vm=(), vswitch=())

    def with_vm(**changed: Any) -> Topology:
        return replace(base, vm=tuple(replace(each, **changed) if each is measured else each for each in base.vm))

    nics = ",".join(guest_bdfs(measured)[name] for name in _movable(base, measured) if _model(base, name) == "nic")
    crowd = tuple(Device(name=f"edu{number}", model="edu") for number in range(FAN_IN))
    made = {
        "strict": base,
        "static": with_vm(cmdline=f"{measured.cmdline} {_STATIC}{nics}"),
        "passthrough": with_vm(cmdline=f"{measured.cmdline} iommu=pt"),
        "none": with_vm(viommu=None, assign=tuple(replace(each, bypass_iommu=False) for each in measured.assign)),
        "host": bare,
        "many": replace(bare, device=crowd, switch=(), bridge=()),
    }
    for each in made.values():
        check(each)
    return Settings(subject, {name: resolve(each) for name, each in made.items()})


def quiet(topology: Topology, placement: Placement) -> ResolvedTopology:
    """The topology for honest work of all devices. Raises Refusal where no device can work by itself."""
    if all(device.peer is not None for device in topology.device):
        raise Refusal("device", "none works by itself: all are on cables, or there is none", _REMEDY)
    return resolve(
        replace(topology, placement=placement, device=tuple(replace(each, rogue=()) for each in topology.device))
    )


def _chosen(topology: Topology, name: str | None) -> Vm:
    """That of the name, or the first of those that drive most of what is needed. It has to be strict."""
    strict = [vm for vm in topology.vm if vm.viommu and setting_of(vm.cmdline, has_iommu=True) == "strict"]
    if name is not None:
        if name not in {vm.name for vm in topology.vm}:
            raise Refusal("vm", f"none has the name {name!r:.40}", f"name one of {_names(topology.vm)}")
        strict = [vm for vm in strict if vm.name == name]
    if not strict:
        which = "no VM has" if name is None else f"{name} does not have"
        raise Refusal("vm", f"{which} a vIOMMU, intel_iommu=on, and no iommu=pt", _REMEDY)

    def drives(vm: Vm) -> int:
        handed = {assign.device for each in topology.vm if each.parent == vm.name for assign in each.assign}
        return len({_model(topology, device) for device in _movable(topology, vm) if device not in handed})

    return max(strict, key=drives)


def _alone(topology: Topology, chosen: Vm) -> Topology:
    """Without the VMs in the chosen one, and without its applications, which take devices from its kernel."""
    parents = {vm.name: vm.parent for vm in topology.vm}

    def within(name: str | None) -> bool:
        return name is not None and (parents[name] == chosen.name or within(parents[name]))

    cmdline = " ".join(word for word in chosen.cmdline.split() if not word.startswith(_STATIC))
    vms = tuple(
        replace(vm, app=(), cmdline=cmdline) if vm is chosen else vm for vm in topology.vm if not within(vm.name)
    )
    served = {card.vswitch for vm in vms for card in vm.virtio_net}
    return replace(topology, vm=vms, vswitch=tuple(each for each in topology.vswitch if each.name in served))


def _completed(topology: Topology, name: str) -> tuple[Subject, Topology]:
    """With a nic and an edu for the VM, each handed down to it from the host."""
    vms = {vm.name: vm for vm in topology.vm}
    found = {_model(topology, device): device for device in reversed(_movable(topology, vms[name]))}
    added = {model: f"laboratory-{model}" for model in MODELS if model not in found}
    line, each = set(), vms[name]
    while each.name not in line:
        line.add(each.name)
        each = vms[each.parent or each.name]
    assigned = tuple(Assign(device=device) for device in added.values())
    devices = tuple(Device(name=device, model=model) for model, device in added.items())
    found |= added
    with_assigned = (replace(vm, assign=(*vm.assign, *assigned)) if vm.name in line else vm for vm in topology.vm)
    subject = Subject(name, found["nic"], found["edu"], tuple(added.values()), len(line))
    return subject, replace(topology, device=(*topology.device, *devices), vm=tuple(with_assigned))


def _movable(topology: Topology, vm: Vm) -> list[str]:
    """Devices of the VM that move data to themselves and back, behind its vIOMMU."""
    cabled = {device.name for device in topology.device if device.peer is not None}
    return [assign.device for assign in vm.assign if not assign.bypass_iommu and assign.device not in cabled]


def _model(topology: Topology, name: str) -> Model:
    return next(device.model for device in topology.device if device.name == name)


def _names(vms: Sequence[Vm]) -> str:
    return ", ".join(vm.name for vm in vms) or "none: there is no VM"
