"""Interrupts: vectors, MSI programming, masks, and what nobody asked for."""

from __future__ import annotations

from collections import Counter
from errno import ENOSPC, ENOTSUP

import pytest

from tests.kernel.fake_machine import FakeMachine, endpoint
from viommu_actors.kernel.irq import FIRST_VECTOR, LAST_VECTOR, Interrupts
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.spec import pci


def interrupts() -> tuple[Interrupts, Counter[str], list[str]]:
    counters, lines = Counter[str](), list[str]()
    return Interrupts(counters, lines.append), counters, lines


def test_msi_is_programmed_delivered_and_freed() -> None:
    machine = FakeMachine(functions={0x20: endpoint()})
    kernel = Kernel(machine, drivers=())
    kernel.boot(machine.boot_params)
    device = kernel.device(0x20)
    msi = device.capability(pci.CapabilityId.MSI)
    assert msi is not None
    came: list[int] = []
    vector = kernel.irq.request_msi(device, lambda: came.append(1))
    assert device.config_read(msi + pci.MSI_ADDRESS, 4) == 0xFEE0_0000
    assert device.config_read(msi + pci.MSI_ADDRESS_UPPER, 4) == 0
    assert device.config_read(msi + pci.MSI_DATA_64, 2) == vector
    assert device.config_read(msi + pci.MSI_CONTROL, 2) & pci.MSI_ENABLE
    machine.vectors.extend([vector, vector])
    assert machine.wait_for_interrupt(0) and came == [1, 1]
    assert kernel.counters["interrupts"] == 2
    assert not machine.wait_for_interrupt(0)
    kernel.irq.free(vector)
    assert not device.config_read(msi + pci.MSI_CONTROL, 2) & pci.MSI_ENABLE
    machine.vectors.append(vector)
    machine.wait_for_interrupt(0)
    assert came == [1, 1] and kernel.counters["spurious_interrupts"] == 1
    assert kernel.irq.request_msi(device, lambda: None) == vector


def test_a_32_bit_msi() -> None:
    function = endpoint()
    msi = function.space.capability(pci.CapabilityId.MSI)
    assert msi is not None
    function.space.define(msi + pci.MSI_CONTROL, 2, 0, writable=pci.MSI_ENABLE)
    function.space.define(msi + pci.MSI_DATA_32, 2, 0, writable=0xFFFF)
    machine = FakeMachine(functions={0x20: function})
    kernel = Kernel(machine, drivers=())
    kernel.boot(machine.boot_params)
    vector = kernel.irq.request_msi(kernel.device(0x20), lambda: None)
    assert function.space.read(msi + pci.MSI_DATA_32, 2) == vector


def test_a_device_without_msi() -> None:
    machine = FakeMachine()
    kernel = Kernel(machine, drivers=())
    kernel.boot(machine.boot_params)
    with pytest.raises(OSError) as error:
        kernel.irq.request_msi(kernel.device(0), lambda: None)
    assert error.value.errno == ENOTSUP


def test_vectors_run_out_and_come_back() -> None:
    irq, _, _ = interrupts()
    vectors = [irq.request_vector(lambda: None) for _ in range(LAST_VECTOR - FIRST_VECTOR + 1)]
    assert vectors == list(range(FIRST_VECTOR, LAST_VECTOR + 1))
    with pytest.raises(OSError) as error:
        irq.request_vector(lambda: None)
    assert error.value.errno == ENOSPC
    irq.free(0x40)
    assert irq.request_vector(lambda: None) == 0x40


def test_a_masked_interrupt_waits() -> None:
    irq, _, _ = interrupts()
    came: list[int] = []
    vector = irq.request_vector(lambda: came.append(1))
    irq.mask(vector)
    irq.dispatch(vector)
    irq.dispatch(vector)
    assert came == []
    irq.unmask(vector)
    assert came == [1], "interrupts of one vector coalesce"
    irq.dispatch(vector)
    assert came == [1, 1]


def test_spurious_interrupts_are_counted_and_logged_only_so_often() -> None:
    irq, counters, lines = interrupts()
    for vector in range(256):
        irq.dispatch(vector)
    assert counters["interrupts"] == counters["spurious_interrupts"] == 256
    assert len(lines) == 10 and lines[0] == "irq: no handler for vector 0x0"
