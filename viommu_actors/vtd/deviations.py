"""QEMU 7.2's deviations from the VT-d specification, each by a name of its own (hw/i386/intel_iommu.c).

A unit can have any set of them: all make a bug-compatible unit, none the one that the specification describes, and a
few tell which of them makes a recording of QEMU differ.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal


class Quirk(Enum):
    """What QEMU 7.2 does otherwise, with the words of a report."""

    COMPATIBILITY_PASSES = "compatibility-format interrupts pass whatever CFI says, and CFIS never shows"
    INTERRUPT_FAULTS_LOST = "blocked interrupts leave no fault record"
    ENTRIES_UNCACHED = "interrupt remapping entries are read from memory each time"
    POSTED_IGNORED = "the mode bit of an interrupt remapping entry (posted) is ignored"
    BUS_RANGE_SWAPPED = "source validation by bus range takes start and end the wrong way round"
    WRITES_ANONYMOUS = "a device's plain write to 0xFEExxxxx tells no requester id, so that its source is not checked"
    IOTLB_BY_SOURCE = "the IOTLB is tagged by source id and looked at before the context"
    PAGES_MODULO_256 = "page-selective invalidation compares page numbers modulo 256"
    HIT_DENIAL_LOST = "a permission failure on a cached translation is blocked but not recorded"
    PASS_THROUGH_SETTLED = "pass-through is settled at switches and context invalidations, at any address"
    DOMAIN_CONTEXT_AS_GLOBAL = "a domain-selective context invalidation is carried out as a global one"
    QUEUE_STAYS_STOPPED = "clearing IQE does not start the queue again"
    QUEUE_KEEPS_RUNNING = "QIE is cleared only with the queue empty behind a wait"
    QUEUE_ADDRESS_LATCHED = "IQA reads as the base that was latched with QIE"
    PASID_DESCRIPTORS = "descriptors for PASIDs (types 6 and 7) are accepted in legacy mode"
    DEVICE_TLB_ANYWAY = "device-TLB invalidations are accepted without ECAP.DT"
    CONTEXT_RESERVED_RECORDED = "FPD does not suppress fault 0xB"
    EVENT_AWAITS_STATUS = "a pending fault event is looked at again only when FSTS is written"
    PASID_OF_ONES = "a walk's fault record carries a PASID field of ones"
    ALL_ONES_UNREADABLE = "a paging entry of all ones counts as unreadable"
    ENTRY_INVALIDATION_UNCHECKED = "reserved bits of an interrupt-entry invalidation are not looked at"

    @property
    def id(self) -> str:
        """Its name as a report prints it."""
        return self.name.lower().replace("_", "-")

    @property
    def counter(self) -> str:
        """Of a unit that has it, for those in REPLACING: how often it made a difference."""
        return f"deviated {self.id}"


#: Those that put other code in the place of the specification's, so that a unit which agrees with a recording by one
#: of them proves nothing unless the deviation is known to have made a difference. They count when they do.
REPLACING: Final = frozenset(
    {Quirk.IOTLB_BY_SOURCE, Quirk.PAGES_MODULO_256, Quirk.PASS_THROUGH_SETTLED, Quirk.ENTRIES_UNCACHED}
)

#: Not on the project's list of QEMU's deviations: a difference that one of these explains still counts.
UNLISTED: Final = frozenset({Quirk.ALL_ONES_UNREADABLE, Quirk.ENTRY_INVALIDATION_UNCHECKED})

#: The first version that was seen without a deviation.
MENDED: Final = {
    Quirk.INTERRUPT_FAULTS_LOST: (10, 0),
    Quirk.PASID_DESCRIPTORS: (10, 0),
    Quirk.PAGES_MODULO_256: (11, 1),
}


def quirks_of(version: tuple[int, ...]) -> frozenset[Quirk]:
    """The deviations of a version of QEMU, as far as they are known."""
    return frozenset(quirk for quirk in Quirk if version < MENDED.get(quirk, (1 << 16,)))


#: What a unit is to be: the specification's, QEMU 7.2's, or the specification's with some deviations.
Quirks = Literal["spec", "qemu"] | frozenset[Quirk]


def quirk_set(quirks: Quirks) -> frozenset[Quirk]:
    """Raises ValueError for a name that is none."""
    if isinstance(quirks, frozenset):
        return quirks
    if quirks not in ("spec", "qemu"):
        raise ValueError(f"quirks is {quirks!r}; there are 'spec' and 'qemu'")
    return frozenset(Quirk) if quirks == "qemu" else frozenset()
