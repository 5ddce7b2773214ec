"""Applications that sleep until the device's interrupt wakes them, over the real kernel, IOMMU and nics."""

from __future__ import annotations

from errno import EINVAL, EIO, ENOTSUP, ETIMEDOUT

import pytest

from tests.app.local import FIRST, NOIOMMU, NONE, PASSTHROUGH, STRICT, LocalSystem
from viommu_actors.app.application import Application
from viommu_actors.app.commands import AppCommands
from viommu_actors.app.interrupt_mode import InterruptMode
from viommu_actors.app.pci import UserDriver
from viommu_actors.app.pmd_nic import BUFFER, NicPort
from viommu_actors.netdev import numbered_frame


def port_of(system: LocalSystem, driver: UserDriver = "vfio") -> NicPort:
    return Application(system, {FIRST: driver}, system.rig.lines.append, {FIRST}).ports[FIRST]


def frame(mode: InterruptMode, number: int) -> bytes:
    return numbered_frame(number, BUFFER, mode.mac, mode.mac)


@pytest.mark.parametrize(
    ("cmdline", "driver"), [(STRICT, "vfio"), (PASSTHROUGH, "vfio"), (f"{NONE} {NOIOMMU}", "noiommu")]
)
def test_each_packet_costs_an_interrupt_and_two_system_calls(cmdline: str, driver: UserDriver) -> None:
    system = LocalSystem(cmdline)
    port = port_of(system, driver)
    before, kernel = system.calls.copy(), system.kernel.counters["interrupts"]
    done = InterruptMode(system, port).round_trips(20)
    assert done[:3] == (20, 20 * BUFFER, True)
    assert system.calls - before == {"wait": 20, "read_count": 20}
    assert system.kernel.counters["interrupts"] - kernel == 20
    assert (port.statistics["rx_wakes"], port.statistics["rx_interrupts"]) == (20, 20)


@pytest.mark.parametrize("seed", range(8))
def test_no_packet_is_slept_through_in_whatever_order_messages_arrive(seed: int) -> None:
    system = LocalSystem(seed=seed)
    assert InterruptMode(system, port_of(system)).round_trips(30).verified


def test_packets_that_came_before_the_interrupt_was_armed_are_found() -> None:
    system = LocalSystem()
    port = port_of(system)
    mode = InterruptMode(system, port)
    mode.listen()
    for number in range(3):
        mode.send(frame(mode, number))
        system.rig.pump()
    assert [mode.receive() for _ in range(3)] == [frame(mode, number) for number in range(3)]
    # Three interrupts of an eventfd that nobody had read are one wake.
    assert (port.statistics["rx_wakes"], port.statistics["rx_interrupts"]) == (1, 3)


def test_a_sleep_that_nothing_ends_is_given_up() -> None:
    system = LocalSystem()
    mode = InterruptMode(system, port_of(system))
    mode.listen()
    with pytest.raises(OSError, match="no interrupt in 5 s") as caught:
        mode.receive()
    assert caught.value.errno == ETIMEDOUT


def test_a_ring_that_halts_is_told_as_such() -> None:
    system = LocalSystem()
    port = port_of(system)
    mode = InterruptMode(system, port)
    mode.listen()
    system.kernel.device(system.rig.bdf(1)).set_bus_master(False)
    for told in (lambda: mode.send(frame(mode, 0)), mode.receive):
        with pytest.raises(OSError, match="ring halted") as caught:
            told()
        assert caught.value.errno == EIO


def test_a_wait_that_was_for_nothing_goes_on() -> None:
    system = LocalSystem()
    port = port_of(system)
    mode = InterruptMode(system, port)
    mode.listen()
    assert port._interrupt is not None
    system.signalled.add(port._interrupt)
    mode.send(frame(mode, 0))
    assert mode.receive() == frame(mode, 0)
    assert port.statistics["rx_wakes"] == 1


def test_a_port_that_only_polls_is_not_slept_on() -> None:
    system = LocalSystem()
    port = Application(system, {FIRST: "vfio"}, system.rig.lines.append).ports[FIRST]
    with pytest.raises(OSError, match="no receive interrupt") as caught:
        InterruptMode(system, port)
    assert caught.value.errno == EINVAL
    with pytest.raises(OSError, match="no receive interrupt") as caught:
        port.rx_sleep(0)
    assert caught.value.errno == ENOTSUP


def test_nothing_is_left_of_it() -> None:
    system = LocalSystem()
    application = Application(system, {FIRST: "vfio"}, system.rig.lines.append, {FIRST})
    application.close()
    assert not system.process.files
    assert system.kernel.irq.messages_of(system.rig.bdf(1)) == []


def test_no_frame_is_too_long_or_too_short() -> None:
    system = LocalSystem()
    mode = InterruptMode(system, port_of(system))
    for size in (13, BUFFER + 1):
        with pytest.raises(OSError, match=f"no frame has {size} bytes"):
            mode.send(bytes(size))


def test_by_command() -> None:
    system = LocalSystem()
    commands = AppCommands(system, system.rig.log, lambda size: b"\x5a" * size)
    commands.start({"01:00.0": "vfio"}, ["01:00.0"])
    told = commands.io("01:00.0", 10)
    assert (told["packets"], told["verified"], told["failed"]) == (5, True, "")
    assert commands.wakes == 5


def test_by_uio_interrupts_of_whoever_had_the_device_before_are_not_counted() -> None:
    system = LocalSystem(PASSTHROUGH, intremap=True)
    for packets in (3, 4):
        application = Application(system, {FIRST: "uio"}, system.rig.lines.append, {FIRST})
        port = application.ports[FIRST]
        assert InterruptMode(system, port).round_trips(packets).verified
        assert (port.statistics["rx_wakes"], port.statistics["rx_interrupts"]) == (packets, packets)
        application.close()
