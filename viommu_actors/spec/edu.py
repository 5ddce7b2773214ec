"""QEMU's educational PCI device: registers and bits (QEMU docs/specs/edu.rst, hw/misc/edu.c).

A driver written for QEMU's `-device edu` finds the same registers here.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

VENDOR_ID = 0x1234
DEVICE_ID = 0x11E8
REVISION = 0x10

BAR = 0
BAR_SIZE = 1 << 20
#: Major and minor version, and the device's mark.
IDENTIFICATION = 0x0100_00ED


class Reg(IntEnum):
    """Offsets in BAR 0. Below DMA_SOURCE only 4-byte accesses are answered, from there 4 and 8."""

    IDENTIFICATION = 0x00
    LIVENESS = 0x04
    FACTORIAL = 0x08
    STATUS = 0x20
    INTERRUPT_STATUS = 0x24
    INTERRUPT_RAISE = 0x60
    INTERRUPT_ACKNOWLEDGE = 0x64
    DMA_SOURCE = 0x80
    DMA_DESTINATION = 0x88
    DMA_COUNT = 0x90
    DMA_COMMAND = 0x98


class Status(IntFlag):
    COMPUTING = 0x01
    INTERRUPT_AFTER_FACTORIAL = 0x80


class Interrupt(IntFlag):
    """Causes that the device itself raises; others are a driver's by INTERRUPT_RAISE."""

    FACTORIAL = 0x001
    DMA = 0x100


class DmaCommand(IntFlag):
    START = 0x1
    #: Set: from the device to memory.
    TO_MEMORY = 0x2
    INTERRUPT = 0x4


#: Where the buffer stands in the device's own addresses, and its size.
BUFFER = 0x4_0000
BUFFER_SIZE = 4096
#: Address bits that the DMA engine drives unless told otherwise (QEMU: dma_mask).
DMA_BITS = 28
