"""Which addresses an application gives to its devices: user addresses (VA) or physical ones (PA).

After DPDK's `rte_pci_get_iommu_class` and `rte_eal_init`: one mode for the whole process.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from viommu_actors.app.system import PciInfo
from viommu_actors.kernel.sysfs import VFIO_PCI
from viommu_actors.kernel.uio import NAME as UIO

#: Bits of a user address on x86-64 (Linux: Documentation/arch/x86/x86_64/mm.rst).
_USER_BITS = 47


class IovaMode(StrEnum):
    VA = "VA"
    PA = "PA"


def choose_iova_mode(devices: Sequence[PciInfo], *, noiommu_mode: bool, physical: bool) -> IovaMode:
    """The mode that fits the devices which the application may use; `physical`: it may learn physical addresses.

    PA where a device is driven by UIO, where VFIO may work without an IOMMU, or where an IOMMU is too narrow for user
    addresses. Else VA, where there is an IOMMU or physical addresses are unknown.
    """
    narrow = any(info.iommu_bits is not None and info.iommu_bits < _USER_BITS for info in devices)
    if narrow or any(info.driver == UIO or (info.driver == VFIO_PCI and noiommu_mode) for info in devices):
        return IovaMode.PA
    if not physical or any(info.iommu_group is not None for info in devices):
        return IovaMode.VA
    return IovaMode.PA
