"""Registers of a device that another one is after, as their owner guards them, on a host in one process."""

from __future__ import annotations

import pytest

from tests.devices.rig import Rig
from viommu_actors.attacks.registers import RegisterGuard
from viommu_actors.devices.edu import Edu
from viommu_actors.devices.nic import Nic
from viommu_actors.spec import edu, pci

NIC, EDU = 1, 2


def rig() -> Rig:
    return Rig({NIC: lambda send, log: Nic(send, log, mac=bytes([2, 0, 0, 0, 0, 1])), EDU: Edu})


def test_a_write_to_the_liveness_register_is_seen() -> None:
    machine = rig()
    guard = RegisterGuard(machine.kernel, lambda n: bytes(range(n)))
    assert guard.guard_liveness(machine.bdf(EDU)) == edu.Reg.LIVENESS
    before = guard.digest()
    assert guard.digest() == before == hex(0x0302_0100 ^ 0xFFFF_FFFF)
    machine.kernel.device(machine.bdf(EDU)).write(edu.BAR, edu.Reg.LIVENESS, 4, 7)
    assert guard.digest() != before
    guard.restore()
    assert guard.digest() == before


def test_a_write_to_the_interrupt_line_is_seen() -> None:
    machine = rig()
    guard = RegisterGuard(machine.kernel, bytes)
    device = machine.kernel.device(machine.bdf(NIC))
    assert guard.guard_interrupt_line(device.bdf) == pci.INTERRUPT_LINE
    before = guard.digest()
    device.config_write(pci.INTERRUPT_LINE, 1, 0x77)
    assert (guard.digest() == before) is False and guard.digest() == "0x77"
    guard.restore()
    assert guard.digest() == before


def test_a_nic_has_no_such_register() -> None:
    machine = rig()
    with pytest.raises(ValueError, match="is no edu"):
        RegisterGuard(machine.kernel, bytes).guard_liveness(machine.bdf(NIC))
