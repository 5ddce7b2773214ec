"""The project's own Ethernet controller: registers, descriptors and bits.

Two rings in memory, one to transmit and one to receive. The driver fills descriptors and writes the tail
(doorbell); the controller reads descriptors from its head up to the tail, moves the frames, writes each
descriptor's status back, and sends an interrupt where the descriptor asks for one. In steady state the driver
reads no register: all it needs is written to memory.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

#: No vendor has this ID (https://pci-ids.ucw.cz), nor a PCI-SIG member.
VENDOR_ID = 0x7676
DEVICE_ID = 0x0001
REVISION = 1

BAR = 0
BAR_SIZE = 0x1000
#: MSI-X has a BAR of its own: the table from its start, the pending bits in its second half.
MSIX_BAR = 2
MSIX_BAR_SIZE = 0x1000
MSIX_TABLE = 0x000
MSIX_PBA = 0x800


class Vector(IntEnum):
    """MSI-X vectors. A controller whose interrupts come by MSI has one for all of them.

    INTx is asserted as long as a cause that is enabled, and that an interrupt was asked for, stands in `Reg.CAUSE`.
    """

    RECEIVE = 0
    TRANSMIT = 1
    #: Link changes and errors.
    OTHER = 2


class Reg(IntEnum):
    """Offsets in BAR 0; 4-byte accesses, or 8 bytes where the offset is a multiple of 8."""

    CONTROL = 0x000
    STATUS = 0x004
    #: Causes seen since they were last cleared, by writing ones.
    CAUSE = 0x008
    #: Causes that send an interrupt.
    CAUSE_ENABLE = 0x00C
    #: MAC address, first byte lowest.
    MAC_LOW = 0x010
    MAC_HIGH = 0x014
    # A ring: address of its descriptors, how many, the controller's next, the driver's next (doorbell).
    TX_BASE = 0x040
    TX_BASE_HIGH = 0x044
    TX_SIZE = 0x048
    TX_HEAD = 0x04C
    TX_TAIL = 0x050
    RX_BASE = 0x080
    RX_BASE_HIGH = 0x084
    RX_SIZE = 0x088
    RX_HEAD = 0x08C
    RX_TAIL = 0x090
    #: 64-bit counters from here, in the order of `STATISTICS`; read-only.
    STATISTICS = 0x100


class Control(IntFlag):
    #: Resets the controller; reads as zero.
    RESET = 1 << 0
    #: The rings work. Rings and mode are taken over when this goes from 0 to 1.
    ENABLE = 1 << 1
    #: Frames that are transmitted are received by the controller itself, and the cable is off.
    LOOPBACK = 1 << 2


class Status(IntFlag):
    LINK_UP = 1 << 0
    #: A ring's registers were refused, or its descriptors could not be read: it stands until reset.
    TX_HALTED = 1 << 1
    RX_HALTED = 1 << 2


class Cause(IntFlag):
    TX_DONE = 1 << 0
    RX_DONE = 1 << 1
    LINK_CHANGED = 1 << 2
    ERROR = 1 << 3


STATISTICS = (
    "tx_packets",
    "tx_bytes",
    "rx_packets",
    "rx_bytes",
    "rx_dropped",
    "dma_errors",
    "bad_descriptors",
)

#: Descriptors in a ring: a power of two within these bounds.
MIN_RING = 2
MAX_RING = 1024
#: Ethernet header to the longest frame, in bytes.
MIN_FRAME = 14
MAX_FRAME = 4096

#: A descriptor: buffer address (8 bytes), buffer or frame length (2), flags (2), received length (2), status (2).
#: The controller writes the last dword back.
DESCRIPTOR = struct.Struct("<QHHHH")
WRITE_BACK = struct.Struct("<HH")
WRITE_BACK_OFFSET = 12


class Flag(IntFlag):
    """What the driver asks of a descriptor."""

    INTERRUPT = 1 << 0


class Done(IntFlag):
    """Status of a descriptor that the controller is done with."""

    DONE = 1 << 0
    #: The frame did not get through: bad length, buffer that could not be read, no cable.
    ERROR = 1 << 1


#: EtherType for local experiments (IEEE 802, 88-B5).
ETHERTYPE_EXPERIMENTAL = 0x88B5
