"""A VM in a VM: what is filled in at each level, and what is refused."""

from __future__ import annotations

import os

import pytest

from viommu_actors.supervise.plan import make_plan
from viommu_actors.topology.errors import Refusal
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve

TOWER = """
name = "tower"
[[device]]
name = "nic0"
model = "nic"
[[device]]
name = "edu0"
model = "edu"
dma_mask_bits = 40
[[vm]]
name = "vm0"
memory = "64M"
[vm.viommu]
[[vm.assign]]
device = "edu0"
[[vm.assign]]
device = "nic0"
slot = 7
[[vm]]
name = "vm1"
parent = "vm0"
memory = "32M"
[vm.viommu]
[[vm.assign]]
device = "nic0"
slot = 4
[[vm]]
name = "vm2"
parent = "vm1"
memory = "16M"
[[vm.assign]]
device = "nic0"
"""
MIB = 1 << 20
EDU = '[vm.viommu]\n[[vm.assign]]\ndevice = "edu0"'


def test_each_level_names_the_device_as_the_one_above_it_does() -> None:
    resolved = resolve(parse(TOWER))
    nic = {vm.name: (each.host_bdf, each.bdf) for vm in resolved.vms for each in vm.assign if each.device == "nic0"}
    assert nic == {"vm0": ("01:00.0", "00:07.0"), "vm1": ("00:07.0", "00:04.0"), "vm2": ("00:04.0", "00:03.0")}
    assert resolved.device("nic0").vm == "vm2" and resolved.device("edu0").vm == "vm0"
    assert [vm.cmdline for vm in resolved.vms] == [
        "intel_iommu=on vfio-pci.ids=00:07.0 hugepages=16 edu.dma_bits=40",
        "intel_iommu=on vfio-pci.ids=00:04.0 hugepages=8",
        "intel_iommu=on",
    ]
    assert [vm.name for vm in resolved.line("vm2")] == ["vm0", "vm1", "vm2"]
    assert [vm.name for vm in resolved.within("vm0")] == ["vm1", "vm2"]


def test_a_nested_vms_memory_is_a_slot_of_each_kernel_above_and_all_that_its_processes_get() -> None:
    plan = make_plan(resolve(parse(TOWER)))
    ram = {actor.name: actor.configuration["ram"] for actor in plan.actors if actor.role in ("hypervisor", "guest")}
    files = {name: [os.fstat(slot["fd"]).st_ino for slot in slots] for name, slots in ram.items()}
    plan.close()
    # Its own part, and the one below it.
    assert [(slot["name"], slot["gpa"], slot["size"]) for slot in ram["vm0.guest"]] == [
        ("ram", 0, 32 * MIB),
        ("ram:vm1", 32 * MIB, 16 * MIB),
        ("ram:vm2", 48 * MIB, 16 * MIB),
    ]
    assert [(slot["name"], slot["gpa"]) for slot in ram["vm1.guest"]] == [("ram:vm1", 0), ("ram:vm2", 16 * MIB)]
    assert [(slot["name"], slot["gpa"]) for slot in ram["vm2.guest"]] == [("ram:vm2", 0)]
    assert files["vm0.guest"][1:] == files["vm1.guest"] == files["vm1.hypervisor"]
    assert files["vm1.guest"][1:] == files["vm2.guest"] == files["vm2.hypervisor"]
    for actor in plan.actors:
        if actor.role in ("hypervisor", "guest"):
            assert set(actor.fds) == {actor.inbox.fd, *(slot["fd"] for slot in actor.configuration["ram"])}


def test_no_name_of_a_nested_vm_is_that_of_another_part() -> None:
    text = TOWER.replace('"64M"', '"3G"').replace('"vm1"', '"high"')
    plan = make_plan(resolve(parse(text)))
    ram = {actor.name: actor.configuration["ram"] for actor in plan.actors if actor.role == "guest"}
    plan.close()
    names = [slot["name"] for slot in ram["vm0.guest"]]
    assert names == ["ram", "ram-high", "ram:high", "ram:vm2"]
    assert [slot["name"] for slot in ram["high.guest"]] == ["ram:high", "ram:vm2"]
    [row] = next(actor for actor in plan.actors if actor.name == "vm0.guest").configuration["vms"]
    assert [slot["name"] for slot in row["ram"]] == ["ram:high", "ram:vm2"]


@pytest.mark.parametrize(
    ("old", "new", "key", "reason"),
    [
        ('parent = "vm1"', 'parent = "vm2"', "vm[2].parent", 'no VM "vm2" stands above "vm2"'),
        ('memory = "16M"', 'memory = "32M"', "vm[2].memory", "room for 24M"),
        ('memory = "64M"', 'memory = "36M"', "vm[1].memory", "room for 28M"),
        ("slot = 7", 'slot = 7\nbypass_iommu = true', "vm[1].assign[0].device", "has no IOMMU group"),
        ("[vm.viommu]\n[[vm.assign]]\ndevice = \"nic0\"\nslot = 4", "[[vm.assign]]\ndevice = \"nic0\"\nslot = 4",
         "vm[2].assign[0].device", "0000:00:04.0 has no IOMMU group"),
        ("slot = 4", 'slot = 4\n[[vm.assign]]\ndevice = "edu1"', "vm[1].assign[1].device", 'no device "edu1"'),
        ('[[vm.assign]]\ndevice = "nic0"\nslot = 7', "", "vm[1].assign[0].device", "no device \"nic0\" to give away"),
        (EDU, EDU.replace("]", "]\nintremap = false", 1), "vm[1].assign[0].device", "No interrupt remapping support"),
        (EDU, EDU.replace("]", "]\naw_bits = 39", 1), "vm[1].viommu.aw_bits", "has 39 bits"),
    ],
)  # fmt: skip
def test_what_cannot_be_nested_is_refused(old: str, new: str, key: str, reason: str) -> None:
    assert TOWER.count(old) == 1
    with pytest.raises(Refusal) as refused:
        parse(TOWER.replace(old, new))
    assert refused.value.key == key and reason in refused.value.problem
