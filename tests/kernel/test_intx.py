"""INTx from a device's wire to a handler: message, line, I/O APIC, remapping, and what becomes of one nobody takes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tests.devices.rig import Rig
from viommu_actors.devices.edu import Edu
from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.devices.nic import Nic
from viommu_actors.kernel import intx
from viommu_actors.kernel.lines import UNHANDLED_LIMIT
from viommu_actors.kernel.pci import PciDevice
from viommu_actors.pci.component import BridgeConfig, SwitchConfig
from viommu_actors.spec import edu, pci
from viommu_actors.spec.edu import Reg
from viommu_actors.spec.ioapic import intx_line

REMAPS = {"intremap": True}


def rig(cmdline: str = "intel_iommu=on", **options: Any) -> Rig:
    return Rig(dict.fromkeys((1, 2, 5), Edu), cmdline, drivers=(), **options)


class Asked:
    """A driver of an edu that counts its interrupts; `sees_to_it` takes the cause away."""

    def __init__(self, machine: Rig, device: PciDevice, sees_to_it: bool = True) -> None:
        self.device = device
        self.count = 0
        self._machine = machine
        self._sees_to_it = sees_to_it
        intx.enable(device, True)
        machine.kernel.lines.request(device, self.handle)

    def ring(self) -> None:
        self.device.write(edu.BAR, Reg.INTERRUPT_RAISE, 4, 1)

    def handle(self) -> bool:
        causes = self.device.read(edu.BAR, Reg.INTERRUPT_STATUS, 4)
        if not causes:
            return False
        self.count += 1
        if self._sees_to_it:
            self.device.write(edu.BAR, Reg.INTERRUPT_ACKNOWLEDGE, 4, causes)
        return True


def wait(machine: Rig, times: int = 10) -> None:
    for _ in range(times):
        if not machine.wait_for_interrupt(0):
            return


def device_of(machine: Rig, slot: int) -> PciDevice:
    return machine.kernel.device(machine.bdf(slot))


@pytest.mark.parametrize("options", [{}, REMAPS], ids=["compatibility format", "remapped"])
def test_an_interrupt_that_is_seen_to_comes_once(options: dict[str, Any]) -> None:
    machine = rig(**options)
    asked = Asked(machine, device_of(machine, 1))
    for expected in (1, 2, 3):
        asked.ring()
        wait(machine)
        assert asked.count == expected
    assert machine.kernel.counters["spurious_interrupts"] == 0


def test_one_that_is_not_seen_to_comes_again_and_again() -> None:
    machine = rig()
    asked = Asked(machine, device_of(machine, 1), sees_to_it=False)
    asked.ring()
    wait(machine, times=5)
    assert asked.count == 5


def test_devices_share_a_line_and_each_takes_its_own() -> None:
    machine = rig(**REMAPS)
    one, other = Asked(machine, device_of(machine, 1)), Asked(machine, device_of(machine, 5))
    assert machine.kernel.lines.line_of(one.device) == machine.kernel.lines.line_of(other.device) == intx_line(1, 0)
    one.ring()
    wait(machine)
    assert (one.count, other.count) == (1, 0)
    one.ring()
    other.ring()
    wait(machine)
    assert (one.count, other.count) == (2, 1)
    machine.kernel.lines.free(one.device)
    other.ring()
    wait(machine)
    assert other.count == 2


def test_an_interrupt_that_nobody_takes_disables_its_line() -> None:
    machine = rig()
    machine.kernel.lines.request(device_of(machine, 1), lambda: False)
    stranger = device_of(machine, 5)
    intx.enable(stranger, True)
    stranger.write(edu.BAR, Reg.INTERRUPT_RAISE, 4, 1)
    wait(machine, times=2 * UNHANDLED_LIMIT)
    assert machine.kernel.counters["interrupts"] == UNHANDLED_LIMIT
    assert "irq 21: nobody cared; Disabling IRQ #21" in machine.lines


def test_a_disabled_line_has_another_try_with_another_handler() -> None:
    machine = rig()
    machine.kernel.lines.request(device_of(machine, 1), lambda: False)
    stranger = device_of(machine, 5)
    intx.enable(stranger, True)
    stranger.write(edu.BAR, Reg.INTERRUPT_RAISE, 4, 1)
    wait(machine, times=2 * UNHANDLED_LIMIT)
    asked = Asked(machine, stranger)
    wait(machine)
    assert asked.count == 1
    asked.ring()
    wait(machine)
    assert asked.count == 2


def test_interrupt_disable_keeps_the_wire_down_and_status_tells_all_the_same() -> None:
    machine = rig()
    device = device_of(machine, 1)
    asked = Asked(machine, device)
    assert intx.mask_supported(device)
    assert not intx.check_and_mask(device)
    intx.enable(device, False)
    asked.ring()
    wait(machine)
    assert asked.count == 0
    assert device.config_read(pci.STATUS, 2) & pci.Status.INTX
    assert not intx.check_and_unmask(device)
    intx.enable(device, True)
    wait(machine)
    assert asked.count == 1
    assert intx.check_and_unmask(device)


def test_a_function_whose_msi_is_on_has_no_intx() -> None:
    machine = rig()
    device = device_of(machine, 1)
    asked = Asked(machine, device)
    machine.kernel.irq.request_msi(device, lambda: None)
    device.set_bus_master(True)
    asked.ring()
    wait(machine)
    assert asked.count == 0 and not device.config_read(pci.STATUS, 2) & pci.Status.INTX
    machine.kernel.irq.free_device(device)
    wait(machine)
    assert asked.count == 1, "the cause still stands"


def test_a_link_that_goes_down_takes_its_wire_with_it() -> None:
    machine = rig()
    asked = Asked(machine, device_of(machine, 1), sees_to_it=False)
    asked.ring()
    wait(machine, times=1)
    machine.root.detach("slot1")
    wait(machine)
    before = machine.kernel.counters["interrupts"]
    wait(machine)
    assert machine.kernel.counters["interrupts"] == before


def test_a_reset_takes_the_wire_down() -> None:
    machine = rig()
    asked = Asked(machine, device_of(machine, 1), sees_to_it=False)
    asked.ring()
    machine.pump()
    assert machine.root.ports["slot1"].wires == (0,)
    express = asked.device.capability(pci.CapabilityId.PCI_EXPRESS)
    assert express is not None
    asked.device.config_write(express + pci.EXP_DEVICE_CONTROL, 2, pci.DEVCTL_FLR)
    assert machine.root.ports["slot1"].wires == ()


@pytest.mark.parametrize("below", [SwitchConfig("c", 3), BridgeConfig("c", 3)], ids=["switch", "bridge"])
def test_behind_a_component_pins_are_turned_as_the_kernel_expects(below: SwitchConfig | BridgeConfig) -> None:
    machine = Rig({}, components={3: (below, [Edu, Edu, Edu])}, drivers=(), **REMAPS)
    devices = [device for device in machine.kernel.pci if device.device == edu.DEVICE_ID]
    asked = [Asked(machine, device) for device in devices]
    assert [machine.kernel.lines.line_of(device) for device in devices] == [23, 20, 21]
    for each in asked:
        each.ring()
        wait(machine)
    assert [each.count for each in asked] == [1, 1, 1]


def test_a_line_that_no_driver_asked_for_is_masked() -> None:
    machine = rig()
    device = device_of(machine, 1)
    intx.enable(device, True)
    device.write(edu.BAR, Reg.INTERRUPT_RAISE, 4, 1)
    assert not machine.wait_for_interrupt(0)


def test_a_remapping_entry_of_a_line_is_taken_from_the_io_apic_alone() -> None:
    """A device that forges the I/O APIC's message is blocked: its requester ID is not that of the entry."""
    machine = rig(**REMAPS)
    Asked(machine, device_of(machine, 1))
    blocked = machine.unit.counters["interrupts_blocked"]
    assert machine._interrupt(machine.bdf(1), 0xFEE0_0010, 0x8000) is not None
    assert machine.unit.counters["interrupts_blocked"] == blocked + 1


@pytest.mark.parametrize("options", [{}, REMAPS], ids=["compatibility format", "remapped"])
def test_drivers_do_with_intx_where_a_device_has_no_msi(options: dict[str, Any]) -> None:
    machine = Rig(
        {
            1: lambda send, log: _without_messages(Edu(send, log)),
            5: lambda send, log: _without_messages(Nic(send, log, mac=bytes(6), msix=False)),
        },
        **options,
    )
    before = machine.kernel.counters["interrupts"]
    for slot in (1, 5):
        assert machine.driver(slot).run_io(8).verified
    assert machine.kernel.counters["interrupts"] - before == 8 + 4
    for slot in (1, 5):
        machine.kernel.unbind(machine.bdf(slot))
    assert machine.ioapic.masked(intx_line(1, 0))


def _without_messages(device: Endpoint) -> Endpoint:
    """As a device that has INTx alone: the chain of its capabilities leads past MSI."""
    config = device.config
    chain = [offset for kind, offset in config.capabilities() if kind != pci.CapabilityId.MSI]
    config.define(pci.CAPABILITY_POINTER, 1, chain[0])
    for offset, following in pairwise([*chain, 0]):
        config.define(offset + pci.CAPABILITY_NEXT, 1, following)
    device._msi = None
    return device
