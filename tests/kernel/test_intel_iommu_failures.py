"""The intel-iommu driver where its unit fails or records faults."""

from __future__ import annotations

import pytest

from tests.kernel.iommu_machine import EDU, OTHER, PAGE, QUEUED_INVALIDATION, booted, machine_of
from viommu_actors.kernel import faults
from viommu_actors.kernel.dma import Direction
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.machine import KernelPanic
from viommu_actors.spec import platform
from viommu_actors.spec.vtd import FaultReason, Reg
from viommu_actors.vtd.config import UnitConfig

# --- a unit that fails


def test_a_queue_error_and_a_dead_queue_panic() -> None:
    machine = machine_of(UnitConfig(caching_mode=True))
    kernel, _, device = booted(machine)
    iova = kernel.dma(device).map(0x20_0000, PAGE, Direction.TO_DEVICE)
    real = machine.mmio_write

    def broken(address: int, size: int, value: int) -> None:
        if address == platform.REMAPPING_UNIT_BASE + Reg.IQT:
            value = 0x7FFF0
        real(address, size, value)

    machine.mmio_write = broken  # type: ignore[method-assign]
    with pytest.raises(KernelPanic, match="invalidation queue error"):
        kernel.dma(device).unmap(iova, PAGE, Direction.TO_DEVICE)
    machine = machine_of(UnitConfig(caching_mode=True))
    kernel, _, device = booted(machine)
    machine.mmio_write = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(KernelPanic, match="does not complete"):
        kernel.dma(device).map(0x20_0000, PAGE, Direction.TO_DEVICE)


def test_a_unit_that_takes_no_command_panics() -> None:
    machine = machine_of(UnitConfig())
    real = machine.mmio_write

    def deaf(address: int, size: int, value: int) -> None:
        if address != platform.REMAPPING_UNIT_BASE + Reg.GCMD:
            real(address, size, value)

    machine.mmio_write = deaf  # type: ignore[method-assign]
    with pytest.raises(KernelPanic, match="does not take command"):
        booted(machine)


def test_a_register_invalidation_that_never_ends_panics() -> None:
    machine = machine_of(UnitConfig())
    machine.hide_extended = QUEUED_INVALIDATION
    kernel, _, device = booted(machine)
    iova = kernel.dma(device).map(0x20_0000, PAGE, Direction.TO_DEVICE)
    machine.mmio_read = lambda address, size: (1 << 8 * size) - 1  # type: ignore[method-assign]
    with pytest.raises(KernelPanic, match="does not complete"):
        kernel.dma(device).unmap(iova, PAGE, Direction.TO_DEVICE)


def test_no_usable_width() -> None:
    machine = machine_of(UnitConfig())
    machine.hide_capability = 0x1F << 8
    kernel = Kernel(machine, drivers=())
    kernel.boot(machine.boot_params)
    assert kernel.iommu is None
    assert "DMAR: Cannot get a valid agaw for iommu (seq_id = 0)" in machine.lines


# --- faults


def test_faults_are_handled_by_interrupt_and_printed_as_linux_does() -> None:
    machine = machine_of(UnitConfig())
    kernel, iommu, _ = booted(machine)
    assert not machine.dma_write(EDU, 0x1234_5678, b"rogue")
    assert machine.wait_for_interrupt(0)
    assert [tuple(fault) for fault in iommu.faults] == [(EDU, 0x1234_5000, True, FaultReason.WRITE_DENIED)]
    assert "DMAR: DRHD: handling fault status reg 2" in machine.lines
    assert machine.lines[-1] == (
        "DMAR: [DMA Write NO_PASID] Request device [00:04.0] fault addr 0x12345000"
        " [fault reason 0x05] PTE Write access is not set"
    )
    assert machine.dma_read(OTHER, 0x7000, 4) is None
    assert machine.wait_for_interrupt(0), "the record was cleared, so the next fault interrupts again"
    records, lost = iommu.take_faults()
    assert [fault.source for fault in records] == [EDU, OTHER] and lost == 0
    assert iommu.take_faults() == ([], 0)
    assert kernel.counters["interrupts"] == 2


def test_overflow_is_counted_and_recording_goes_on() -> None:
    machine = machine_of(UnitConfig())
    _, iommu, _ = booted(machine)
    assert machine.dma_read(EDU, 0x7000, 4) is None
    assert machine.dma_read(OTHER, 0x8000, 4) is None
    records, lost = iommu.take_faults()
    assert [fault.source for fault in records] == [EDU] and lost == 1
    assert machine.dma_read(OTHER, 0x8000, 4) is None
    assert [fault.source for fault in iommu.take_faults()[0]] == [OTHER]


def test_a_flood_of_faults_is_bounded() -> None:
    machine = machine_of(UnitConfig())
    _, iommu, _ = booted(machine)
    for page in range(3000):
        machine.dma_read(EDU, page * PAGE, 4)
        machine.wait_for_interrupt(0)
    assert len(iommu.faults) == 1024 and iommu.faults_lost == 3000 - 1024
    assert len(machine.lines) < 2200
    records, lost = iommu.take_faults()
    assert (len(records), lost) == (1024, 3000 - 1024)


def test_a_storm_of_faults_leaves_the_processor_alone_until_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "STORM", 2000)
    machine = machine_of(UnitConfig())
    kernel, iommu, _ = booted(machine)

    def flood() -> int:
        before = kernel.counters["interrupts"]
        for page in range(3000):
            machine.dma_read(EDU, page * PAGE, 4)
            machine.wait_for_interrupt(0)
        return kernel.counters["interrupts"] - before

    assert flood() == 2000
    assert kernel.counters["fault_storms"] == 1
    assert [line for line in machine.lines if "fault event masked" in line]
    records, lost = iommu.take_faults()
    assert len(records) + lost == 2000 + 1, "those before, and the one that waited in the unit"
    assert flood() == 2000, "it is heard again"
    assert machine.unit.counters["faults"] == 6000
