"""Defaults, PCI addresses and command lines as they are filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.devices.rig import Rig
from tests.kernel.test_drivers import a_nic, an_edu
from viommu_actors.attacks.catalogue import DmaSetting
from viommu_actors.pci.component import BridgeConfig, SwitchConfig
from viommu_actors.spec.pci import format_bdf, parse_bdf
from viommu_actors.topology.load import load, parse
from viommu_actors.topology.resolve import bytes_of, resolve
from viommu_actors.topology.resolved import ResolvedTopology
from viommu_actors.topology.settings import setting_of

TOPOLOGY = """
name = "t"
[[device]]
name = "a"
model = "nic"
slot = 7
[[device]]
name = "b"
model = "edu"
[[device]]
name = "c"
model = "nic"
rogue = ["A1"]
[[vm]]
name = "vm0"
memory = "1G"
cmdline = "intel_iommu=on iommu=pt"
[vm.viommu]
[[vm.assign]]
device = "c"
[[vm.assign]]
device = "a"
slot = 3
"""


@pytest.fixture
def resolved() -> ResolvedTopology:
    return resolve(parse(TOPOLOGY))


def test_free_slots_are_given_in_order(resolved: ResolvedTopology) -> None:
    assert {device.name: device.slot for device in resolved.devices} == {"a": 7, "b": 1, "c": 2}
    assert {assign.device: assign.bdf for assign in resolved.vm("vm0").assign} == {"c": "00:04.0", "a": "00:03.0"}


def test_buses_follow_the_slots_as_enumeration_does(resolved: ResolvedTopology) -> None:
    assert {device.name: device.bdf for device in resolved.devices} == {"b": "01:00.0", "c": "02:00.0", "a": "03:00.0"}
    assert [assign.host_bdf for assign in resolved.vm("vm0").assign] == ["02:00.0", "03:00.0"]


FABRIC = """
name = "fabric"
[[device]]
name = "first"
model = "nic"
behind = "br0"
[[device]]
name = "plain"
model = "edu"
slot = 2
[[device]]
name = "second"
model = "nic"
behind = "sw0"
[[device]]
name = "third"
model = "nic"
behind = "sw0"
[[device]]
name = "fourth"
model = "nic"
behind = "br0"
[[switch]]
name = "sw0"
slot = 3
acs = false
[[bridge]]
name = "br0"
"""


def test_what_is_behind_a_switch_or_bridge_has_a_link_and_an_address_there() -> None:
    resolved = resolve(parse(FABRIC))
    places = {device.name: (device.slot, device.link, device.bdf, device.requester) for device in resolved.devices}
    assert places == {
        "first": (1, "br0.0", "02:00.0", "02:00.0"),
        "fourth": (1, "br0.1", "02:01.0", "02:00.0"),
        "plain": (2, "slot2", "03:00.0", "03:00.0"),
        "second": (3, "sw0.0", "06:00.0", "06:00.0"),
        "third": (3, "sw0.1", "07:00.0", "07:00.0"),
    }
    assert [(each.name, each.kind, each.devices) for each in resolved.components] == [
        ("sw0", "switch", ("second", "third")),
        ("br0", "bridge", ("first", "fourth")),
    ]


def test_the_port_that_a_devices_link_ends_at_decides_about_its_name() -> None:
    resolved = resolve(parse(FABRIC))
    settings = {device.name: resolved.setting_for("acs", device.name) for device in resolved.devices}
    assert {name for name, setting in settings.items() if setting == "acs-off"} == {"second", "third"}


def test_a_kernel_finds_the_devices_where_it_is_told() -> None:
    resolved = resolve(parse(FABRIC))
    machine = rig_of(resolved)
    found = {format_bdf(device.bdf) for device in machine.kernel.pci}
    assert {device.bdf for device in resolved.devices} <= found
    for device in resolved.devices:
        driver = machine.kernel.drivers[parse_bdf(device.bdf)]
        assert driver.name == device.model, device


def rig_of(resolved: ResolvedTopology) -> Rig:
    """The host of a topology in one process."""
    factories = {device.name: a_nic() if device.model == "nic" else an_edu() for device in resolved.devices}
    components: dict[int, Any] = {}
    for each in resolved.components:
        count = len(each.devices)
        config = SwitchConfig(each.name, count, each.acs) if each.kind == "switch" else BridgeConfig(each.name, count)
        components[each.slot] = config, [factories[name] for name in each.devices]
    plain = {device.slot: factories[device.name] for device in resolved.devices if device.behind is None}
    return Rig(plain, components=components)


def test_who_drives_what(resolved: ResolvedTopology) -> None:
    assert {device.name: device.vm for device in resolved.devices} == {"a": "vm0", "b": None, "c": "vm0"}
    assert {name: resolved.setting(name) for name in "abc"} == {"a": "passthrough", "b": "strict", "c": "passthrough"}


def test_the_host_leaves_to_vfio_what_is_assigned(resolved: ResolvedTopology) -> None:
    assert resolved.host.cmdline.endswith(" vfio-pci.ids=02:00.0,03:00.0")


def test_only_an_edu_has_a_mask(resolved: ResolvedTopology) -> None:
    assert (resolved.device("b").dma_mask_bits, resolved.device("a").dma_mask_bits) == (28, None)


def test_the_driver_is_told_of_another_mask() -> None:
    text = TOPOLOGY.replace('model = "edu"', 'model = "edu"\ndma_mask_bits = 24')
    assert resolve(parse(text)).host.cmdline.endswith(" vfio-pci.ids=02:00.0,03:00.0 edu.dma_bits=24")
    assert resolve(parse(text)).vm("vm0").cmdline == "intel_iommu=on iommu=pt"
    own = text.replace(
        "[[vm]]",
        '[host]\ncmdline = "intel_iommu=on edu.dma_bits=22 vfio_iommu_type1.allow_unsafe_interrupts=1"\n[[vm]]',
    )
    assert "edu.dma_bits=24" not in resolve(parse(own)).host.cmdline


def test_it_survives_json(resolved: ResolvedTopology) -> None:
    assert msgspec.json.decode(msgspec.json.encode(resolved), type=ResolvedTopology) == resolved


def test_unknown_names_are_key_errors(resolved: ResolvedTopology) -> None:
    with pytest.raises(KeyError):
        resolved.device("zzz")
    with pytest.raises(KeyError):
        resolved.vm("zzz")


@pytest.mark.parametrize(
    ("cmdline", "has_iommu", "setting"),
    [
        ("intel_iommu=on", True, "strict"),
        ("intel_iommu=on iommu=pt", True, "passthrough"),
        ("intel_iommu=on iommu.passthrough=1", True, "passthrough"),
        ("intel_iommu=on intel_iommu=off", True, "none"),
        ("iommu=pt", True, "none"),
        ("", True, "none"),
        ("intel_iommu=on", False, "none"),
    ],
)
def test_settings(cmdline: str, has_iommu: bool, setting: DmaSetting) -> None:
    assert setting_of(cmdline, has_iommu) == setting


APP = """
name = "app"

