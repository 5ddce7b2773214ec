"""What a remapping unit offers: the options of its capability registers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from viommu_actors.spec.vtd import (
    ADDRESS_FIELD,
    PTE_LARGE,
    U64_MASK,
    Capability,
    ExtendedCapability,
    Reg,
    TranslationType,
    level_shift,
    pte_reserved_mask,
    width_of,
)
from viommu_actors.vtd.deviations import Quirk, Quirks, quirk_set

_WIDTH_CODES: Final = {39: (1,), 48: (1, 2)}

#: Why a vIOMMU without it takes no assigned device, as QEMU says it (hw/i386/pc.c).
CACHING_MODE_NEEDED: Final = (
    "We need to set caching-mode=on for intel-iommu to enable device assignment with IOMMU protection."
)


@dataclass(frozen=True)
class UnitConfig:
    """Options named after QEMU's `intel-iommu` properties. Raises ValueError where no unit can be so."""

    aw_bits: int = 48
    caching_mode: bool = False
    pass_through: bool = True
    intremap: bool = False
    eim: bool = False
    device_iotlb: bool = False
    snoop_control: bool = False
    dma_drain: bool = True
    dma_translation: bool = True
    quirks: Quirks = "spec"

    def __post_init__(self) -> None:
        if self.aw_bits not in _WIDTH_CODES:
            raise ValueError(f"aw_bits is {self.aw_bits}; a unit has 39 or 48")
        if self.eim and not self.intremap:
            raise ValueError("eim needs intremap")
        quirk_set(self.quirks)

    @cached_property
    def quirk_set(self) -> frozenset[Quirk]:
        """The deviations of `quirks` by name."""
        return quirk_set(self.quirks)

    @cached_property
    def width_codes(self) -> tuple[int, ...]:
        """Values of a context entry's AW field that the unit supports (CAP.SAGAW)."""
        return _WIDTH_CODES[self.aw_bits] if self.dma_translation else ()

    @cached_property
    def translation_types(self) -> tuple[int, ...]:
        """Values of a context entry's TT field that the unit supports."""
        passing = (TranslationType.PASS_THROUGH,) if self.pass_through else ()
        devices = (TranslationType.DEVICE_IOTLB,) if self.device_iotlb else ()
        return TranslationType.MULTI_LEVEL, *devices, *passing

    @cached_property
    def address_mask(self) -> int:
        """The address field of a paging entry, as wide as the unit's addresses."""
        return ADDRESS_FIELD & (1 << self.aw_bits) - 1

    @cached_property
    def reserved_bits(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Bits that must be zero in a paging entry: of tables, then of pages; each by level, 1 to 4 (0 is level 1)."""
        tables, pages = (
            tuple(
                pte_reserved_mask(
                    level, leaf, self.aw_bits, snoop_control=self.snoop_control, device_iotlb=self.device_iotlb
                )
                for level in (1, 1, 2, 3, 4)
            )
            for leaf in (False, True)
        )
        return tables, pages

    @cached_property
    def descents(self) -> dict[int, tuple[tuple[int, int, int], ...]]:
        """The way down through tables of so many levels: each level, its address shift, and the bits of an entry of
        which any ends the way there. Those of a page and reserved ones do, and at the last level whatever is there."""
        tables, _ = self.reserved_bits
        return {
            levels: tuple(
                (level, level_shift(level), tables[level] | PTE_LARGE if level > 1 else U64_MASK)
                for level in range(levels, 0, -1)
            )
            for levels in (3, 4)
        }

    def capability(self) -> int:
        """The CAP register."""
        return Capability(
            domains=16,
            caching_mode=self.caching_mode,
            widths=tuple(width_of(code) for code in self.width_codes),
            address_width=self.aw_bits,
            fault_offset=Reg.FRCD,
            large_pages=0b11,
            page_selective=True,
            fault_records=1,
            max_address_mask=MAX_ADDRESS_MASK,
            drain_write=self.dma_drain,
            drain_read=self.dma_drain,
        ).encode()

    def extended_capability(self) -> int:
        """The ECAP register."""
        return ExtendedCapability(
            coherent=False,
            queued_invalidation=True,
            device_iotlb=self.device_iotlb,
            interrupt_remapping=self.intremap,
            extended_interrupt_mode=self.eim,
            pass_through=self.pass_through,
            snoop_control=self.snoop_control,
            iotlb_offset=Reg.IVA,
            max_handle_mask=15 if self.intremap else 0,
        ).encode()


#: CAP.MAMV: a page-selective invalidation covers at most 2^18 pages, the 1 GiB of the largest page.
MAX_ADDRESS_MASK: Final = 18
