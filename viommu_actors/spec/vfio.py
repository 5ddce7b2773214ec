"""The VFIO user interface: indexes, flags and types of linux/vfio.h, and what vfio-pci makes of them.

Linux `include/uapi/linux/vfio.h`; the meaning of each constant is that of the header.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

API_VERSION: Final = 0
PAGE_SIZE: Final = 4096
#: Addresses and sizes of the interface are unsigned 64-bit integers.
ADDRESS_LIMIT: Final = 1 << 64


class IommuType(IntEnum):
    """VFIO_SET_IOMMU: which IOMMU driver a container is to use."""

    TYPE1 = 1
    TYPE1V2 = 3
    NOIOMMU = 8


class GroupFlags(IntFlag):
    """VFIO_GROUP_GET_STATUS."""

    VIABLE = 1 << 0
    CONTAINER_SET = 1 << 1


class DmaFlags(IntFlag):
    """VFIO_IOMMU_MAP_DMA: what the device may do with the memory."""

    READ = 1 << 0
    WRITE = 1 << 1


class DeviceFlags(IntFlag):
    """VFIO_DEVICE_GET_INFO."""

    RESET = 1 << 0
    PCI = 1 << 1


class RegionFlags(IntFlag):
    """VFIO_DEVICE_GET_REGION_INFO."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2


class IrqFlags(IntFlag):
    """VFIO_DEVICE_GET_IRQ_INFO."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


class IrqAction(IntEnum):
    """VFIO_DEVICE_SET_IRQS without data: what is done to interrupts (VFIO_IRQ_SET_ACTION_*)."""

    MASK = 1 << 3
    UNMASK = 1 << 4
    #: As if the device had raised them.
    TRIGGER = 1 << 5


class RegionIndex(IntEnum):
    """Regions of a vfio-pci device; BAR n is region n."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


REGION_COUNT: Final = len(RegionIndex)
BAR_REGIONS: Final = 6
#: A region's place in the file of its device: vfio-pci puts the index into bits 63:40 of the offset.
REGION_OFFSET_SHIFT: Final = 40


class IrqIndex(IntEnum):
    """Interrupt kinds of a vfio-pci device."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


IRQ_COUNT: Final = len(IrqIndex)
#: In the eventfds of VFIO_DEVICE_SET_IRQS: take away what is set.
NO_EVENTFD: Final = -1

#: vfio_iommu_type1's module parameter `dma_entry_limit` (U16_MAX): mappings of one container.
DMA_ENTRY_LIMIT: Final = 65535
