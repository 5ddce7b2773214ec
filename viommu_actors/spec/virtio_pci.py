"""Virtio over PCI, modern: the structures of virtio 1.2 section 4.1, where QEMU places them (hw/virtio/virtio-pci.c).

Offsets are bytes from the start of the structure, or of the capability, that they belong to.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

VENDOR_ID: Final = 0x1AF4
#: Device ID of a modern device: this and the device type.
DEVICE_ID_BASE: Final = 0x1040
SUBSYSTEM_ID: Final = 0x1100
REVISION: Final = 1

# --- BARs

#: MSI-X has a BAR of its own, the table from its start, the pending bits in its second half.
MSIX_BAR: Final = 1
MSIX_BAR_SIZE: Final = 0x1000
MSIX_TABLE: Final = 0x000
MSIX_PBA: Final = 0x800
#: 64-bit and prefetchable: a page for each structure.
BAR: Final = 4
BAR_SIZE: Final = 0x4000
COMMON: Final = 0x0000
ISR: Final = 0x1000
DEVICE: Final = 0x2000
NOTIFY: Final = 0x3000
STRUCTURE_SIZE: Final = 0x1000

# --- vendor capability (section 4.1.4)


class ConfigType(IntEnum):
    """What a capability tells the place of."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    #: A window of configuration space through which the BAR can be accessed.
    PCI = 5


CAP_LENGTH: Final = 0x02
CAP_TYPE: Final = 0x03
CAP_BAR: Final = 0x04
CAP_ID: Final = 0x05
#: 32 bits each: where in the BAR the structure starts, and its bytes.
CAP_OFFSET: Final = 0x08
CAP_SIZE: Final = 0x0C
#: Bytes of a capability without more.
CAP_BYTES: Final = 0x10
#: ConfigType.NOTIFY: what a queue's `QUEUE_NOTIFY_OFF` is multiplied by.
CAP_NOTIFY_MULTIPLIER: Final = 0x10
CAP_NOTIFY_BYTES: Final = 0x14
NOTIFY_MULTIPLIER: Final = 4
#: ConfigType.PCI: the data, 1, 2 or 4 bytes as CAP_SIZE says.
CAP_PCI_DATA: Final = 0x10
CAP_PCI_BYTES: Final = 0x14

# --- common configuration (section 4.1.4.3)


class Common(IntEnum):
    """Offsets of the common configuration; the fields from QUEUE_SIZE on are the selected queue's."""

    DEVICE_FEATURE_SELECT = 0x00
    DEVICE_FEATURE = 0x04
    DRIVER_FEATURE_SELECT = 0x08
    DRIVER_FEATURE = 0x0C
    CONFIG_MSIX_VECTOR = 0x10
    NUM_QUEUES = 0x12
    DEVICE_STATUS = 0x14
    CONFIG_GENERATION = 0x15
    QUEUE_SELECT = 0x16
    QUEUE_SIZE = 0x18
    QUEUE_MSIX_VECTOR = 0x1A
    QUEUE_ENABLE = 0x1C
    QUEUE_NOTIFY_OFF = 0x1E
    QUEUE_DESC = 0x20
    QUEUE_DESC_HIGH = 0x24
    QUEUE_DRIVER = 0x28
    QUEUE_DRIVER_HIGH = 0x2C
    QUEUE_DEVICE = 0x30
    QUEUE_DEVICE_HIGH = 0x34


COMMON_BYTES: Final = 0x38
#: Of a queue or of configuration changes: no interrupt; what reads back where a vector could not be had.
NO_VECTOR: Final = 0xFFFF


class Isr(IntFlag):
    """ISR status (section 4.1.4.5): reading clears it."""

    QUEUE = 1 << 0
    CONFIGURATION = 1 << 1
