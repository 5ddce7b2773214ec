"""A switch and a bridge under a kernel: what it finds, which groups it makes, and what that is worth."""

from __future__ import annotations

from typing import Any

import pytest

from tests.devices.rig import Rig
from tests.kernel import users
from tests.kernel.test_drivers import PAGE, a_nic, an_edu
from viommu_actors.devices.rogue import Rogue, parse_plan
from viommu_actors.kernel.dma import Direction
from viommu_actors.kernel.process import UserProcess
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.pci.component import BridgeConfig, SwitchConfig
from viommu_actors.spec import pci
from viommu_actors.spec.vtd import FaultReason

#: Slot 1 has the component and its two nics, slot 2 an edu.
UPSTREAM_PORT, FIRST_PORT, SECOND_PORT = 0x0100, 0x0200, 0x0208
FIRST, SECOND = 0x0300, 0x0400
BEHIND_SWITCH = 0x0500
BRIDGE, ALIAS, NEIGHBOUR, BEHIND_BRIDGE = 0x0100, 0x0200, 0x0208, 0x0300
ROOT = 0x0008


def with_switch(switch_acs: bool = True, cmdline: str = "intel_iommu=on", **options: Any) -> Rig:
    components = {1: (SwitchConfig("sw0", 2, switch_acs), (a_nic(1), a_nic(2)))}
    return Rig({2: an_edu()}, cmdline, components=components, **options)


def with_bridge(cmdline: str = "intel_iommu=on", **options: Any) -> Rig:
    components = {1: (BridgeConfig("br0", 2), (a_nic(1), a_nic(2)))}
    return Rig({2: an_edu()}, cmdline, components=components, **options)


def groups(machine: Rig) -> list[list[int]]:
    assert machine.kernel.iommu is not None
    return sorted([device.bdf for device in members] for members in machine.kernel.iommu.groups.values())


# --- finding


def test_a_switch_is_enumerated_port_by_port() -> None:
    kernel = with_switch().kernel
    found = [device.bdf for device in kernel.pci]
    assert found == [0, ROOT, UPSTREAM_PORT, FIRST_PORT, FIRST, SECOND_PORT, SECOND, 0x10, BEHIND_SWITCH]
    numbers = {port: kernel.device(port).config_read(pci.PRIMARY_BUS, 4) & 0xFF_FFFF for port in found[1:4]}
    assert numbers == {ROOT: 0x04_01_00, UPSTREAM_PORT: 0x04_02_01, FIRST_PORT: 0x03_03_02}


def test_all_devices_of_a_conventional_bus_are_found() -> None:
    kernel = with_bridge().kernel
    found = [device.bdf for device in kernel.pci]
    assert found == [0, ROOT, BRIDGE, ALIAS, NEIGHBOUR, 0x10, BEHIND_BRIDGE]
    assert kernel.device(NEIGHBOUR).aliases == (ALIAS,) and kernel.device(BEHIND_BRIDGE).aliases == ()


@pytest.mark.parametrize("make", [with_switch, with_bridge])
@pytest.mark.parametrize("cmdline", ["", "intel_iommu=on", "intel_iommu=on iommu=pt"])
@pytest.mark.parametrize("intremap", [False, True])
def test_every_byte_arrives(make: Any, cmdline: str, intremap: bool) -> None:
    machine = make(cmdline=cmdline, intremap=intremap)
    nics = [bdf for bdf, driver in machine.kernel.drivers.items() if driver.name == "nic"]
    assert len(nics) == 2
    for _ in range(2):
        for bdf in nics:
            assert machine.kernel.drivers[bdf].run_io(8) == (8, 8 * PAGE, True, "dynamic")
    assert machine.kernel.counters["spurious_interrupts"] == 0
    assert machine.kernel.iommu is None or machine.kernel.iommu.take_faults() == ([], 0)


def test_acs_goes_on_at_each_downstream_port() -> None:
    kernel = with_switch().kernel
    for port in (FIRST_PORT, SECOND_PORT):
        acs = kernel.device(port).extended_capability(pci.ExtendedCapabilityId.ACS)
        assert acs is not None
        control = pci.Acs(kernel.device(port).config_read(acs + pci.ACS_CONTROL, 2))
        assert control & pci.Acs.SOURCE_VALIDATION and control & pci.Acs.REQUEST_REDIRECT
    without = with_switch(switch_acs=False).kernel.device(FIRST_PORT)
    assert without.extended_capability(pci.ExtendedCapabilityId.ACS) is None


