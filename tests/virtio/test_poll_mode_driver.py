"""The application's virtio driver over VFIO, alone and beside a nic's, against the tests' own device."""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, EIO, ENOTSUP, ETIMEDOUT
from typing import Any

import pytest

from tests.app.local import FIRST, PASSTHROUGH, STRICT, LocalSystem
from tests.virtio.device import MAC, NAME, VirtioDevice, VirtioRig
from viommu_actors.app.application import Application
from viommu_actors.app.commands import AppCommands
from viommu_actors.app.pmd_virtio import RING_SIZE, VirtioPort
from viommu_actors.devices.nic import Nic
from viommu_actors.netdev import BROADCAST, numbered_frame

OTHER = bytes.fromhex("020000000205")
BDF, NIC = NAME.removeprefix("0000:"), FIRST.removeprefix("0000:")


class User:
    """An application with the device, and a nic where it is asked for; the nic has a cable to nowhere."""

    def __init__(self, cmdline: str = STRICT, *, nic: bool = False) -> None:
        self.cable: list[bytes] = []

        class Cabled(VirtioRig):
            def __init__(own, devices: Any, cmdline: str, **options: Any) -> None:
                def make(send: Any, log: Any) -> Nic:
                    return Nic(send, log, mac=bytes((2, 0, 0, 0, 0, 1)), send_frame=self.cable.append)

                super().__init__({**devices, 1: make}, cmdline, **options)

        self.system = LocalSystem(cmdline, machine=Cabled)
        rig = self.system.rig
        assert isinstance(rig, VirtioRig)
        self.rig, self.device = rig, rig.device
        self.sent: list[bytes] = []
        self.device.wire = self.sent.append
        #: what happens while the application polls in vain, one thing after another
        self.meanwhile: list[Callable[[], None]] = []
        pause = self.system.pause

        def paused() -> None:
            if self.meanwhile:
                self.meanwhile.pop(0)()
            pause()

        self.system.pause = paused  # type: ignore[method-assign]
        self.commands = AppCommands(self.system, rig.lines.append, bytes)
        self.told = self.commands.start({BDF: "vfio"} | ({NIC: "vfio"} if nic else {}))

    @property
    def nic(self) -> Nic:
        endpoint = self.rig.endpoints[1]
        assert isinstance(endpoint, Nic)
        return endpoint

    def do(self, name: str, **arguments: Any) -> Any:
        return self.commands.handlers()[name](**arguments)

    def deliver(self, device: VirtioDevice, first: int, count: int, size: int = 4084) -> None:
        for number in range(first, first + count):
            device.deliver(numbered_frame(number, size, MAC, OTHER))


@pytest.mark.parametrize("cmdline", [STRICT, PASSTHROUGH])
def test_frames_go_both_ways_byte_for_byte(cmdline: str) -> None:
    user = User(cmdline)
    assert user.told["ports"] == {BDF: "vfio"} and not user.told["refused"]
    assert user.do("netdev", bdf=BDF) == {"mac": MAC, "max_frame": 4084, "mapping": "static"}
    user.do("listen", bdf=BDF)
    for first in range(0, 300, 50):
        user.do("send", bdf=BDF, first=first, count=50, size=1514, destination=OTHER)
        user.deliver(user.device, first, 50)
        assert user.do("receive", bdf=BDF, first=first, count=50, size=4084, destination=MAC, source=OTHER)
    assert user.sent == [numbered_frame(number, 1514, OTHER, MAC) for number in range(300)]
    assert not user.device.waiting


def test_no_packet_calls_the_kernel_and_a_burst_notifies_once() -> None:
    user = User()
    user.do("io", bdf=BDF, operations=4)
    calls, notified = dict(user.system.calls), len(user.device.notified)
    told = user.do("io", bdf=BDF, operations=320)
    assert (told["operations"], told["bytes"], told["verified"], told["failed"]) == (320, 320 * 4084, True, "")
    assert user.system.calls == calls
    assert len(user.device.notified) - notified == 10
    user.device.quiet(1, on=True)
    assert user.do("io", bdf=BDF, operations=320)["verified"]
    assert len(user.device.notified) - notified == 10


def test_the_device_is_asked_for_no_interrupt() -> None:
    user = User()
    user.do("listen", bdf=BDF)
    assert user.device.config_vector == 0xFFFF and [queue.vector for queue in user.device.queues] == [0xFFFF] * 2
    assert user.device.dma_read(user.device.queues[0].places[1], 2) == b"\1\0"


