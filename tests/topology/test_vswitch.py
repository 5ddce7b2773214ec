"""Virtual switches and their cards as they are resolved, and what each process is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from viommu_actors.attacks.catalogue import PLAYABLE
from viommu_actors.attacks.expected import BASE_SETTINGS
from viommu_actors.supervise.plan import make_plan
from viommu_actors.topology.errors import Refusal
from viommu_actors.topology.load import load, parse
from viommu_actors.topology.refusals import check
from viommu_actors.topology.resolve import resolve
from viommu_actors.topology.resolved import ResolvedTopology
from viommu_actors.topology.settings import for_back_ends, under

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def resolved() -> ResolvedTopology:
    return resolve(load(CONFIGS / "vswitch.toml"))


def test_cards_take_the_slots_that_assigned_devices_leave(resolved: ResolvedTopology) -> None:
    [vnet0], [vnet1] = resolved.vm("vm0").virtio, resolved.vm("vm1").virtio
    assert (vnet0.bdf, vnet0.app) == ("00:03.0", None)
    assert (vnet1.bdf, vnet1.app) == ("00:04.0", "testpmd")
    assert vnet0.mac != vnet1.mac


def test_a_switch_has_the_ports_that_name_it(resolved: ResolvedTopology) -> None:
    assert [(vm.name, card.name) for vm, card in resolved.ports_of("ovs")] == [("vm0", "vnet0"), ("vm1", "vnet1")]
    assert resolved.setting("vnet0") == "strict"
    assert resolved.machine_of("vnet1") == resolved.machine_of("nic0") == resolved.vm("vm1")


def test_without_a_viommu_nothing_stands_between() -> None:
    assert resolve(load(CONFIGS / "vswitch-no-viommu.toml")).setting("vnet1") == "none"


def test_on_death_is_the_topologys_where_the_switch_says_nothing() -> None:
    text = (CONFIGS / "vswitch-no-viommu.toml").read_text().replace('on_death = "restart"', "")
    text = text.replace('name = "vswitch-no-viommu"', 'name = "t"\non_death = "contain"')
    assert [vswitch.on_death for vswitch in resolve(parse(text)).vswitches] == ["contain"]


def test_each_front_end_is_told_of_its_own_port_and_the_switch_has_no_memory(resolved: ResolvedTopology) -> None:
    plan = make_plan(resolved)
    try:
        actors = {actor.name: actor for actor in plan.actors}
        switch = actors["ovs"]
        told: list[dict[str, Any]] = switch.configuration["ports"]
        assert [port["name"] for port in told] == ["vnet0", "vnet1"]
        for vm, port in zip(("vm0", "vm1"), told, strict=True):
            [card] = actors[f"{vm}.hypervisor"].configuration["vm"]["virtio"]
            assert card["backend"] == port["address"]
        assert set(switch.fds) == {switch.inbox.fd, *(port["fd"] for port in told)}
        assert not switch.trusted
        again = plan.again("ovs")
        addresses = {port["address"] for port in told}
        assert [port["name"] for port in again.configuration["ports"]] == ["vnet0", "vnet1"]
        assert addresses.isdisjoint(port["address"] for port in again.configuration["ports"])
        assert again.inbox.address != switch.inbox.address
        plan.actors.append(again)
    finally:
        plan.close()
        for device in list(plan.cables):
            plan.pull(device)


def test_under_a_setting_of_the_hosts_own_devices_no_switch_is_left_alone() -> None:
    topology = load(CONFIGS / "vswitch.toml")
    changed = under(topology, "none", "host")
    assert not changed.vm and not changed.vswitch
    check(changed)
    assert under(topology, "none", "guest").vswitch == topology.vswitch


@pytest.mark.parametrize(
    ("attacks", "told"),
    [
        ('["A99"]', 'there is no attack "A99"'),
        ('["A13"]', '"A13" is none of a back end'),
        ('["A2", "A2"]', '"A2" stands there twice'),
    ],
)
def test_attacks_that_a_back_end_cannot_play_are_refused(attacks: str, told: str) -> None:
    text = 'name = "t"\n[[vswitch]]\nname = "ovs"\n[[vm]]\nname = "vm0"\n'
    text += f'[[vm.virtio_net]]\nname = "vnet0"\nvswitch = "ovs"\noperations = 0\nrogue = {attacks}\n'
    with pytest.raises(Refusal, match=told) as refused:
        parse(text)
    assert refused.value.key.startswith("vm[0].virtio_net[0].rogue[")


def test_attacks_on_another_guest_need_one() -> None:
    text = 'name = "t"\n[[vswitch]]\nname = "ovs"\n[[vm]]\nname = "vm0"\n'
    text += '[[vm.virtio_net]]\nname = "vnet0"\nvswitch = "ovs"\noperations = 0\nrogue = ["A12"]\n'
    with pytest.raises(Refusal, match="aims at another guest"):
        parse(text)


def test_an_attack_of_back_ends_is_none_of_a_device() -> None:
    with pytest.raises(Refusal, match="of the back end of an emulated device"):
        parse('name = "t"\n[[device]]\nname = "nic0"\nmodel = "nic"\nrogue = ["A55"]\n')


def test_the_shipped_rogue_switch_plays_all_that_a_back_end_can() -> None:
    cards = [card for vm in load(CONFIGS / "rogue-switch.toml").vm for card in vm.virtio_net]
    assert {attack for card in cards for attack in card.rogue} == {a.id for a in PLAYABLE.values() if a.back_end}


def test_a_card_under_each_setting_is_driven_as_it_is_to_be() -> None:
    topology = load(CONFIGS / "rogue-switch.toml")
    for setting in BASE_SETTINGS:
        by_kernel = resolve(for_back_ends(topology, setting, "vhost"))
        by_app = resolve(for_back_ends(topology, setting, "vhost-noiommu"))
        assert {by_kernel.setting("vnet0"), by_app.setting("vnet1")} == {setting}
        assert by_kernel.port("vnet1") is None and not by_kernel.card("vnet1").rogue and by_kernel.card("vnet0").rogue
        port = by_app.port("vnet1")
        assert port is not None and port.driver == "noiommu"
        assert by_app.card("vnet1").rogue and not by_app.card("vnet0").rogue