def test_a_device_below_a_switch_is_unplugged_and_another_found() -> None:
    machine = with_switch()
    kernel = machine.kernel
    machine.root.detach("sw0.0")
    kernel.remove(FIRST)
    assert kernel.drivers[SECOND].run_io(4).verified
    machine.plug("sw0.0", a_nic(3))
    assert [device.bdf for device in kernel.rescan()] == [FIRST]
    assert kernel.drivers[FIRST].run_io(4).verified
    assert kernel.iommu is not None and len(kernel.iommu.groups) == len(with_switch().kernel.iommu.groups)


# --- groups


def test_behind_a_switch_with_acs_each_device_is_a_group() -> None:
    alone = [[0], [0x10], [BEHIND_SWITCH], [ROOT], [UPSTREAM_PORT], [FIRST_PORT], [SECOND_PORT], [FIRST], [SECOND]]
    assert groups(with_switch()) == sorted(alone)


def test_behind_a_switch_without_acs_all_are_one_group() -> None:
    together = [FIRST_PORT, FIRST, SECOND_PORT, SECOND]
    alone = [[0], [0x10], [BEHIND_SWITCH], [ROOT], [UPSTREAM_PORT]]
    assert groups(with_switch(switch_acs=False)) == sorted([*alone, together])


def test_below_a_root_port_without_acs_all_are_one_group() -> None:
    together = [ROOT, UPSTREAM_PORT, FIRST_PORT, FIRST, SECOND_PORT, SECOND]
    assert groups(with_switch(acs=False)) == [[0], together, [0x10, BEHIND_SWITCH]]


def test_behind_a_bridge_all_are_one_group_with_it() -> None:
    assert groups(with_bridge()) == sorted([[0], [0x10], [BEHIND_BRIDGE], [ROOT], [BRIDGE, ALIAS, NEIGHBOUR]])


@pytest.mark.parametrize(("make", "pair"), [(with_bridge, (ALIAS, NEIGHBOUR)), (with_switch, (FIRST, SECOND))])
def test_a_group_has_one_default_domain(make: Any, pair: tuple[int, int]) -> None:
    machine = make(switch_acs=False) if make is with_switch else make()
    iommu = machine.kernel.iommu
    first, second = (iommu.attached(machine.kernel.device(bdf)) for bdf in pair)
    assert first is not None and first is second
    assert first.devices == set(pair)


def test_with_acs_there_is_a_domain_for_each() -> None:
    kernel = with_switch().kernel
    assert kernel.iommu is not None
    domains = [kernel.iommu.attached(kernel.device(bdf)) for bdf in (FIRST, SECOND, BEHIND_SWITCH)]
    assert None not in domains and len({id(domain) for domain in domains}) == 3


# --- an alias


def test_an_alias_goes_on_until_its_last_user_is_gone() -> None:
    machine = with_bridge()
    kernel, iommu = machine.kernel, machine.kernel.iommu
    assert iommu is not None
    owner, neighbour = kernel.device(ALIAS), kernel.device(NEIGHBOUR)
    iommu.detach(owner)
    assert kernel.drivers[NEIGHBOUR].run_io(4).verified
    iommu.detach(neighbour)
    with pytest.raises(OSError, match=r"halted|gave no|timed out"):
        kernel.drivers[NEIGHBOUR].run_io(4)
    records, _ = iommu.take_faults()
    assert {record.source for record in records} == {ALIAS}
    assert {record.reason for record in records} == {FaultReason.CONTEXT_NOT_PRESENT}


def test_an_alias_follows_the_one_that_was_attached_last() -> None:
    machine = with_bridge()
    kernel, iommu = machine.kernel, machine.kernel.iommu
    assert iommu is not None
    owner, neighbour = kernel.device(ALIAS), kernel.device(NEIGHBOUR)
    shared = iommu.attached(owner)
    other = iommu.new_domain()
    assert shared is not None
    iommu.attach(neighbour, other)
    assert machine.unit.context(ALIAS).domain == machine.unit.context(NEIGHBOUR).domain == other.id
    iommu.attach(owner, other)
    iommu.detach(neighbour)
    assert machine.unit.context(ALIAS).domain == other.id
    iommu.detach(owner)
    assert not other.devices
    iommu.free_domain(other)
    iommu.attach(neighbour, shared)
    assert kernel.drivers[NEIGHBOUR].run_io(4).verified


# --- one user for a group


