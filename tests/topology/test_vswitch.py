"""Virtual switches and their cards as they are resolved, and what each process is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from viommu_actors.supervise.plan import make_plan
from viommu_actors.topology.load import load, parse
from viommu_actors.topology.refusals import check
from viommu_actors.topology.resolve import resolve
from viommu_actors.topology.resolved import ResolvedTopology
from viommu_actors.topology.settings import under

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
