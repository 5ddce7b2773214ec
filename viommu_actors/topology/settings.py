"""A topology under another setting: the same machines and devices, with one part of their protection changed."""

from __future__ import annotations

import msgspec

from viommu_actors.app.pci import UserDriver
from viommu_actors.attacks.catalogue import CATALOGUE, DmaSetting, Setting, Target
from viommu_actors.attacks.expected import BACK_ENDS, BackEndDriver, KernelDriver
from viommu_actors.kernel.cmdline import CommandLine
from viommu_actors.kernel.vfio.noiommu import PARAMETER
from viommu_actors.topology.model import Topology
from viommu_actors.topology.vm import Vm

_UNSAFE = "vfio_iommu_type1.allow_unsafe_interrupts=1"
_changed = msgspec.structs.replace


def under(topology: Topology, setting: Setting, driver: KernelDriver) -> Topology:
    """A topology that is strict everywhere, under `setting`, for rogues that `driver` drives.

    For the host's own rogues the first VM is left out; without an IOMMU in use there the host can assign nothing, so
    all VMs are. For those of guests, what no VM has is left out. `refusals.check` is still to be asked.
    """
    vms = topology.vm if driver == "guest" else () if setting == "none" else topology.vm[1:]
    if driver == "guest":
        vms = tuple(_vm(vm, setting) for vm in vms)
    host = topology.host
    remaps = setting in ("ir", "ir-nosid")
    words = [_HOST_WORDS.get(setting, "intel_iommu=on") if driver == "host" or remaps else "intel_iommu=on"]
    if vms and not remaps:
        words.append(_UNSAFE)
    iommu = _changed(host.iommu, intremap=remaps, device_iotlb=host.iommu.device_iotlb or setting == "ats")
    host = _changed(host, cmdline=" ".join(words).strip(), iommu=iommu, acs=setting != "acs-off")
    conventional = {bridge.name for bridge in topology.bridge}
    devices = tuple(
        _changed(device, ats=setting == "ats" and device.behind not in conventional) for device in topology.device
    )
    if driver == "guest":
        assigned = {assign.device for vm in vms for assign in vm.assign}
        devices = tuple(device for device in devices if device.name in assigned)
    there = {device.behind for device in devices}
    served = {card.vswitch for vm in vms for card in vm.virtio_net}
    if not vms:
        devices = tuple(_changed(device, rogue=_without_guests(device.rogue)) for device in devices)
    return _changed(
        topology,
        name=f"{setting}-{driver}",
        host=host,
        device=devices,
        vm=vms,
        switch=tuple(_changed(each, acs=host.acs) for each in topology.switch if each.name in there),
        bridge=tuple(each for each in topology.bridge if each.name in there),
        vswitch=tuple(each for each in topology.vswitch if each.name in served),
    )


def for_applications(topology: Topology, setting: DmaSetting, driver: UserDriver) -> Topology:
    """A topology whose guests are strict, under `setting`, with every device of an application asked for by `driver`.

    VFIO's no-iommu mode is enabled where that is asked for alone. `refusals.check` is still to be asked.
    """
    words = [_HOST_WORDS.get(setting, "intel_iommu=on")]
    if driver == "noiommu":
        words.append(f"{PARAMETER}=1")
    cmdline = " ".join(words).strip()
    vms = tuple(
        _changed(
            vm,
            cmdline=cmdline,
            viommu=None if setting == "none" else vm.viommu,
            app=tuple(
                _changed(app, port=tuple(_changed(port, driver=driver) for port in app.port)) for app in vm.app
            ),
        )
        for vm in topology.vm
    )
    return _changed(topology, name=f"{setting}-{driver}", vm=vms)


def for_back_ends(topology: Topology, setting: DmaSetting, driver: BackEndDriver) -> Topology:
    """A topology whose guests are strict, under `setting`, for the back ends of those cards that are driven so.

    Where a kernel drives them no application is there. `refusals.check` is still to be asked.
    """
    by_application = {port.device for vm in topology.vm for app in vm.app for port in app.port}
    way = next(way for way, name in BACK_ENDS.items() if name == driver)
    made = _changed(topology, vm=tuple(_changed(vm, app=()) for vm in topology.vm)) if way == "guest" else topology
    made = for_applications(made, setting, "vfio" if way == "guest" else way)
    vms = tuple(
        _changed(
            vm,
            virtio_net=tuple(
                card if (card.name in by_application) == (way != "guest") else _changed(card, rogue=())
                for card in vm.virtio_net
            ),
        )
        for vm in made.vm
    )
    return _changed(made, name=f"{setting}-{driver}", vm=vms)


def setting_of(cmdline: str, has_iommu: bool) -> DmaSetting:
    """How a kernel with this command line uses its IOMMU, as Linux reads `intel_iommu=` and `iommu=`."""
    options = CommandLine(cmdline)
    if not has_iommu or not options.iommu:
        return "none"
    return "passthrough" if options.get("iommu") == "pt" or options.enabled("iommu.passthrough") else "strict"


#: Command line of a kernel whose own devices are under a setting.
_HOST_WORDS: dict[Setting, str] = {
    "none": "",
    "passthrough": "intel_iommu=on iommu=pt",
    "ir-nosid": "intel_iommu=on intremap=nosid",
}


def _vm(vm: Vm, setting: Setting) -> Vm:
    if setting == "none":
        return _changed(vm, cmdline="", viommu=None)
    return _changed(vm, cmdline="intel_iommu=on iommu=pt") if setting == "passthrough" else vm


def _without_guests(attacks: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(attack for attack in attacks if CATALOGUE[attack].targets != (Target.OTHER_GUEST,))