def test_a_group_of_a_user_gets_no_driver_and_one_with_a_driver_no_user() -> None:
    machine = with_bridge("intel_iommu=on vfio-pci.ids=02:00.0", intremap=True)
    kernel, vfio, process = machine.kernel, Vfio(machine.kernel), UserProcess("vm", capabilities=users.ROOT)
    group, container = vfio.open_group(process, vfio.group_of("0000:02:00.0")), vfio.open_container(process)
    with pytest.raises(OSError, match=r"not viable: kernel drivers have 02:01\.0"):
        vfio.set_container(process, group, container)
    kernel.unbind(NEIGHBOUR)
    vfio.set_container(process, group, container)
    kernel.bind(NEIGHBOUR)
    assert NEIGHBOUR not in kernel.drivers
    vfio.close(process, group)
    kernel.bind(NEIGHBOUR)
    assert kernel.drivers[NEIGHBOUR].run_io(4).verified


@pytest.mark.parametrize("link", ["br0.0", "br0.1"])
def test_a_user_maps_for_all_that_share_the_alias(link: str) -> None:
    machine = with_bridge("intel_iommu=on vfio-pci.ids=02:00.0,02:01.0", intremap=True)
    vfio, process = Vfio(machine.kernel), UserProcess("vm", capabilities=users.ROOT)
    group, container = vfio.open_group(process, vfio.group_of("0000:02:01.0")), vfio.open_container(process)
    vfio.set_container(process, group, container)
    vfio.set_iommu(process, container)
    paddr = machine.kernel.pages.alloc()
    vaddr = process.map_memory(paddr, PAGE)
    vfio.map_dma(process, container, 3, vaddr, 0x10_0000, PAGE)
    for bdf in (ALIAS, NEIGHBOUR):
        machine.kernel.device(bdf).set_bus_master(True)
    attack(machine, link, {"do": "write", "address": 0x10_0000, "data": b"shared"})
    assert machine.memory.read(paddr, 6) == b"shared"
    vfio.close(process, group)
    attack(machine, link, {"do": "write", "address": 0x10_0000, "data": b"beyond"})
    assert machine.memory.read(paddr, 6) == b"shared"


# --- what isolation is worth


def attack(machine: Rig, link: str, step: dict[str, object]) -> None:
    Rogue(machine.endpoints[link]).play(parse_plan([step]), lambda _: None)
    machine.pump()


def a_page(machine: Rig, bdf: int, data: bytes) -> tuple[int, int]:
    """A page that the driver of the device has mapped for it: (iova, physical address)."""
    kernel = machine.kernel
    paddr = kernel.pages.alloc()
    machine.memory.write(paddr, data)
    return kernel.dma(kernel.device(bdf)).map(paddr, PAGE, Direction.BIDIRECTIONAL), paddr


@pytest.mark.parametrize("shared", [False, True])
def test_who_shares_a_domain_shares_its_buffers(shared: bool) -> None:
    machine = with_switch(switch_acs=not shared)
    iova, paddr = a_page(machine, SECOND, b"secret")
    attack(machine, "sw0.0", {"do": "write", "address": iova, "data": b"stolen"})
    assert machine.memory.read(paddr, 6) == (b"stolen" if shared else b"secret")


@pytest.mark.parametrize("acs", [False, True])
def test_a_forged_name_works_only_without_source_validation(acs: bool) -> None:
    machine = with_switch(switch_acs=acs)
    iova, paddr = a_page(machine, SECOND, b"secret")
    attack(machine, "sw0.0", {"do": "write", "address": iova, "data": b"forged", "requester": SECOND})
    assert machine.memory.read(paddr, 6) == (b"secret" if acs else b"forged")
    assert machine.root.ports["sw0.0"].counters["acs"] == int(acs)


@pytest.mark.parametrize("acs", [False, True])
def test_a_peers_registers_are_reached_past_the_iommu_only_without_redirect(acs: bool) -> None:
    machine = with_switch(switch_acs=acs)
    peer = machine.kernel.device(SECOND)
    before = machine.endpoints["sw0.1"].counters.copy()
    bar = peer.bars[0].address
    attack(machine, "sw0.0", {"do": "read", "address": bar, "length": 4})
    assert machine.kernel.iommu is not None
    records, _ = machine.kernel.iommu.take_faults()
    assert [record.address for record in records] == ([bar & ~0xFFF] if acs else [])
    assert machine.root.ports["sw0.0"].counters["peer read"] == int(not acs)
    assert machine.endpoints["sw0.1"].counters == before
