"""Guests whose kernels drive emulated cards, and the real switch as their back end."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hypervisor.virtio_guest import BDF, Cable, Guest, serve
from viommu_actors.netdev import numbered_frame
from viommu_actors.pci.link import Outcome, PortLog
from viommu_actors.spec import vhost
from viommu_actors.vswitch.switch import Switch
from viommu_actors.vtd.config import UnitConfig

FRAMES = 40
SETTINGS = {
    "none": (None, ""),
    "strict": (UnitConfig(), "intel_iommu=on"),
    "caching": (UnitConfig(caching_mode=True, intremap=True, eim=True), "intel_iommu=on"),
    "qemu": (UnitConfig(caching_mode=True, quirks="qemu"), "intel_iommu=on"),
    "passthrough": (UnitConfig(), "intel_iommu=on iommu=pt"),
    "static": (UnitConfig(), "intel_iommu=on virtio_net.static=00:04.0"),
    "off": (UnitConfig(), "intel_iommu=off"),
}


class Network:
    """Two guests on one switch."""

    def __init__(self, setting: str = "strict") -> None:
        self.cables: list[Cable] = []
        viommu, cmdline = SETTINGS[setting]
        self.guests = [Guest(viommu, cmdline, number, self.cables) for number in range(2)]
        self.start_switch()
        self.drivers = [guest.boot() for guest in self.guests]

    def start_switch(self) -> None:
        """Its process comes up, and everybody connects."""
        self.switch = Switch(lambda: 0.0)
        self.cables.clear()
        self.ends = [guest.connect() for guest in self.guests]
        for guest, cable in zip(self.guests, self.ends, strict=True):
            cable.port = self.switch.add(guest.card.name, cable.say).receive
        self.serve()

    def serve(self) -> None:
        while serve(self.cables):
            pass

    def frame(self, number: int, source: int) -> bytes:
        macs = [driver.mac for driver in self.drivers]
        return numbered_frame(number, self.drivers[0].max_frame, macs[1 - source], macs[source])


@pytest.mark.parametrize("setting", SETTINGS)
def test_frames_cross_both_ways_byte_for_byte(setting: str) -> None:
    network = Network(setting)
    for driver in network.drivers:
        driver.listen()
    for number in range(FRAMES):
        for source in range(2):
            frame = network.frame(number, source)
            network.drivers[source].send(frame)
            assert network.drivers[1 - source].receive() == frame
    for guest in network.guests:
        assert guest.vmm.counters["virtio_blocked"] == guest.vmm.counters["virtio_outside_ram"] == 0
        assert not [line for line in guest.lines if "DMAR" in line and "fault" in line]


def test_each_page_is_asked_for_once_and_each_unmap_is_acknowledged_first() -> None:
    network = Network()
    for driver in network.drivers:
        driver.listen()
    network.serve()
    before = [(len(end.kinds(vhost.IotlbUpdate)), len(end.kinds(vhost.IotlbInvalidate))) for end in network.ends]
    for number in range(FRAMES):
        network.drivers[0].send(network.frame(number, 0))
        network.drivers[1].receive()
    for end, (updates, invalidations) in zip(network.ends, before, strict=True):
        assert len(end.kinds(vhost.IotlbInvalidate)) - invalidations == FRAMES
        # Receive pages that wait were asked for, or will be.
        assert abs(len(end.kinds(vhost.IotlbUpdate)) - updates - FRAMES) <= 16


def test_static_mappings_cost_no_message_of_the_iotlb_once_they_are_known() -> None:
    network = Network("static")
    for driver in network.drivers:
        driver.listen()
    for number in range(FRAMES):
        network.drivers[0].send(network.frame(number, 0))
        network.drivers[1].receive()
    known = [len(end.sent) - len(end.kinds(vhost.ReadCompletion)) - len(end.kinds(vhost.Kick)) for end in network.ends]
    for number in range(FRAMES):
        network.drivers[0].send(network.frame(number, 0))
        network.drivers[1].receive()
    now = [len(end.sent) - len(end.kinds(vhost.ReadCompletion)) - len(end.kinds(vhost.Kick)) for end in network.ends]
    assert now == known


@pytest.mark.parametrize("setting", ["none", "strict"])
def test_a_switch_that_comes_back_goes_on_where_the_last_one_was_killed(setting: str) -> None:
    network = Network(setting)
    sender, receiver = network.drivers
    for driver in network.drivers:
        driver.listen()
    sender.send(network.frame(0, 0))
    assert receiver.receive() == network.frame(0, 0)
    for end in network.ends:
        end.die()
    assert [driver.link_up for driver in network.drivers] == [False, False]
    for guest in network.guests:
        assert guest.wait_for_interrupt(0)
    waiting = network.frame(1, 0)
    # It is in the ring, and nobody takes it.
    with pytest.raises(OSError, match="no answer"):
        _post(sender, waiting)
    network.start_switch()
    assert [driver.link_up for driver in network.drivers] == [True, True]
    assert receiver.receive() == waiting
    for guest in network.guests:
        guest.wait_for_interrupt(0)
        assert [line.rpartition(" ")[2] for line in guest.lines if "link is" in line] == ["down", "up"]


def _post(driver: Any, frame: bytes) -> None:
    """`send`, but that what was not taken in time stays in the ring."""
    stop, driver._stop = driver._stop, lambda: None
    try:
        driver.send(frame)
    finally:
        driver._stop = stop


def test_calls_that_come_together_are_one_interrupt_and_one_more() -> None:
    network = Network()
    guest, cable = network.guests[0], network.ends[0]
    network.drivers[0].listen()
    network.serve()
    front_end, before = guest.card.front_end, len(guest.beneath.vectors)
    front_end.gather()
    for _ in range(9):
        front_end.receive(vhost.Call(0))
    front_end.receive(vhost.Call(1))
    assert len(guest.beneath.vectors) == before + 2, "the first of each queue is not kept waiting"
    front_end.flush()
    assert len(guest.beneath.vectors) == before + 3, "what came behind it is not lost"
    assert guest.vmm.counters["virtio_calls_coalesced"] == 8
    for _ in range(2):
        cable.say(vhost.Call(0))
        network.serve()
    assert len(guest.beneath.vectors) == before + 5, "apart they are as many as they are"


def test_a_driver_whose_ring_is_none_is_told_and_goes_on_after_a_reset() -> None:
    network = Network()
    sender, receiver = network.drivers
    for driver in network.drivers:
        driver.listen()
    sender._tx.queue._filled += 200
    with pytest.raises(OSError, match="needs a reset"):
        sender.send(network.frame(0, 0))
    sender.send(network.frame(1, 0))
    assert receiver.receive() == network.frame(1, 0)


def test_who_watches_hears_of_each_access_and_what_became_of_it() -> None:
    network = Network()
    guest, cable = network.guests[0], network.ends[0]
    driver = network.drivers[0]
    driver.listen()
    network.serve()
    iova, paddr, size = driver.control_mapping()
    log = PortLog(16)
    front_end = guest.card.front_end
    front_end.watch(log)
    cable.say(vhost.MemoryWrite(iova + size - 4, bytes(4)))
    cable.say(vhost.MemoryWrite(0x1000, bytes(4)))
    cable.say(vhost.MemoryRead(900, 0xFEE0_0000, 4))
    cable.say(vhost.IotlbInvalidated(99))
    network.serve()
    guest.kernel.unbind(BDF)
    cable.say(vhost.MemoryRead(901, iova, 4))
    network.serve()
    front_end.watch(None)
    cable.say(vhost.MemoryRead(902, iova, 4))
    network.serve()
    assert [(entry.address, entry.length, entry.outcome, entry.physical) for entry in log.entries] == [
        (iova + size - 4, 4, Outcome.OK, paddr + size - 4),
        (0x1000, 4, Outcome.FAULT, None),
        (0xFEE0_0000, 4, Outcome.INTERRUPT_RANGE, None),
        (0, 0, Outcome.UNEXPECTED_COMPLETION, None),
        (iova, 4, Outcome.NOT_RUNNING, None),
    ]
    assert {entry.requester for entry in log.entries} == {BDF}
