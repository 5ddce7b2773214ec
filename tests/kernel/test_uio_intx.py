"""The interrupt of UIO: INTx, counted and masked by the driver, let through again by configuration space."""

from __future__ import annotations

from errno import EAGAIN, EBUSY, EIO, ENODEV, ENOSYS

import pytest

from tests.kernel.fake_machine import FakeMachine, endpoint
from tests.kernel.user_intx import UioUser
from tests.kernel.users import ROOT
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.process import UserProcess
from viommu_actors.kernel.uio import Uio, UioFile
from viommu_actors.pci import config_space
from viommu_actors.spec import pci
from viommu_actors.spec.ioapic import intx_line


def test_an_interrupt_wakes_the_process_once_and_is_kept_from_the_wire() -> None:
    user = UioUser()
    with pytest.raises(OSError, match="no interrupt since") as caught:
        user.file.read()
    assert caught.value.errno == EAGAIN
    user.ring()
    user.settle()
    assert user.woken == [user.descriptor] and not user.wire
    assert user.file.read() == 1
    # Nobody has seen to the device, and still nothing comes: its wire is not for it.
    user.ring(2)
    user.settle()
    assert user.woken == [user.descriptor]


def test_it_comes_again_once_it_is_let_through() -> None:
    user = UioUser()
    for count in (1, 2, 3):
        user.ring()
        user.settle()
        assert user.file.read() == count
        user.see_to_it()
        user.let_through()
    assert user.woken == [user.descriptor] * 3


def test_what_asks_still_when_it_is_let_through_comes_at_once() -> None:
    user = UioUser()
    user.ring()
    user.settle()
    user.let_through()
    user.settle()
    assert user.file.read() == 2


def test_a_count_is_of_all_and_each_file_has_seen_its_own() -> None:
    user = UioUser()
    user.ring()
    user.settle()
    second = user.process.file(user.uio.open(user.process, user.device.name), UioFile)
    with pytest.raises(OSError, match="no interrupt since"):
        second.read()
    user.see_to_it()
    user.let_through()
    user.ring()
    user.settle()
    assert user.file.read() == second.read() == 2


def test_the_driver_has_no_irqcontrol() -> None:
    with pytest.raises(OSError, match="no irqcontrol") as caught:
        UioUser().file.write()
    assert caught.value.errno == ENOSYS


def test_another_device_on_the_line_is_none_of_its() -> None:
    user = UioUser()
    user.kernel.lines.request(user.other, lambda: True)
    user.other.set_command(0, pci.Command.INTX_DISABLE)
    user.other.write(0, 0x60, 4, 1)
    user.rig.wait_for_interrupt(0)
    assert user.woken == []


def test_unbound_it_lets_go_of_the_line() -> None:
    user = UioUser()
    with pytest.raises(OSError, match="has it open") as caught:
        user.uio.unbind(user.device.bdf)
    assert caught.value.errno == EBUSY
    user.process.close(user.descriptor)
    user.uio.unbind(user.device.bdf)
    assert user.rig.ioapic.masked(intx_line(1, 0))
    user.ring()
    user.settle()
    assert user.woken == []


def test_unbound_it_is_kept_from_a_wire_that_others_share() -> None:
    user = UioUser()
    user.process.close(user.descriptor)
    user.uio.unbind(user.device.bdf)
    user.ring()
    user.settle()
    assert not user.wire


def test_a_device_without_a_pin_binds_and_its_read_is_eio() -> None:
    machine = FakeMachine("", None, {0x18: endpoint()})
    kernel = Kernel(machine, drivers=())
    kernel.boot(machine.boot_params)
    uio, process = Uio(kernel), UserProcess("user", capabilities=ROOT)
    uio.bind(0x18)
    assert any("No IRQ assigned to device" in line for line in machine.lines)
    file = process.file(uio.open(process, "0000:00:03.0"), UioFile)
    for call in (file.read, file.write):
        with pytest.raises(OSError, match="has no interrupt") as caught:
            call()
        assert caught.value.errno == EIO


def test_intx_that_cannot_be_disabled_is_refused() -> None:
    function = endpoint()
    config_space.add_intx(function.space)
    function.space.define(pci.COMMAND, 2, 0, writable=pci.Command.MEMORY | pci.Command.BUS_MASTER)
    machine = FakeMachine("", None, {0x18: function})
    kernel = Kernel(machine, drivers=())
    kernel.boot(machine.boot_params)
    uio = Uio(kernel)
    with pytest.raises(OSError, match="cannot be disabled") as caught:
        uio.bind(0x18)
    assert caught.value.errno == ENODEV
    assert not uio.is_bound(0x18) and not kernel.uio_devices
