"""VT-d invalidation: granularities and the 128-bit descriptors of the invalidation queue.

Intel VT-d specification, section 6.5.2 "Queued Invalidation Interface". A descriptor is two little-endian words,
low first; `encode` builds it, `decode` takes it apart without judging it, `reserved` judges it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from viommu_actors.spec import ats
from viommu_actors.spec.vtd_structures import ADDRESS_FIELD, PAGE_SHIFT

DESCRIPTOR_SIZE: Final = 16
TYPE_MASK: Final = 0xF
#: Encoded as (low, high) words.
Words = tuple[int, int]


class DescriptorType(IntEnum):
    """Low four bits of a descriptor."""

    CONTEXT_CACHE = 1
    IOTLB = 2
    DEVICE_TLB = 3
    INTERRUPT_ENTRY = 4
    WAIT = 5
    PASID_IOTLB = 6
    PASID_CACHE = 7


class ContextGranularity(IntEnum):
    """G of a context-cache descriptor and CIRG/CAIG of CCMD."""

    RESERVED = 0
    GLOBAL = 1
    DOMAIN = 2
    DEVICE = 3


class IotlbGranularity(IntEnum):
    """G of an IOTLB descriptor and IIRG/IAIG of the IOTLB register."""

    RESERVED = 0
    GLOBAL = 1
    DOMAIN = 2
    PAGE = 3


class FunctionMask(IntEnum):
    """FM: how many of the low bits of a source id's function number are ignored."""

    NONE = 0
    ONE = 1
    TWO = 2
    ALL = 3


#: Bits of a source id that a function mask leaves to compare (section 6.5.2.1): it ignores function bit 2, 2:1 or 2:0.
FUNCTION_MASKS: Final = (0xFFFF, 0xFFFB, 0xFFF9, 0xFFF8)


class ContextCacheInvalidate(NamedTuple):
    """Section 6.5.2.1."""

    granularity: int
    domain: int = 0
    source: int = 0
    function_mask: int = 0

    def encode(self) -> Words:
        return (
            DescriptorType.CONTEXT_CACHE
            | self.granularity << 4
            | self.domain << 16
            | self.source << 32
            | self.function_mask << 48,
            0,
        )

    @classmethod
    def decode(cls, low: int, high: int) -> ContextCacheInvalidate:
        return cls(low >> 4 & 3, low >> 16 & 0xFFFF, low >> 32 & 0xFFFF, low >> 48 & 3)

    @staticmethod
    def reserved(low: int, high: int) -> bool:
        return bool(low & 0xFFFC_0000_0000_FFC0 or high)


#: Place of the domain id in the low half of a descriptor.
DOMAIN_SHIFT: Final = 16


class IotlbInvalidate(NamedTuple):
    """Section 6.5.2.3. A page-selective one covers 2^address_mask pages from `address`, naturally aligned."""

    granularity: int
    domain: int = 0
    address: int = 0
    address_mask: int = 0
    leaf_only: bool = False
    """IH: no entry above the leaves has changed."""
    drain_writes: bool = False
    drain_reads: bool = False

    def encode(self) -> Words:
        low = DescriptorType.IOTLB | self.granularity << 4 | self.drain_writes << 6 | self.drain_reads << 7
        return low | self.domain << DOMAIN_SHIFT, self.address & ADDRESS_FIELD | self.leaf_only << 6 | self.address_mask

    @classmethod
    def decode(cls, low: int, high: int) -> IotlbInvalidate:
        return cls(*cls.pages(low, high), bool(high >> 6 & 1), bool(low >> 6 & 1), bool(low >> 7 & 1))

    @staticmethod
    def pages(low: int, high: int) -> tuple[int, int, int, int]:
        """The first four fields: what is to be invalidated."""
        return low >> 4 & 3, low >> DOMAIN_SHIFT & 0xFFFF, high & ADDRESS_FIELD, high & 0x3F

    @staticmethod
    def reserved(low: int, high: int) -> bool:
        return bool(low & 0xFFFF_FFFF_0000_FF00 or high & 0xF80)


class DeviceTlbInvalidate(NamedTuple):
    """Section 6.5.2.5. With `size` the trailing ones of the address from bit 12 upwards tell the range.

    `max_pending`: how many invalidations the device takes at a time, 0 for 32.
    """

    source: int
    address: int
    size: bool = False
    max_pending: int = 0

    @classmethod
    def of_range(cls, source: int, first: int, shift: int, max_pending: int = 0) -> DeviceTlbInvalidate:
        """Of the 2^shift bytes from `first`, which is aligned to them."""
        word = ats.encode_range(first, shift)
        return cls(source, word & ADDRESS_FIELD, shift != PAGE_SHIFT, max_pending)

    @property
    def range(self) -> tuple[int, int]:
        """First byte, and log2 of the bytes."""
        return ats.decode_range(self.address | self.size << ats.SIZE_SHIFT)

    def encode(self) -> Words:
        low = DescriptorType.DEVICE_TLB | self.max_pending << 16 | self.source << 32
        return low, self.address & ADDRESS_FIELD | self.size

    @classmethod
    def decode(cls, low: int, high: int) -> DeviceTlbInvalidate:
        return cls(low >> 32 & 0xFFFF, high & ADDRESS_FIELD, bool(high & 1), low >> 16 & 0x1F)

    @staticmethod
    def reserved(low: int, high: int) -> bool:
        return bool(low & 0xFFFF_0000_FFE0_FFF0 or high & 0xFFE)


class InterruptEntryInvalidate(NamedTuple):
    """Section 6.5.2.7. Not `indexed`: all entries. Else 2^index_mask entries from `first`."""

    indexed: bool
    first: int = 0
    index_mask: int = 0

    def encode(self) -> Words:
        return DescriptorType.INTERRUPT_ENTRY | self.indexed << 4 | self.index_mask << 27 | self.first << 32, 0

    @classmethod
    def decode(cls, low: int, high: int) -> InterruptEntryInvalidate:
        return cls(bool(low >> 4 & 1), low >> 32 & 0xFFFF, low >> 27 & 0x1F)

    @staticmethod
    def reserved(low: int, high: int) -> bool:
        return bool(low & 0xFFFF_0000_07FF_FFE0 or high)


#: In the low half of a wait: IF, SW, and the place of the status data.
WAIT_INTERRUPT: Final = 1 << 4
WAIT_STATUS_WRITE: Final = 1 << 5
WAIT_DATA_SHIFT: Final = 32


class InvalidationWait(NamedTuple):
    """Section 6.5.2.8. Completes when all before it have; then writes 32-bit `data` to `address`, or interrupts."""

    interrupt: bool = False
    status_write: bool = False
    fence: bool = False
    data: int = 0
    address: int = 0

    def encode(self) -> Words:
        low = DescriptorType.WAIT | self.interrupt << 4 | self.status_write << 5 | self.fence << 6
        return low | self.data << WAIT_DATA_SHIFT, self.address

    @classmethod
    def decode(cls, low: int, high: int) -> InvalidationWait:
        interrupt, status_write = bool(low & WAIT_INTERRUPT), bool(low & WAIT_STATUS_WRITE)
        return cls(interrupt, status_write, bool(low & 0x40), low >> WAIT_DATA_SHIFT, high & ~3)

    @staticmethod
    def reserved(low: int, high: int) -> bool:
        return bool(low & 0xFFFF_FF80 or high & 3)
