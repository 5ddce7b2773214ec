"""The edu and nic drivers, on a whole host in one process: kernel, VT-d unit, root complex, devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from errno import EINVAL, EIO, ETIMEDOUT
from typing import Any

import pytest

from tests.devices.rig import HIGH_BASE, Rig
from viommu_actors.devices.dma_engine import Transfer
from viommu_actors.devices.edu import Edu
from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.devices.nic import Nic
from viommu_actors.devices.rogue import Rogue, StepResult, parse_plan
from viommu_actors.kernel.dma import Direction
from viommu_actors.pci.root_port import slot_name
from viommu_actors.spec import nic, pci

NIC, EDU = 1, 2
PAGE = 4096


def a_nic(number: int = 1, cable: list[bytes] | None = None) -> Callable[..., Endpoint]:
    def make(send: Any, log: Any) -> Endpoint:
        transmit = None if cable is None else cable.append
        return Nic(send, log, mac=bytes([2, 0, 0, 0, 0, number]), send_frame=transmit)

    return make


def an_edu(**options: int) -> Callable[..., Endpoint]:
    return lambda send, log: Edu(send, log, **options)


def rig(cmdline: str = "intel_iommu=on", **options: Any) -> Rig:
    return Rig({NIC: a_nic(), EDU: an_edu()}, cmdline, **options)


def spent(rig: Rig, work: Callable[[], object]) -> Counter[str]:
    before = Counter(rig.kernel.counters)
    work()
    after = Counter(rig.kernel.counters)
    after.subtract(before)
    return after


# --- honest work


@pytest.mark.parametrize("slot", [NIC, EDU])
@pytest.mark.parametrize("cmdline", ["", "intel_iommu=on", "intel_iommu=on iommu=pt"])
def test_every_byte_arrives(slot: int, cmdline: str) -> None:
    if slot == EDU and cmdline != "intel_iommu=on":
        machine = Rig({EDU: an_edu(dma_bits=48)}, cmdline + " edu.dma_bits=48")
    else:
        machine = rig(cmdline)
    assert machine.driver(slot).run_io(20) == (20, 20 * PAGE, True, "dynamic")
    assert machine.kernel.iommu is None or machine.kernel.iommu.take_faults() == ([], 0)


@pytest.mark.parametrize("slot", [NIC, EDU])
@pytest.mark.parametrize("max_payload", [128, 512, 4096])
def test_payload_sizes(slot: int, max_payload: int) -> None:
    machine = rig(max_payload=max_payload)
    assert machine.driver(slot).run_io(6).verified
    assert "malformed" not in machine.root.ports[slot_name(slot)].counters


@pytest.mark.parametrize("seed", range(5))
def test_in_any_order_of_the_links(seed: int) -> None:
    machine = rig(seed=seed)
    for _ in range(3):
        assert machine.driver(NIC).run_io(4).verified
        assert machine.driver(EDU).run_io(4).verified


@pytest.mark.parametrize("slot", [NIC, EDU])
def test_operations_come_in_pairs(slot: int) -> None:
    machine = rig()
    assert machine.driver(slot).run_io(3).operations == 4
    assert machine.driver(slot).run_io(0) == (0, 0, True, "dynamic")


@pytest.mark.parametrize("caching_mode", [False, True])
@pytest.mark.parametrize("slot", [NIC, EDU])
def test_a_dynamic_operation_is_one_map_and_one_unmap(slot: int, caching_mode: bool) -> None:
    machine = rig(caching_mode=caching_mode)
    machine.driver(slot).run_io(2)
    counts = spent(machine, lambda: machine.driver(slot).run_io(100))
    assert counts["dma_maps"] == counts["dma_unmaps"] == 100
    assert counts["queue_tail_writes"] == (200 if caching_mode else 100)


@pytest.mark.parametrize(("slot", "name"), [(NIC, "nic"), (EDU, "edu")])
def test_a_static_operation_maps_nothing(slot: int, name: str) -> None:
    machine = rig(f"intel_iommu=on {name}.static=0{slot}:00.0")
    machine.driver(slot).run_io(2)
    counts = spent(machine, lambda: machine.driver(slot).run_io(100))
    assert counts["dma_maps"] == counts["dma_unmaps"] == counts["queue_tail_writes"] == 0
    assert machine.driver(slot).run_io(2) == (2, 2 * PAGE, True, "static")


def test_a_nic_packet_reads_no_register() -> None:
    machine = rig()
    machine.driver(NIC).run_io(2)
    before = Counter(machine.root.ports[slot_name(NIC)].counters)
    machine.driver(NIC).run_io(20)
    after = Counter(machine.root.ports[slot_name(NIC)].counters)
    after.subtract(before)
    # Two descriptors and a page read; a page and two write-backs written; one interrupt a packet.
    assert {key: count for key, count in after.items() if count} == {"read": 30, "write": 30, "msi": 10}


def test_a_tx_page_cannot_be_written_nor_a_rx_page_read() -> None:
    """What the nic's packet maps, it maps one way only."""
    machine = rig()
    seen: list[tuple[int, Direction]] = []
    dma = machine.kernel.dma(machine.kernel.device(machine.bdf(NIC)))
    real = dma.map

    def watched(paddr: int, size: int, direction: Direction) -> int:
        seen.append((size, direction))
        return real(paddr, size, direction)

    dma.map = watched  # type: ignore[method-assign]
    machine.driver(NIC).run_io(2)
    assert seen == [(PAGE, Direction.TO_DEVICE), (PAGE, Direction.FROM_DEVICE)]