[[device]]
name = "nic0"
model = "nic"

[[device]]
name = "nic1"
model = "nic"

[[vm]]
name = "vm0"

[vm.viommu]

[[vm.assign]]
device = "nic0"

[[vm.assign]]
device = "nic1"
bypass_iommu = true

[[vm.app]]
name = "testpmd"
hugepages = "6M"

[[vm.app.port]]
device = "nic1"
driver = "noiommu"
"""


def test_an_application_has_its_hugepages_and_a_bypassing_device_no_iommu() -> None:
    resolved = resolve(parse(APP))
    [app] = resolved.vm("vm0").apps
    assert resolved.vm("vm0").cmdline == "intel_iommu=on pci=lastbus=1 hugepages=3"
    assert [(port.device, port.bdf, port.driver) for port in app.ports] == [("nic1", "01:04.0", "noiommu")]
    assert (resolved.setting("nic0"), resolved.setting("nic1")) == ("strict", "none")
    assert resolved.port("nic1") == app.ports[0] and resolved.port("nic0") is None
    assert (resolved.device("nic0").app, resolved.device("nic1").app) == (None, "testpmd")


def test_sizes() -> None:
    assert [bytes_of(size) for size in ("1K", "64M", "2G")] == [1 << 10, 64 << 20, 2 << 30]


CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_topologies(path: Path) -> None:
    resolved = resolve(load(path))
    assert resolved.name == path.stem
    processes = 1 + len(resolved.devices) + sum(2 + len(vm.apps) for vm in resolved.vms)
    assert 2 <= processes <= 12
    assert path.read_text().startswith("#:schema ./topology.schema.json\n")


def test_there_are_topologies_for_the_claims() -> None:
    assert {path.stem for path in CONFIGS} >= {
        "host-driver",
        "assigned-no-viommu",
        "assigned-viommu",
        "dynamic-vs-static",
        "two-guests",
        "switch",
        "bridge",
        "dpdk",
        "dpdk-noiommu",
    }
