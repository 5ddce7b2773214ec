"""One topology in every setting that is compared, and which topologies cannot be measured."""

from __future__ import annotations

import pytest

from tests.topologies.launcher import CONFIGS
from viommu_actors.measure.settings import FAN_IN, SETTINGS, Subject, quiet, settings_of
from viommu_actors.topology.errors import Refusal
from viommu_actors.topology.load import load, parse
from viommu_actors.topology.model import Topology
from viommu_actors.topology.resolved import ResolvedTopology
from viommu_actors.topology.values import Placement

TEXT = (CONFIGS / "latency.toml").read_text()


def topologies(topology: Topology, placement: Placement) -> dict[str, ResolvedTopology]:
    return settings_of(topology, placement).topologies


def test_the_settings_differ_in_what_they_are_named_for_only() -> None:
    made = topologies(load(CONFIGS / "latency.toml"), "spread")
    assert made.keys() == SETTINGS.keys()
    assert all(topology.placement == "spread" for topology in made.values())
    assert {name: topology.setting("nic0") for name, topology in made.items() if name != "many"} == {
        "strict": "strict",
        "static": "strict",
        "passthrough": "passthrough",
        "none": "none",
        "host": "strict",
    }
    assert "nic.static=00:03.0" in made["static"].vm("vm0").cmdline
    assert made["none"].vm("vm0").viommu is None and made["none"].device("nic0").vm == "vm0"
    assert made["host"].vms == () and made["host"].device("nic0").vm is None
    assert len(made["many"].devices) == FAN_IN == 16


def test_rogues_are_quiet_while_they_are_measured() -> None:
    made = topologies(parse(TEXT.replace('model = "nic"', 'model = "nic"\nrogue = ["A1"]')), "pack")
    assert not any(device.rogue for topology in made.values() for device in topology.devices)


def test_a_virtual_switch_is_there_where_its_guests_are() -> None:
    cards = "".join(f'[[vm.virtio_net]]\nname = "vnet{n}"\nvswitch = "ovs"\n' for n in range(2))
    made = topologies(parse(TEXT + cards + '[[vswitch]]\nname = "ovs"\n'), "pack")
    assert {name for name, topology in made.items() if topology.vswitches} == made.keys() - {"host", "many"}


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("[vm.viommu]", "", "vm"),
        ('cmdline = "intel_iommu=on"\n\n[vm.viommu]', 'cmdline = "intel_iommu=on iommu=pt"\n\n[vm.viommu]', "vm"),
        ('cmdline = "intel_iommu=on"\n\n[vm.viommu]', 'cmdline = ""\n\n[vm.viommu]', "vm"),
    ],
)
def test_a_topology_without_a_strict_guest_is_refused(old: str, new: str, key: str) -> None:
    assert old in TEXT
    with pytest.raises(Refusal) as refused:
        settings_of(parse(TEXT.replace(old, new)), "pack")
    assert refused.value.key == key and refused.value.remedy


#: What is measured of the topologies that teach, and which VMs are up then.
EDU, BOTH = ("laboratory-edu",), ("laboratory-nic", "laboratory-edu")
MEASURED = {
    "latency": (Subject("vm0", "nic0", "edu0"), ["vm0"]),
    "matrix": (Subject("vm0", "rogue", "neighbour"), ["vm0", "vm1"]),
    "dynamic-vs-static": (Subject("vm0", "nic0", *EDU, EDU), ["vm0"]),
    "two-guests": (Subject("vm0", *BOTH, BOTH), ["vm0", "vm1"]),
    "dpdk-noiommu": (Subject("vm0", "nic0", *EDU, EDU), ["vm0"]),
    "nested": (Subject("vm0", "nic0", *EDU, EDU), ["vm0"]),
    "nested-l2-viommu": (Subject("vm1", "nic0", *EDU, EDU, 2), ["vm0", "vm1"]),
    "vswitch": (Subject("vm0", *BOTH, BOTH), ["vm0", "vm1"]),
}


@pytest.mark.parametrize("name", MEASURED)
def test_what_the_topology_lacks_is_added(name: str) -> None:
    subject, made = settings_of(load(CONFIGS / f"{name}.toml"), "pack")
    assert (subject, [vm.name for vm in made["strict"].vms]) == MEASURED[name]
    for setting in ("strict", "static", "passthrough", "none"):
        for device in (made[setting].device(subject.nic), made[setting].device(subject.edu)):
            assert device.vm == subject.vm and device.peer is None and device.app is None
    assert {vm.name: vm.cmdline.count("nic.static=") for vm in made["static"].vms}[subject.vm] == 1
    assert "nic.static=" not in made["strict"].vm(subject.vm).cmdline
    assert [device.model for device in made["many"].devices] == ["edu"] * FAN_IN


def test_all_others_that_teach_have_no_strict_guest() -> None:
    refused = set()
    for path in CONFIGS.glob("*.toml"):
        try:
            settings_of(load(path), "free")
        except Refusal as refusal:
            assert refusal.key == "vm" and "has a vIOMMU" in refusal.problem
            refused.add(path.stem)
    assert refused == {
        *("assigned-no-viommu", "ats", "bridge", "dpdk", "dpdk-interrupts", "host-driver"),
        *("rogue-switch-no-viommu", "vswitch-no-viommu"),
    }


def test_a_vm_is_chosen_by_its_name_and_those_in_it_are_left_out() -> None:
    depths = load(CONFIGS / "nested-depths.toml")
    for vm, nic in (("vm0", "nic1"), ("vm1", "nic2"), ("vm2", "nic3")):
        subject, made = settings_of(depths, "pack", vm)
        assert subject.vm == made["strict"].vms[-1].name == vm and subject.depth == len(made["strict"].vms)
        assert made["strict"].device(subject.nic).vm == vm, nic
    with pytest.raises(Refusal, match="name one of vm0, vm1, vm2"):
        settings_of(depths, "pack", "vm3")
    with pytest.raises(Refusal, match="vm0 does not have a vIOMMU"):
        settings_of(load(CONFIGS / "assigned-no-viommu.toml"), "pack", "vm0")


def test_a_soak_takes_any_topology_with_a_device_that_works_by_itself() -> None:
    soaked = quiet(load(CONFIGS / "host-driver.toml"), "free")
    assert soaked.placement == "free" and not any(device.rogue for device in soaked.devices)
    with pytest.raises(Refusal, match="none works by itself"):
        quiet(load(CONFIGS / "vswitch.toml"), "free")