# --- edu's mask


def test_edu_is_given_addresses_that_its_mask_reaches() -> None:
    machine = rig()
    iova, paddr, size = machine.driver(EDU).control_mapping()
    assert iova + size <= 1 << 28 and paddr >= HIGH_BASE


def test_without_iommu_memory_beyond_the_mask_is_a_clear_error() -> None:
    machine = rig("")
    with pytest.raises(OSError, match="beyond the device's DMA mask") as raised:
        machine.driver(EDU).run_io(2)
    assert raised.value.errno == EIO


@pytest.mark.parametrize("value", ["", "0", "65", "many"])
def test_a_bad_mask_parameter_is_refused(value: str) -> None:
    machine = rig(f"intel_iommu=on edu.dma_bits={value}")
    assert machine.bdf(EDU) not in machine.kernel.drivers
    assert any("edu.dma_bits" in line for line in machine.lines)


# --- cable


def wire() -> tuple[Rig, list[bytes], list[bytes]]:
    """Two nics in one kernel; the cable's two ends are carried by `cross`."""
    there: list[bytes] = []
    back: list[bytes] = []
    return Rig({1: a_nic(1, there), 2: a_nic(2, back)}), there, back


def cross(machine: Rig, frames: list[bytes], slot: int) -> None:
    machine.pump()
    endpoint = machine.endpoints[slot]
    assert isinstance(endpoint, Nic)
    while frames:
        endpoint.receive_frame(frames.pop(0))
    machine.pump()


def test_packets_cross_a_cable() -> None:
    machine, there, back = wire()
    left, right = machine.driver(1), machine.driver(2)
    assert left.link_up and right.link_up
    for number in range(100):
        sent = bytes([number]) * (14 + number * 40)
        left.send(sent)
        cross(machine, there, 2)
        assert right.receive() == sent
        right.send(sent[::-1])
        cross(machine, back, 1)
        assert left.receive() == sent[::-1]


def test_loopback_and_cable_take_turns() -> None:
    machine, there, _ = wire()
    left, right = machine.driver(1), machine.driver(2)
    for _ in range(3):
        assert left.run_io(4).verified and there == []
        right.listen()
        left.send(b"between the loops")
        cross(machine, there, 2)
        assert right.receive() == b"between the loops"


def test_receive_buffers_are_unmapped_when_the_mode_changes() -> None:
    machine, _, _ = wire()
    machine.driver(1).run_io(2)
    counts = spent(machine, machine.driver(1).listen)
    assert counts["dma_maps"] == 16
    counts = spent(machine, lambda: machine.driver(1).run_io(0))
    assert counts["dma_unmaps"] == 16


def test_nothing_to_receive_is_a_timeout() -> None:
    machine, _, _ = wire()
    with pytest.raises(TimeoutError, match="no answer in 5 s") as raised:
        machine.driver(1).receive()
    assert raised.value.errno == ETIMEDOUT
    assert machine.driver(1).run_io(2).verified


def test_without_a_cable_nothing_is_sent() -> None:
    machine = rig()
    assert not machine.driver(NIC).link_up
    with pytest.raises(OSError, match="frame lost"):
        machine.driver(NIC).send(bytes(64))


@pytest.mark.parametrize("length", [0, 13, 4097])
def test_frames_of_no_legal_length_are_refused(length: int) -> None:
    with pytest.raises(OSError, match="no frame has") as raised:
        rig().driver(NIC).send(bytes(length))
    assert raised.value.errno == EINVAL


# --- devices that do not do what they should


@pytest.mark.parametrize("slot", [NIC, EDU])
def test_a_device_that_went_away_is_a_timeout(slot: int) -> None:
    machine = rig()
    machine.driver(slot).run_io(2)
    machine.root.detach(slot_name(slot))

    def work() -> None:
        with pytest.raises(TimeoutError, match=f"0{slot}:00.0"):
            machine.driver(slot).run_io(2)

    counts = spent(machine, work)
    assert counts["dma_maps"] == counts["dma_unmaps"] > 0


def test_refused_dma_is_an_error_and_the_nic_recovers() -> None:
    machine = rig()
    driver = machine.driver(NIC)
    device = machine.kernel.device(machine.bdf(NIC))
    iommu = machine.kernel.iommu
    assert iommu is not None
    domain = iommu.attached(device)
    assert domain is not None
    driver.run_io(2)
    iommu.detach(device)
    with pytest.raises(OSError, match="ring halted") as raised:
        driver.run_io(2)
    assert raised.value.errno == EIO
    iommu.attach(device, domain)
    assert driver.run_io(2).verified


