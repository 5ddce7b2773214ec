"""PCI and PCI Express configuration space: offsets, bits and codes.

PCI Local Bus 3.0 chapter 6, PCI-to-PCI Bridge 1.2 chapter 3, PCI Express Base 5.0 chapter 7.
Offsets are bytes from the start of configuration space, or of the capability that names them.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

CONFIG_SIZE = 4096
#: The part that conventional PCI has; extended capabilities start behind it.
CONVENTIONAL_SIZE = 256
#: What a read of an absent function returns as vendor ID (PCI 3.0 section 6.1).
ABSENT_VENDOR = 0xFFFF
DEVICES_PER_BUS = 32
FUNCTIONS_PER_DEVICE = 8

# --- addresses of functions


def bdf(bus: int, device: int, function: int) -> int:
    """Requester ID of a function: bus 15:8, device 7:3, function 2:0."""
    return bus << 8 | device << 3 | function


def bdf_bus(value: int) -> int:
    return value >> 8


def bdf_device(value: int) -> int:
    return value >> 3 & 0x1F


def bdf_function(value: int) -> int:
    return value & 7


def format_bdf(value: int) -> str:
    """`01:00.0`, as lspci prints it without the domain."""
    return f"{bdf_bus(value):02x}:{bdf_device(value):02x}.{bdf_function(value)}"


def parse_bdf(text: str) -> int:
    """Reads `01:00.0` or `0000:01:00.0`. Raises ValueError for anything else; only domain 0 exists."""
    try:
        *domain, bus, tail = text.split(":")
        device, function = tail.split(".")
        numbers = int(bus, 16), int(device, 16), int(function, 16)
        fits = len(domain) <= 1 and all(int(part, 16) == 0 for part in domain)
    except ValueError:
        fits = False
    if not fits or not (0 <= numbers[0] < 256 and 0 <= numbers[1] < 32 and 0 <= numbers[2] < 8):
        raise ValueError(f"{text!r} is no PCI address like 01:00.0")
    return bdf(*numbers)


def is_config_access(offset: int, size: int) -> bool:
    """Whether a configuration request may have this place and size: 1, 2 or 4 bytes, naturally aligned."""
    return size in (1, 2, 4) and offset % size == 0 and 0 <= offset <= CONFIG_SIZE - size


def ecam_offset(function: int, offset: int) -> int:
    """Place of a register in the enhanced configuration window (PCIe section 7.2.2)."""
    return function << 12 | offset


# --- header, common part (PCI 3.0 section 6.1)
VENDOR_ID = 0x00
DEVICE_ID = 0x02
COMMAND = 0x04
STATUS = 0x06
REVISION_ID = 0x08
CLASS_PROG = 0x09
CLASS_DEVICE = 0x0A
CACHE_LINE_SIZE = 0x0C
LATENCY_TIMER = 0x0D
HEADER_TYPE = 0x0E
BIST = 0x0F
BAR0 = 0x10
CAPABILITY_POINTER = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D
#: INTA to INTD, which the pin register counts from 1.
INTX_PINS = 4

HEADER_TYPE_ENDPOINT = 0
HEADER_TYPE_BRIDGE = 1
HEADER_TYPE_MASK = 0x7F
HEADER_MULTI_FUNCTION = 0x80

# --- header, type 0
SUBSYSTEM_VENDOR_ID = 0x2C
SUBSYSTEM_ID = 0x2E
ROM_ADDRESS = 0x30
ENDPOINT_BARS = 6

# --- header, type 1 (PCI-to-PCI Bridge 1.2 section 3.2)
PRIMARY_BUS = 0x18
SECONDARY_BUS = 0x19
SUBORDINATE_BUS = 0x1A
IO_BASE = 0x1C
IO_LIMIT = 0x1D
SECONDARY_STATUS = 0x1E
#: Address bits 31:20 stand in bits 15:4 of base and limit; the limit's low 20 bits are ones.
MEMORY_BASE = 0x20
MEMORY_LIMIT = 0x22
PREFETCH_BASE = 0x24
PREFETCH_LIMIT = 0x26
PREFETCH_BASE_UPPER = 0x28
PREFETCH_LIMIT_UPPER = 0x2C
BRIDGE_ROM_ADDRESS = 0x38
BRIDGE_CONTROL = 0x3E
BRIDGE_BARS = 2
WINDOW_MASK = 0xFFF0
WINDOW_GRANULARITY = 1 << 20
#: Low bits of the prefetchable base and limit: the window has 64-bit addresses.
PREFETCH_64 = 0x1
SECONDARY_BUS_RESET = 1 << 6


class Command(IntFlag):
    """Command register."""

    IO = 1 << 0
    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2
    PARITY = 1 << 6
    SERR = 1 << 8
    INTX_DISABLE = 1 << 10


class Status(IntFlag):
    """Status register; the high byte is cleared by writing ones."""

    INTX = 1 << 3
    CAPABILITIES = 1 << 4
    MASTER_DATA_PARITY_ERROR = 1 << 8
    SIGNALED_TARGET_ABORT = 1 << 11
    RECEIVED_TARGET_ABORT = 1 << 12
    RECEIVED_MASTER_ABORT = 1 << 13
    SIGNALED_SYSTEM_ERROR = 1 << 14
    DETECTED_PARITY_ERROR = 1 << 15


STATUS_WRITE_ONE_TO_CLEAR = 0xF900

# --- base address registers (PCI 3.0 section 6.2.5)
BAR_IO = 1 << 0
BAR_TYPE_MASK = 0x6
BAR_TYPE_64 = 0x4
BAR_PREFETCH = 1 << 3
BAR_MEMORY_MASK = 0xFFFF_FFF0
#: Smallest memory BAR that the address bits can express.
BAR_MIN_SIZE = 16


# --- capabilities
CAPABILITY_ID = 0
CAPABILITY_NEXT = 1
FIRST_CAPABILITY = 0x40


class CapabilityId(IntEnum):
    """Capability IDs (PCI Code and ID Assignment section 2)."""

    POWER_MANAGEMENT = 0x01
    MSI = 0x05
    VENDOR = 0x09
    PCI_EXPRESS = 0x10
    MSIX = 0x11


#: Extended capability header (PCIe section 7.6.3): ID 15:0, version 19:16, next 31:20.
FIRST_EXTENDED_CAPABILITY = 0x100
EXTENDED_ID_MASK = 0xFFFF
EXTENDED_VERSION_SHIFT = 16
EXTENDED_NEXT_SHIFT = 20


class ExtendedCapabilityId(IntEnum):
    """Extended capability IDs (PCI Code and ID Assignment section 3)."""

    AER = 0x0001
    ACS = 0x000D
    ARI = 0x000E
    ATS = 0x000F
    SRIOV = 0x0010
    PRI = 0x0013
    PASID = 0x001B


# --- power management (PCI Power Management 1.2 section 3.2)
PM_CAPABILITIES = 0x02
PM_CONTROL = 0x04
PM_SIZE = 8
PM_VERSION_1_2 = 3
PM_STATE_MASK = 0x3
PM_NO_SOFT_RESET = 1 << 3

# --- MSI (PCI 3.0 section 6.8.1), in its 64-bit form without masks
MSI_CONTROL = 0x02
MSI_ADDRESS = 0x04
MSI_ADDRESS_UPPER = 0x08
MSI_DATA_32 = 0x08
MSI_DATA_64 = 0x0C
MSI_SIZE_64 = 14
MSI_ENABLE = 1 << 0
MSI_MULTIPLE_CAPABLE_SHIFT = 1
MSI_MULTIPLE_CAPABLE_MASK = 0x000E
MSI_MULTIPLE_ENABLE_SHIFT = 4
MSI_MULTIPLE_ENABLE_MASK = 0x0070
MSI_64BIT = 1 << 7
MSI_MASKABLE = 1 << 8
#: How many messages a function may offer, or be given; multiple message capable and enable hold the index.
MSI_MESSAGES = (1, 2, 4, 8, 16, 32)

# --- MSI-X (PCI 3.0 section 6.8.2)
MSIX_CONTROL = 0x02
MSIX_TABLE = 0x04
MSIX_PBA = 0x08
MSIX_SIZE = 12
#: Table size holds the number of vectors less one.
MSIX_TABLE_SIZE_MASK = 0x07FF
MSIX_FUNCTION_MASK = 1 << 14
MSIX_ENABLE = 1 << 15
#: Table and PBA registers: the BAR in bits 2:0, the offset in it above.
MSIX_BAR_MASK = 0x7
MSIX_MAX_VECTORS = 2048
#: A table entry: message address (8 bytes), data (4), vector control (4).
MSIX_ENTRY_SIZE = 16
MSIX_ENTRY_ADDRESS = 0
MSIX_ENTRY_ADDRESS_UPPER = 4
MSIX_ENTRY_DATA = 8
MSIX_ENTRY_CONTROL = 12
MSIX_ENTRY_MASKED = 1 << 0
#: The pending bits come in qwords.
MSIX_PBA_UNIT = 8

# --- PCI Express capability (PCIe section 7.5.3), version 2 structure
EXP_FLAGS = 0x02
EXP_DEVICE_CAPABILITIES = 0x04
EXP_DEVICE_CONTROL = 0x08
EXP_DEVICE_STATUS = 0x0A
EXP_LINK_CAPABILITIES = 0x0C
EXP_LINK_CONTROL = 0x10
EXP_LINK_STATUS = 0x12
EXP_SLOT_CAPABILITIES = 0x14
EXP_SLOT_CONTROL = 0x18
EXP_SLOT_STATUS = 0x1A
EXP_ROOT_CONTROL = 0x1C
EXP_ROOT_CAPABILITIES = 0x1E
EXP_ROOT_STATUS = 0x20
EXP_DEVICE_CAPABILITIES_2 = 0x24
EXP_DEVICE_CONTROL_2 = 0x28
EXP_DEVICE_STATUS_2 = 0x2A
EXP_LINK_CAPABILITIES_2 = 0x2C
EXP_LINK_CONTROL_2 = 0x30
EXP_LINK_STATUS_2 = 0x32
EXP_SLOT_CAPABILITIES_2 = 0x34
EXP_SIZE = 0x3C

EXP_FLAGS_VERSION = 2
EXP_FLAGS_TYPE_SHIFT = 4
EXP_FLAGS_TYPE_MASK = 0x00F0
EXP_FLAGS_SLOT = 1 << 8


class PortType(IntEnum):
    """Device/port type of the PCI Express capabilities register (section 7.5.3.2)."""

    ENDPOINT = 0x0
    LEGACY_ENDPOINT = 0x1
    ROOT_PORT = 0x4
    UPSTREAM_PORT = 0x5
    DOWNSTREAM_PORT = 0x6
    #: A bridge from PCI Express to conventional PCI.
    PCI_BRIDGE = 0x7
    ROOT_COMPLEX_ENDPOINT = 0x9


# device capabilities, control, status
DEVCAP_MAX_PAYLOAD_MASK = 0x7
DEVCAP_EXTENDED_TAG = 1 << 5
DEVCAP_ROLE_BASED_ERRORS = 1 << 15
DEVCAP_FLR = 1 << 28
DEVCTL_ERROR_REPORTING = 0x000F
DEVCTL_RELAXED_ORDERING = 1 << 4
DEVCTL_MAX_PAYLOAD_SHIFT = 5
DEVCTL_MAX_PAYLOAD_MASK = 0x00E0
DEVCTL_EXTENDED_TAG = 1 << 8
DEVCTL_NO_SNOOP = 1 << 11
DEVCTL_MAX_READ_SHIFT = 12
DEVCTL_MAX_READ_MASK = 0x7000
DEVCTL_FLR = 1 << 15
#: Phantom functions would send DMA under requester ids that belong to no one.
DEVCTL_PHANTOM_FUNCTIONS = 1 << 9
DEVSTA_CORRECTABLE = 1 << 0
DEVSTA_NON_FATAL = 1 << 1
DEVSTA_FATAL = 1 << 2
DEVSTA_UNSUPPORTED_REQUEST = 1 << 3
DEVSTA_TRANSACTIONS_PENDING = 1 << 5
DEVSTA_WRITE_ONE_TO_CLEAR = 0x000F
#: Reset values of max payload (128) and max read request (512) in device control.
DEVCTL_MAX_PAYLOAD_DEFAULT = 0
DEVCTL_MAX_READ_DEFAULT = 2

# link capabilities, control, status
LNKCAP_SPEED_8GT = 0x3
LNKCAP_WIDTH_SHIFT = 4
LNKCAP_DLL_ACTIVE_REPORTING = 1 << 20
LNKCAP_PORT_NUMBER_SHIFT = 24
LNKCTL_DISABLE = 1 << 4
LNKCTL_RETRAIN = 1 << 5
LNKSTA_WIDTH_SHIFT = 4
LNKSTA_DLL_ACTIVE = 1 << 13
#: Supported link speeds vector: 2.5, 5 and 8 GT/s (section 7.5.3.18).
LNKCAP2_SPEEDS_8GT = 0x0E

# slot capabilities, control, status
SLTCAP_HOTPLUG_SURPRISE = 1 << 5
SLTCAP_HOTPLUG_CAPABLE = 1 << 6
SLTCAP_NO_COMMAND_COMPLETED = 1 << 18
SLTCAP_NUMBER_SHIFT = 19
SLTCTL_PRESENCE_CHANGE_ENABLE = 1 << 3
SLTCTL_HOTPLUG_INTERRUPT_ENABLE = 1 << 5
SLTCTL_LINK_CHANGE_ENABLE = 1 << 12
#: Attention and power indicator off.
SLTCTL_INDICATORS_OFF = 0x03C0
SLTSTA_PRESENCE_CHANGED = 1 << 3
SLTSTA_PRESENT = 1 << 6
SLTSTA_LINK_CHANGED = 1 << 8
SLTSTA_WRITE_ONE_TO_CLEAR = 0x011F

# device capabilities 2 and control 2
DEVCAP2_TIMEOUT_DISABLE = 1 << 4
DEVCAP2_ATOMIC_32 = 1 << 7
DEVCAP2_ATOMIC_64 = 1 << 8
DEVCAP2_ATOMIC_128_CAS = 1 << 9
DEVCTL2_TIMEOUT_MASK = 0x001F
DEVCTL2_ARI_FORWARDING = 1 << 5
DEVCTL2_ATOMIC_REQUESTER = 1 << 6

#: Sizes that max payload and max read request may be set to; the field holds the index.
PAYLOAD_SIZES = (128, 256, 512, 1024, 2048, 4096)


def payload_code(size: int) -> int:
    """Encoding of a max payload or read request size in bytes. Raises ValueError where it has none."""
    return PAYLOAD_SIZES.index(size)


def payload_size(code: int) -> int:
    """Bytes of a max payload or read request encoding; reserved codes 6 and 7 count as the smallest."""
    return PAYLOAD_SIZES[code] if code < len(PAYLOAD_SIZES) else PAYLOAD_SIZES[0]


# --- access control services (PCIe section 7.7.8)
ACS_CAPABILITY = 0x04
ACS_CONTROL = 0x06
ACS_SIZE = 8


class Acs(IntFlag):
    """ACS capability and control bits."""

    SOURCE_VALIDATION = 1 << 0
    TRANSLATION_BLOCKING = 1 << 1
    REQUEST_REDIRECT = 1 << 2
    COMPLETION_REDIRECT = 1 << 3
    UPSTREAM_FORWARDING = 1 << 4
    EGRESS_CONTROL = 1 << 5
    DIRECT_TRANSLATED = 1 << 6


# --- address translation services (PCIe section 10.5.1)
ATS_CAPABILITY = 0x04
ATS_CONTROL = 0x06
ATS_SIZE = 8
#: Invalidate queue depth: how many invalidations the function takes at a time, 0 for 32.
ATS_QUEUE_DEPTH_MASK = 0x1F
ATS_PAGE_ALIGNED = 1 << 5
#: Smallest translation unit, as a power of two of 4 KiB pages.
ATS_UNIT_MASK = 0x1F
ATS_ENABLE = 1 << 15


class ClassCode(IntEnum):
    """Base class and sub-class (PCI Code and ID Assignment section 1)."""

    UNCLASSIFIED_OTHER = 0x00FF
    ETHERNET = 0x0200
    HOST_BRIDGE = 0x0600
    PCI_BRIDGE = 0x0604


# --- identities of the fabric. Those that QEMU's models have, so that tools print names that tell what stands here.
VENDOR_REDHAT = 0x1B36
DEVICE_HOST_BRIDGE = 0x0008
DEVICE_ROOT_PORT = 0x000C
DEVICE_PCI_BRIDGE = 0x000E
VENDOR_TEXAS_INSTRUMENTS = 0x104C
DEVICE_SWITCH_UPSTREAM = 0x8232
DEVICE_SWITCH_DOWNSTREAM = 0x8233
