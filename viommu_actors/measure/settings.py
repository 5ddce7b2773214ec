"""One topology in the settings that are compared: everything else about them is the same."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from viommu_actors.topology.errors import Refusal
from viommu_actors.topology.model import Device, Topology
from viommu_actors.topology.refusals import check
from viommu_actors.topology.resolve import guest_bdfs, resolve
from viommu_actors.topology.resolved import ResolvedTopology
from viommu_actors.topology.settings import setting_of
from viommu_actors.topology.values import MAX_DEVICES, Placement
from viommu_actors.topology.vm import Vm

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
_REMEDY = "start from a copy of configs/latency.toml"


def settings_of(topology: Topology, placement: Placement) -> dict[str, ResolvedTopology]:
    """The topology in each of `SETTINGS`. Raises Refusal where it has no guest to measure."""
    index, vm = _measured(topology)
    models = {device.name: device.model for device in topology.device}
    nics = ",".join(bdf for name, bdf in guest_bdfs(vm).items() if models.get(name) == "nic")
    quiet = tuple(replace(device, rogue=()) for device in topology.device)
    base = replace(topology, placement=placement, device=quiet)

    def with_vm(changed: Vm) -> Topology:
        return replace(base, vm=(*base.vm[:index], changed, *base.vm[index + 1 :]))

    crowd = tuple(Device(name=f"edu{number}", model="edu") for number in range(FAN_IN))
    made = {
        "strict": base,
        "static": with_vm(replace(vm, cmdline=f"{vm.cmdline} nic.static={nics}")),
        "passthrough": with_vm(replace(vm, cmdline=f"{vm.cmdline} iommu=pt")),
        "none": with_vm(replace(vm, viommu=None)),
        "host": replace(base, vm=(), vswitch=()),
        "many": replace(base, vm=(), vswitch=(), device=crowd),
    }
    for each in made.values():
        check(each)
    return {name: resolve(each) for name, each in made.items()}


def _measured(topology: Topology) -> tuple[int, Vm]:
    """The first VM that has a vIOMMU, strict, and a nic and an edu."""
    models = {device.name: device.model for device in topology.device}
    for index, vm in enumerate(topology.vm):
        has = {models[assign.device] for assign in vm.assign}
        if vm.viommu is not None and setting_of(vm.cmdline, has_iommu=True) == "strict" and has >= {"nic", "edu"}:
            if "nic.static" in vm.cmdline:
                raise Refusal(f"vm[{index}].cmdline", "has nic.static, so nothing would be mapped", "leave it out")
            return index, vm
    raise Refusal("vm", "no VM has a vIOMMU, intel_iommu=on without iommu=pt, a nic and an edu", _REMEDY)