class Scribbler(Nic):
    """Writes other bytes than it was given."""

    def dma_write(self, address: int, data: bytes) -> Generator[Transfer, None, bool]:
        return super().dma_write(address, data[:-1] + b"!" if len(data) > 64 else data)


def test_a_wrong_byte_is_noticed() -> None:
    machine = Rig({NIC: lambda send, log: Scribbler(send, log, mac=bytes(6))})
    assert not machine.driver(NIC).run_io(2).verified


@pytest.mark.parametrize("offset", [0, 4])
def test_what_only_claims_to_be_an_edu_is_not_bound(offset: int) -> None:
    class Impostor(Edu):
        def bar_read(self, bar: int, where: int, size: int) -> int | None:
            return 0 if where == offset else super().bar_read(bar, where, size)

    machine = Rig({EDU: Impostor})
    assert machine.kernel.drivers == {}
    assert any("probe failed" in line for line in machine.lines)


# --- the control page


@pytest.mark.parametrize("slot", [NIC, EDU])
def test_a_rogue_reaches_the_control_page_and_nothing_else(slot: int) -> None:
    machine = rig()
    driver = machine.driver(slot)
    iova, paddr, size = driver.control_mapping()
    assert size == PAGE and driver.control_mapping() == (iova, paddr, size)
    results: list[list[StepResult]] = []
    rogue = Rogue(machine.endpoints[slot])

    def play(*steps: dict[str, Any]) -> list[str]:
        rogue.play(parse_plan(steps), results.append)
        machine.pump()
        return [it.status for it in results.pop()]

    control = {"do": "control", "iova": iova, "data": b"legal"}
    read = {"do": "read", "address": paddr, "length": 4}
    assert play(control, read) == ["completed", "unsupported request"]
    assert machine.memory.read(paddr, 5) == b"legal"
    iommu = machine.kernel.iommu
    assert iommu is not None
    [fault] = iommu.take_faults()[0]
    assert (fault.source, fault.address, fault.write) == (machine.bdf(slot), paddr, False)
    driver.release_control()
    driver.release_control()
    assert play(control) == ["refused"]


def test_acs_stops_a_forged_name_and_without_it_the_victims_mapping_is_used() -> None:
    for acs in (True, False):
        machine = rig(acs=acs)
        iova, paddr, _ = machine.driver(NIC).control_mapping()
        rogue = Rogue(machine.endpoints[EDU])
        step = {"do": "write", "address": iova, "data": b"evil", "requester": machine.bdf(NIC)}
        log = machine.root.start_log(slot_name(EDU))
        rogue.play(parse_plan([step]), lambda _: None)
        machine.pump()
        assert [it.outcome for it in log.entries] == ["acs" if acs else "ok"]
        assert (machine.memory.read(paddr, 4) == b"evil") is not acs


# --- removal


@pytest.mark.parametrize("slot", [NIC, EDU])
@pytest.mark.parametrize("static", [False, True])
def test_removal_gives_everything_back(slot: int, static: bool) -> None:
    words = " nic.static=01:00.0 edu.static=02:00.0" if static else ""
    machine = rig("intel_iommu=on" + words)
    bdf = machine.bdf(slot)
    # The first mappings make page tables, which stay.
    machine.driver(slot).run_io(4)
    machine.driver(slot).control_mapping()
    machine.kernel.unbind(bdf)
    machine.kernel.bind(bdf)
    free, maps = machine.kernel.pages.free_pages, dict(machine.kernel.counters)
    machine.driver(slot).run_io(4)
    machine.driver(slot).control_mapping()
    machine.kernel.unbind(bdf)
    machine.kernel.bind(bdf)
    assert machine.kernel.pages.free_pages == free
    counts = machine.kernel.counters
    assert counts["dma_maps"] - maps["dma_maps"] == counts["dma_unmaps"] - maps["dma_unmaps"]
    assert machine.driver(slot).run_io(4).verified


def test_a_removed_nic_does_no_more_dma() -> None:
    machine, there, _ = wire()
    machine.driver(2).listen()
    machine.kernel.unbind(machine.bdf(2))
    there.append(b"too late, too late")
    before = dict(machine.root.ports[slot_name(2)].counters)
    cross(machine, there, 2)
    assert dict(machine.root.ports[slot_name(2)].counters) == before
    command = machine.kernel.device(machine.bdf(2)).config_read(pci.COMMAND, 2)
    assert not command & pci.Command.BUS_MASTER


def test_a_nic_ring_fits_its_page() -> None:
    from viommu_actors.kernel.drivers.nic_ring import SIZE

    assert nic.MIN_RING <= SIZE <= nic.MAX_RING and SIZE * nic.DESCRIPTOR.size <= PAGE
