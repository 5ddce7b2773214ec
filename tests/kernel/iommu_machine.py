"""A machine whose remapping unit may hide capabilities, booted for tests of its driver."""

from __future__ import annotations

from collections import Counter

from tests.kernel.fake_machine import FakeMachine, endpoint, root_port
from viommu_actors.kernel.dma import Direction
from viommu_actors.kernel.intel_iommu import IntelIommu
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.pci import PciDevice
from viommu_actors.spec import platform
from viommu_actors.spec.vtd import Reg
from viommu_actors.vtd.config import UnitConfig

PAGE = 4096
GIB = 1 << 30
EDU, OTHER = 0x20, 0x28
DIRECTIONS = list(Direction)
#: CAP and ECAP bits.
QUEUED_INVALIDATION = 1 << 1
LARGE_2M, LARGE_1G, PAGE_SELECTIVE = 1 << 34, 1 << 35, 1 << 39


class Machine(FakeMachine):
    """A machine whose unit hides some of its capabilities."""

    hide_capability = 0
    hide_extended = 0

    def mmio_read(self, address: int, size: int) -> int:
        value = super().mmio_read(address, size)
        if address == platform.REMAPPING_UNIT_BASE + Reg.CAP:
            value &= ~self.hide_capability
        if address == platform.REMAPPING_UNIT_BASE + Reg.ECAP:
            value &= ~self.hide_extended
        return value


def machine_of(unit: UnitConfig, command_line: str = "intel_iommu=on") -> Machine:
    functions = {EDU: endpoint(), OTHER: endpoint(2), 0x30: root_port(6, endpoint())}
    return Machine(command_line, unit, functions)


def booted(machine: Machine) -> tuple[Kernel, IntelIommu, PciDevice]:
    kernel = Kernel(machine, drivers=())
    kernel.boot(machine.boot_params)
    assert kernel.iommu is not None
    return kernel, kernel.iommu, kernel.device(EDU)


def spent(kernel: Kernel, before: Counter[str]) -> dict[str, int]:
    return {name: count - before[name] for name, count in kernel.counters.items() if count != before[name]}
