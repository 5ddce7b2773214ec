"""One topology in every setting that is compared, and which topologies cannot be measured."""

from __future__ import annotations

import pytest

from tests.topologies.launcher import CONFIGS
from viommu_actors.measure.settings import FAN_IN, SETTINGS, settings_of
from viommu_actors.topology.errors import Refusal
from viommu_actors.topology.load import load, parse

TEXT = (CONFIGS / "latency.toml").read_text()


def test_the_settings_differ_in_what_they_are_named_for_only() -> None:
    made = settings_of(load(CONFIGS / "latency.toml"), "spread")
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
    made = settings_of(parse(TEXT.replace('model = "nic"', 'model = "nic"\nrogue = ["A1"]')), "pack")
    assert not any(device.rogue for topology in made.values() for device in topology.devices)


def test_a_virtual_switch_is_there_where_its_guests_are() -> None:
    cards = "".join(f'[[vm.virtio_net]]\nname = "vnet{n}"\nvswitch = "ovs"\n' for n in range(2))
    made = settings_of(parse(TEXT + cards + '[[vswitch]]\nname = "ovs"\n'), "pack")
    assert {name for name, topology in made.items() if topology.vswitches} == made.keys() - {"host", "many"}


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("[vm.viommu]", "", "vm"),
        ('cmdline = "intel_iommu=on"\n\n[vm.viommu]', 'cmdline = "intel_iommu=on iommu=pt"\n\n[vm.viommu]', "vm"),
        ('cmdline = "intel_iommu=on"\n\n[vm.viommu]', 'cmdline = ""\n\n[vm.viommu]', "vm"),
        ('[[vm.assign]]\ndevice = "edu0"', "", "vm"),
        (
            'cmdline = "intel_iommu=on"\n\n[vm.viommu]',
            'cmdline = "intel_iommu=on nic.static=00:03.0"\n\n[vm.viommu]',
            "vm[0].cmdline",
        ),
    ],
)
def test_a_topology_without_a_strict_guest_is_refused(old: str, new: str, key: str) -> None:
    assert old in TEXT
    with pytest.raises(Refusal) as refused:
        settings_of(parse(TEXT.replace(old, new)), "pack")
    assert refused.value.key == key and refused.value.remedy
