"""The kernel's virtio-net driver, against a device that goes by the standard, and devices that do not."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from errno import EINVAL, EIO, ETIMEDOUT
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers

from tests.virtio.device import (
    ACCESS_PLATFORM,
    BDF,
    FEATURES,
    MAC,
    NAME,
    NET_MAC,
    NET_MTU,
    VERSION_1,
    VirtioMachine,
    function,
)
from viommu_actors.kernel.drivers.virtio_net import VirtioNetDriver
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.memory import Unclaimed
from viommu_actors.netdev import BROADCAST, RECEIVE_TIMEOUT, NetCommands, numbered_frame
from viommu_actors.spec import platform
from viommu_actors.vtd.config import UnitConfig

OTHER = bytes.fromhex("020000000205")
STATIC = "intel_iommu=on virtio_net.static=00:04.0"


class Guest:
    """A booted kernel on a machine with the device."""

    def __init__(self, command_line: str = "intel_iommu=on", viommu: bool = True, **machine: object) -> None:
        unit = UnitConfig(caching_mode=True) if viommu else None
        self.machine = VirtioMachine(command_line, unit, **machine)  # type: ignore[arg-type]
        self.device = self.machine.device
        self.sent: list[bytes] = []
        self.device.wire = self.sent.append
        self.kernel = Kernel(self.machine, drivers=(VirtioNetDriver,))
        self.kernel.boot(self.machine.boot_params)

    @property
    def driver(self) -> VirtioNetDriver:
        driver = self.kernel.drivers[BDF]
        assert isinstance(driver, VirtioNetDriver)
        return driver

    def deliver_later(self, *frames: bytes) -> None:
        for frame in frames:
            self.machine.meanwhile.append(lambda frame=frame: self.device.deliver(frame))  # type: ignore[misc]

    def counted(self, work: Callable[[], object]) -> Counter[str]:
        before = Counter(self.kernel.counters)
        work()
        after = Counter(self.kernel.counters)
        after.subtract(before)
        return after


def incoming(number: int, size: int = 4084, destination: bytes = MAC) -> bytes:
    return numbered_frame(number, size, destination, OTHER)


# --- at work


@pytest.mark.parametrize(
    ("command_line", "viommu"),
    [("intel_iommu=on", True), ("intel_iommu=on iommu=pt", True), (STATIC, True), ("", False)],
)
def test_frames_go_both_ways_byte_for_byte(command_line: str, viommu: bool) -> None:
    guest = Guest(command_line, viommu, features=FEATURES if viommu else FEATURES & ~ACCESS_PLATFORM)
    driver = guest.driver
    assert (driver.mac, driver.max_frame, driver.link_up) == (MAC, 4084, True)
    driver.listen()
    for number in range(70):
        frame = numbered_frame(number, (22, 60, 1514, 4084)[number % 4], OTHER, driver.mac)
        driver.send(frame)
        assert guest.sent.pop() == frame and not guest.sent
        guest.deliver_later(incoming(number, (22, 60, 1514, 4084)[number % 4]))
        assert driver.receive() == incoming(number, (22, 60, 1514, 4084)[number % 4])
    assert guest.device.taken == guest.device.offered
    guest.kernel.unbind(BDF)
    assert guest.device.status == 0 and not guest.machine.bus_master()
    assert guest.kernel.live_buffers in (0, None)


def test_what_comes_before_it_is_asked_for_waits_in_the_pages() -> None:
    guest = Guest()
    guest.driver.listen()
    for number in range(40):
        guest.device.deliver(incoming(number))
    assert [guest.driver.receive() for _ in range(40)] == [incoming(number) for number in range(40)]
    assert not guest.device.waiting


def test_frames_for_others_are_not_received_and_those_for_all_are() -> None:
    guest = Guest()
    guest.driver.listen()
    for destination in (OTHER, BROADCAST, OTHER, MAC):
        guest.device.deliver(incoming(1, 60, destination))
    receive = NetCommands(lambda _: guest.driver, lambda: 0.0).receive
    for destination in (BROADCAST, MAC):
        assert receive(NAME, 1, 1, 60, destination, OTHER) == {"verified": True, "repeated": 0}


def test_frames_for_others_without_end_do_not_keep_it() -> None:
    guest = Guest()
    guest.driver.listen()
    seconds = 0.0

    def flooded() -> None:
        nonlocal seconds
        seconds += 1
        assert seconds < 10 * RECEIVE_TIMEOUT
        guest.device.deliver(incoming(int(seconds), 60, OTHER))
        guest.machine.meanwhile.append(flooded)

    guest.machine.meanwhile.append(flooded)
    with pytest.raises(OSError, match="frame 7 did not come") as raised:
        NetCommands(lambda _: guest.driver, lambda: seconds).receive(NAME, 7, 1, 60, MAC, OTHER)
    assert raised.value.errno == ETIMEDOUT
    guest.machine.meanwhile.clear()
    guest.deliver_later(incoming(8))
    assert guest.driver.receive() == incoming(8)


def test_a_dynamic_frame_is_one_map_and_one_unmap_and_a_static_one_none() -> None:
    for command_line, each in (("intel_iommu=on", 1), (STATIC, 0)):
        guest = Guest(command_line)
        guest.device.at_once = False
        guest.driver.run_io(2)
        counts = guest.counted(lambda guest=guest: guest.driver.run_io(50))  # type: ignore[misc]
        assert counts["dma_maps"] == counts["dma_unmaps"] == 50 * each
        assert counts["queue_tail_writes"] == 100 * each
        assert counts["interrupts"] == 50


def test_work_alone_is_frames_to_itself() -> None:
    guest = Guest()
    assert guest.driver.run_io(3) == (3, 3 * 4084, True, "dynamic")
    assert [frame[:12] for frame in guest.sent] == [MAC + MAC] * 3


@pytest.mark.parametrize("size", [0, 13, 4085])
def test_a_length_that_no_frame_has_is_refused(size: int) -> None:
    guest = Guest()
    with pytest.raises(OSError) as raised:
        guest.driver.send(bytes(size))
    assert raised.value.errno == EINVAL and not guest.sent


def test_a_smaller_mtu_bounds_the_frames() -> None:
    assert Guest(mtu=1500).driver.max_frame == 1514
    assert Guest(features=FEATURES & ~NET_MTU, mtu=1500).driver.max_frame == 4084


def test_a_device_that_polls_is_not_notified() -> None:
    guest = Guest()
    guest.driver.listen()
    assert guest.device.notified == [0]
    guest.device.quiet(1, on=True)
    guest.device.at_once = False
    guest.driver.send(bytes(60))
    assert guest.device.notified == [0] and len(guest.sent) == 1


def test_receive_pages_are_told_of_in_lots_and_where_the_device_has_none() -> None:
    guest = Guest()
    guest.driver.listen()
    for number in range(16):
        guest.device.deliver(incoming(number))
    guest.device.notified.clear()
    for _ in range(8):
        guest.driver.receive()
    assert not guest.device.notified
    guest.driver.receive()
    assert guest.device.notified == [0]
    for _ in range(7):
        guest.driver.receive()
    guest.deliver_later(incoming(16))
    assert guest.driver.receive() == incoming(16)


# --- the link


def test_a_link_goes_down_and_up_and_a_frame_waits_for_whoever_serves_it_next() -> None:
    guest = Guest()
    driver = guest.driver
    driver.listen()
    work, guest.device.work = guest.device.work, lambda: None  # type: ignore[method-assign]

    def come_back() -> None:
        guest.device.work = work  # type: ignore[method-assign]
        guest.device.set_link(True)

    guest.machine.meanwhile += [lambda: guest.device.set_link(False), come_back]
    driver.send(numbered_frame(7, 100, OTHER, driver.mac))
    assert guest.sent == [numbered_frame(7, 100, OTHER, driver.mac)]
    told = [line.rpartition(" ")[2] for line in guest.machine.lines if "link is" in line]
    assert told == ["down", "up"] and driver.link_up and guest.device.resets == 4


def test_a_frame_that_nobody_takes_times_out_and_the_device_is_started_anew() -> None:
    guest = Guest()
    guest.driver.listen()
    work, guest.device.work = guest.device.work, lambda: None  # type: ignore[method-assign]
    with pytest.raises(OSError) as raised:
        guest.driver.send(bytes(60))
    assert raised.value.errno == ETIMEDOUT and guest.device.status == 0
    guest.device.work = work  # type: ignore[method-assign]
    guest.driver.send(bytes(100))
    assert [len(frame) for frame in guest.sent] == [100], "what timed out is not sent later"


def test_a_device_that_needs_a_reset_is_reset_by_what_comes_next() -> None:
    guest = Guest()
    guest.driver.listen()
    guest.device.at_once = False
    guest.machine.meanwhile.append(guest.device.break_down)
    guest.device.work = lambda: None  # type: ignore[method-assign]
    with pytest.raises(OSError, match="needs a reset") as raised:
        guest.driver.receive()
    assert raised.value.errno == EIO and guest.device.status == 0
    del guest.device.work  # type: ignore[attr-defined]
    assert guest.driver.run_io(2).verified


# --- devices that are none, or not what they say


@pytest.mark.parametrize("leave_out", [[1], [2], [4], [1, 2, 3, 4, 5]])
def test_a_device_without_a_structure_is_refused(leave_out: list[int]) -> None:
    guest = Guest(own=function(leave_out=leave_out))
    assert BDF not in guest.kernel.drivers and any("structure is missing" in line for line in guest.machine.lines)


@pytest.mark.parametrize("bar", [1, 2, 5, 6, 255])
def test_structures_that_lie_elsewhere_are_no_structures(bar: int) -> None:
    guest = Guest(own=function(bar=bar))
    assert BDF not in guest.kernel.drivers and any("probe failed" in line for line in guest.machine.lines)


@pytest.mark.parametrize("multiplier", [0x8000, 0xFFFF_FFFF, 3])
def test_a_doorbell_outside_of_its_structure_is_refused(multiplier: int) -> None:
    guest = Guest(own=function(multiplier=multiplier))
    with pytest.raises(OSError, match="where nothing is"):
        guest.driver.send(bytes(60))
    assert guest.device.status == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"features": FEATURES & ~VERSION_1}, "no device of virtio 1.0"),
        ({"features": FEATURES & ~NET_MAC}, "no MAC address"),
        ({"mtu": 60}, "MTU of 60"),
    ],
)
def test_a_device_that_lacks_what_is_needed_is_refused(options: dict[str, int], why: str) -> None:
    guest = Guest(**options)
    assert BDF not in guest.kernel.drivers and any(why in line for line in guest.machine.lines)
    assert not guest.machine.bus_master() and guest.kernel.live_buffers == 0


def test_a_queue_that_is_too_small_is_refused() -> None:
    with pytest.raises(OSError, match="fewer than 16"):
        Guest(largest=8).driver.listen()


def test_a_device_that_does_not_reset_is_taken_off_the_bus_before_its_pages_go() -> None:
    guest = Guest()
    guest.driver.listen()
    guest.device.never_resets = True
    guest.device.work = lambda: None  # type: ignore[method-assign]
    guest.device.use(guest.device.queues[1], 3, 0)
    with pytest.raises(OSError, match="has used descriptor 3, which it does not have"):
        guest.driver.send(bytes(60))
    assert not guest.machine.bus_master()
    guest.device.never_resets = False
    del guest.device.work  # type: ignore[attr-defined]
    assert guest.driver.run_io(1).verified and guest.machine.bus_master()


@settings(max_examples=60, deadline=None)
@given(seed=integers(0, 1 << 32), share=integers(0, 100))
def test_whatever_a_device_says_in_its_registers_the_kernel_boots_and_has_all_its_pages_back(
    seed: int, share: int
) -> None:
    """So many of a hundred of its answers are of no meaning, of its capabilities too."""
    random = Random(seed)

    class Lying(VirtioMachine):
        def mmio_read(self, address: int, size: int) -> int:
            value = super().mmio_read(address, size)
            own = address - platform.ECAM_BASE - (BDF << 12)
            lies = self.registers(address) is not None or 0x40 <= own < 0x100
            return random.getrandbits(8 * size) if lies and random.randrange(100) < share else value

        # What a driver that was lied to does to the device is the device's own fault.

        def mmio_write(self, address: int, size: int, value: int) -> None:
            with suppress(AssertionError, Unclaimed):
                super().mmio_write(address, size, value)

        def wait_for_interrupt(self, timeout: float) -> bool:
            with suppress(AssertionError, Unclaimed):
                return super().wait_for_interrupt(timeout)
            return False

    machine = Lying("intel_iommu=on", UnitConfig(caching_mode=True))
    kernel = Kernel(machine, drivers=(VirtioNetDriver,))
    kernel.boot(machine.boot_params)
    if (driver := kernel.drivers.get(BDF)) is not None:
        with suppress(OSError):
            driver.run_io(2)
        kernel.unbind(BDF)
    assert kernel.live_buffers == 0 and not machine.bus_master()


@settings(max_examples=60, deadline=None)
@given(index=integers(0, 0xFFFF), descriptor=integers(0, 0xFFFF_FFFF), length=integers(0, 0xFFFF_FFFF))
def test_whatever_stands_in_the_used_ring_the_driver_takes_no_page_that_the_device_has_not(
    index: int, descriptor: int, length: int
) -> None:
    """An answer, an error or a timeout; never another page, never more bytes than one, and it works again after."""
    guest = Guest()
    guest.driver.listen()
    queue = guest.device.queues[0]
    guest.device.dma_write(queue.places[2] + 2, struct.pack("<HII", index, descriptor, length))
    try:
        frame = guest.driver.receive()
    except OSError as error:
        assert error.errno in (EIO, ETIMEDOUT)
    else:
        assert descriptor < 16 and 26 <= length <= 4096 and len(frame) == length - 12
    guest.kernel.unbind(BDF)
    assert guest.kernel.live_buffers == 0
    guest.kernel.bind(BDF)
    guest.device.work()
    assert guest.driver.run_io(1).verified