def test_packets_of_others_go_on_from_port_to_port_and_back() -> None:
    user = User(nic=True)
    for bdf in (BDF, NIC):
        user.do("listen", bdf=bdf)
    user.deliver(user.device, 0, 20)
    assert user.do("relay", packets=20) | {"seconds": 0} == {
        "packets": 20, "bytes": 20 * 4084, "dropped": 0, "seconds": 0, "failed": ""
    }  # fmt: skip
    user.rig.pump()
    assert user.cable == [numbered_frame(number, 4084, MAC, OTHER) for number in range(20)]
    back = [numbered_frame(number, 100 + number, OTHER, MAC) for number in range(20)]
    user.meanwhile += [lambda frame=frame: user.nic.receive_frame(frame) for frame in back]  # type: ignore[misc]
    assert user.do("relay", packets=20)["packets"] == 20
    assert user.sent == back


def test_a_frame_that_is_too_long_for_the_other_port_is_no_packet() -> None:
    """A pool that leaves room for a header has none for the longest frame of a nic."""
    user = User(nic=True)
    for bdf in (BDF, NIC):
        user.do("listen", bdf=bdf)
    frames = bytes(4096), BROADCAST + bytes(4078)
    user.meanwhile += [lambda frame=frame: user.nic.receive_frame(frame) for frame in frames]  # type: ignore[misc]
    assert user.do("relay", packets=1)["packets"] == 1
    assert [len(frame) for frame in user.sent] == [4084]


def test_where_nothing_comes_the_relay_says_so() -> None:
    told = User(nic=True).do("relay", packets=1)
    assert told["packets"] == 0 and "no packet in 5 s" in told["failed"]


def test_a_port_without_a_loopback_has_no_packets_of_its_own_to_forward() -> None:
    user = User(nic=True)
    with pytest.raises(OSError, match="unless somebody sends") as raised:
        user.do("forward", packets=2)
    assert raised.value.errno == EINVAL
    assert user.do("io", bdf=NIC, operations=2)["failed"], "with a cable that nobody answers on"
    with pytest.raises(OSError, match="no loopback") as raised:
        user.do("attack", bdf=BDF, steps=[])
    assert raised.value.errno == ENOTSUP


def test_frames_wait_for_a_switch_that_comes_back() -> None:
    user = User()
    user.do("listen", bdf=BDF)
    work, user.device.work = user.device.work, lambda: None  # type: ignore[method-assign]
    user.device.set_link(False)
    assert not user.do("link_up", bdf=BDF)

    def come_back() -> None:
        user.device.work = work  # type: ignore[method-assign]
        user.device.set_link(True)

    user.meanwhile += [lambda: None] * 100 + [come_back]
    user.do("send", bdf=BDF, first=0, count=3, size=60, destination=OTHER)
    assert user.sent == [numbered_frame(number, 60, OTHER, MAC) for number in range(3)]
    assert user.do("link_up", bdf=BDF)


def test_a_device_that_needs_a_reset_gets_one_from_the_next_start() -> None:
    user = User()
    port = user.commands._port(BDF)
    user.device.work = lambda: None  # type: ignore[method-assign]
    user.meanwhile.append(user.device.break_down)
    assert "needs a reset" in user.do("io", bdf=BDF, operations=1)["failed"]
    del user.device.work  # type: ignore[attr-defined]
    port.start()
    assert user.do("io", bdf=BDF, operations=1)["verified"]


def test_what_the_device_does_not_have_is_not_taken_from_it_and_all_buffers_come_back() -> None:
    user = User()
    port = user.commands._port(BDF)
    assert isinstance(port, VirtioPort)
    free = port.pool.available
    port.start()
    assert port.pool.available == free - RING_SIZE
    user.deliver(user.device, 0, 3)
    user.device.use(user.device.queues[0], RING_SIZE, 60)
    with pytest.raises(OSError, match="which it does not have") as raised:
        port.rx_burst(32)
    assert raised.value.errno == EIO
    user.device.never_resets = True
    port.stop()
    assert port.pool.available == free and not user.rig.bus_master()
    user.device.never_resets = False
    assert user.do("io", bdf=BDF, operations=8)["verified"] and user.rig.bus_master()


def test_a_switch_that_takes_nothing_is_given_up() -> None:
    user = User()
    user.device.work = lambda: None  # type: ignore[method-assign]
    with pytest.raises(OSError) as raised:
        user.do("send", bdf=BDF, first=0, count=1, size=60, destination=OTHER)
    assert raised.value.errno == ETIMEDOUT


def test_it_is_not_slept_on() -> None:
    system = LocalSystem(machine=VirtioRig)
    with pytest.raises(OSError, match="no receive interrupt"):
        Application(system, {NAME: "vfio"}, system.rig.lines.append, rx_interrupts=[NAME])
