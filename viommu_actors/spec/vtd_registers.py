"""VT-d register file: offsets, bits and the two capability registers.

Intel Virtualization Technology for Directed I/O, chapter 11 "Register Descriptions" (legacy mode, interrupt
remapping). A DMAR unit occupies one 4 KiB page of MMIO.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from viommu_actors.spec.vtd_invalidation import ContextCacheInvalidate, IotlbInvalidate

REGISTER_PAGE: Final = 0x1000


class Reg:
    """Byte offsets (section 11.4)."""

    VER: Final = 0x00
    CAP: Final = 0x08
    ECAP: Final = 0x10
    GCMD: Final = 0x18
    GSTS: Final = 0x1C
    RTADDR: Final = 0x20
    CCMD: Final = 0x28
    FSTS: Final = 0x34
    FECTL: Final = 0x38
    FEDATA: Final = 0x3C
    FEADDR: Final = 0x40
    FEUADDR: Final = 0x44
    PMEN: Final = 0x64
    IQH: Final = 0x80
    IQT: Final = 0x88
    IQA: Final = 0x90
    ICS: Final = 0x9C
    IECTL: Final = 0xA0
    IEDATA: Final = 0xA4
    IEADDR: Final = 0xA8
    IEUADDR: Final = 0xAC
    IQER: Final = 0xB0
    IRTA: Final = 0xB8
    IVA: Final = 0xF0
    IOTLB: Final = 0xF8
    FRCD: Final = 0x220


#: VER: architecture version 1.0 (section 11.4.1).
VERSION: Final = 0x10


class Command:
    """GCMD bits (section 11.4.4); GSTS reports each at the same place (section 11.4.5)."""

    TE: Final = 1 << 31
    SRTP: Final = 1 << 30
    SFL: Final = 1 << 29
    EAFL: Final = 1 << 28
    WBF: Final = 1 << 27
    QIE: Final = 1 << 26
    IRE: Final = 1 << 25
    SIRTP: Final = 1 << 24
    CFI: Final = 1 << 23
    WRITABLE: Final = 0xFF80_0000


class Status:
    """GSTS bits (section 11.4.5)."""

    TES: Final = 1 << 31
    RTPS: Final = 1 << 30
    FLS: Final = 1 << 29
    AFLS: Final = 1 << 28
    WBFS: Final = 1 << 27
    QIES: Final = 1 << 26
    IRES: Final = 1 << 25
    IRTPS: Final = 1 << 24
    CFIS: Final = 1 << 23


#: GCMD bits that start an operation once; what is left of GSTS is the state to write back with a command
#: (section 11.4.4: software reads GSTS, clears these, sets one bit, writes GCMD).
ONE_SHOT_COMMANDS: Final = Command.SRTP | Command.SFL | Command.WBF | Command.SIRTP

RTADDR_TABLE: Final = 0xFFFF_FFFF_FFFF_F000
#: RTADDR bits 11:10, translation table mode (section 11.4.6): 0 = legacy.
RTADDR_WRITABLE: Final = 0xFFFF_FFFF_FFFF_FC00


class Ccmd:
    """Context command register (section 11.4.7)."""

    ICC: Final = 1 << 63
    CIRG_SHIFT: Final = 61
    CAIG_SHIFT: Final = 59
    GRANULARITY_MASK: Final = 0x3
    FM_SHIFT: Final = 32
    SID_SHIFT: Final = 16
    DID_SHIFT: Final = 0
    WRITABLE: Final = 0xE000_0003_FFFF_FFFF
    #: Source id and function mask read as zero.
    WRITE_ONLY: Final = 0x0000_0003_FFFF_0000

    @classmethod
    def request(cls, value: int) -> ContextCacheInvalidate:
        """What software asks for."""
        return ContextCacheInvalidate(
            value >> cls.CIRG_SHIFT & cls.GRANULARITY_MASK,
            value >> cls.DID_SHIFT & 0xFFFF,
            value >> cls.SID_SHIFT & 0xFFFF,
            value >> cls.FM_SHIFT & 3,
        )

    @classmethod
    def done(cls, value: int, granularity: int) -> int:
        """The register once the request has been carried out at `granularity`, 0 if it was refused."""
        return value & ~(cls.ICC | cls.GRANULARITY_MASK << cls.CAIG_SHIFT) | granularity << cls.CAIG_SHIFT


class Fsts:
    """Fault status register (section 11.4.9)."""

    PFO: Final = 1 << 0
    PPF: Final = 1 << 1
    IQE: Final = 1 << 4
    ICE: Final = 1 << 5
    ITE: Final = 1 << 6
    FRI_SHIFT: Final = 8
    FRI_MASK: Final = 0xFF
    #: ICE and ITE never show on a unit without device-TLBs.
    WRITE_1_CLEAR: Final = PFO | IQE | ICE | ITE


class EventControl:
    """FECTL and IECTL: mask and pending bits (sections 11.4.10 and 11.4.24)."""

    IM: Final = 1 << 31
    IP: Final = 1 << 30


EVENT_ADDRESS_WRITABLE: Final = 0xFFFF_FFFC
#: FEDATA's upper half exists only with extended interrupt mode.
FEDATA_WRITABLE: Final = 0xFFFF
IEDATA_WRITABLE: Final = 0xFFFF_FFFF


class Iqa:
    """Invalidation queue address register (section 11.4.22)."""

    QS: Final = 0x7
    DW: Final = 1 << 11
    BASE: Final = 0xFFFF_FFFF_FFFF_F000
    WRITABLE: Final = BASE | DW | QS
    #: A queue of size QS is 2^QS pages of 4 KiB: 2^(QS+8) descriptors of 16 bytes.
    ENTRIES_SHIFT: Final = 8


class Iqer:
    """Invalidation queue error record (section 11.4.27): the source ids that ITE and ICE of FSTS are about."""

    ITE_SOURCE_SHIFT: Final = 32
    ICE_SOURCE_SHIFT: Final = 48
    SOURCE_MASK: Final = 0xFFFF


#: IQH and IQT hold a descriptor's index in bits 18:4 (sections 11.4.20 and 11.4.21).
QUEUE_INDEX_SHIFT: Final = 4
QUEUE_INDEX_MASK: Final = 0x7FFF0

#: ICS: invalidation wait descriptor complete, write 1 to clear (section 11.4.23).
ICS_IWC: Final = 1


class Irta:
    """Interrupt remapping table address register (section 11.4.29)."""

    SIZE: Final = 0xF
    EIME: Final = 1 << 11
    BASE: Final = 0xFFFF_FFFF_FFFF_F000
    WRITABLE: Final = BASE | EIME | SIZE


class Iva:
    """Invalidate address register (section 11.4.8.2)."""

    AM: Final = 0x3F
    IH: Final = 1 << 6
    ADDR: Final = 0xFFFF_FFFF_FFFF_F000
    WRITABLE: Final = ADDR | IH | AM


class IotlbRegister:
    """IOTLB invalidate register (section 11.4.8.1)."""

    IVT: Final = 1 << 63
    IIRG_SHIFT: Final = 60
    IAIG_SHIFT: Final = 57
    GRANULARITY_MASK: Final = 0x3
    DR: Final = 1 << 49
    DW: Final = 1 << 48
    DID_SHIFT: Final = 32
    DID_MASK: Final = 0xFFFF
    #: QEMU's choice: DR and DW are accepted and read back in the bits that it keeps.
    WRITABLE: Final = 0xB003_FFFF_0000_0000

    @classmethod
    def request(cls, value: int, where: int) -> IotlbInvalidate:
        """What software asks for; `where` is IVA."""
        return IotlbInvalidate(
            value >> cls.IIRG_SHIFT & cls.GRANULARITY_MASK,
            value >> cls.DID_SHIFT & cls.DID_MASK,
            where & Iva.ADDR,
            where & Iva.AM,
        )

    @classmethod
    def done(cls, value: int, granularity: int) -> int:
        """The register once the request has been carried out at `granularity`, 0 if it was refused."""
        return value & ~(cls.IVT | cls.GRANULARITY_MASK << cls.IAIG_SHIFT) | granularity << cls.IAIG_SHIFT


class Capability(NamedTuple):
    """CAP, section 11.4.2. Reserved and unused fields are zero."""

    domains: int
    """ND as the number of domain id bits: ND = (bits - 4) / 2."""
    caching_mode: bool
    widths: tuple[int, ...]
    """Adjusted guest address widths of second-level tables (SAGAW): 39 and 48 here."""
    address_width: int
    """MGAW: addresses of a DMA request in bits."""
    fault_offset: int
    """FRO: byte offset of the first fault record register."""
    large_pages: int
    """SLLPS: bit 0 = 2 MiB, bit 1 = 1 GiB."""
    page_selective: bool
    fault_records: int
    max_address_mask: int
    drain_write: bool
    drain_read: bool

    def encode(self) -> int:
        sagaw = sum(1 << _SAGAW[width] for width in self.widths)
        return (
            (self.domains - 4) // 2
            | self.caching_mode << 7
            | sagaw << 8
            | (self.address_width - 1) << 16
            | self.fault_offset >> 4 << 24
            | self.large_pages << 34
            | self.page_selective << 39
            | (self.fault_records - 1) << 40
            | self.max_address_mask << 48
            | self.drain_write << 54
            | self.drain_read << 55
        )

    @classmethod
    def decode(cls, value: int) -> Capability:
        sagaw = value >> 8 & 0x1F
        return cls(
            domains=4 + 2 * (value & 7),
            caching_mode=bool(value >> 7 & 1),
            widths=tuple(width for width, bit in _SAGAW.items() if sagaw >> bit & 1),
            address_width=(value >> 16 & 0x3F) + 1,
            fault_offset=(value >> 24 & 0x3FF) << 4,
            large_pages=value >> 34 & 0xF,
            page_selective=bool(value >> 39 & 1),
            fault_records=(value >> 40 & 0xFF) + 1,
            max_address_mask=value >> 48 & 0x3F,
            drain_write=bool(value >> 54 & 1),
            drain_read=bool(value >> 55 & 1),
        )


#: SAGAW bit of a width; the same number is the AW field of a context entry.
_SAGAW: Final = {39: 1, 48: 2}


class ExtendedCapability(NamedTuple):
    """ECAP, section 11.4.3, as far as legacy mode and interrupt remapping go."""

    coherent: bool
    queued_invalidation: bool
    device_iotlb: bool
    interrupt_remapping: bool
    extended_interrupt_mode: bool
    pass_through: bool
    snoop_control: bool
    iotlb_offset: int
    """IRO: byte offset of IVA; IOTLB follows it."""
    max_handle_mask: int

    def encode(self) -> int:
        return (
            self.coherent
            | self.queued_invalidation << 1
            | self.device_iotlb << 2
            | self.interrupt_remapping << 3
            | self.extended_interrupt_mode << 4
            | self.pass_through << 6
            | self.snoop_control << 7
            | self.iotlb_offset >> 4 << 8
            | self.max_handle_mask << 20
        )

    @classmethod
    def decode(cls, value: int) -> ExtendedCapability:
        return cls(
            coherent=bool(value & 1),
            queued_invalidation=bool(value >> 1 & 1),
            device_iotlb=bool(value >> 2 & 1),
            interrupt_remapping=bool(value >> 3 & 1),
            extended_interrupt_mode=bool(value >> 4 & 1),
            pass_through=bool(value >> 6 & 1),
            snoop_control=bool(value >> 7 & 1),
            iotlb_offset=(value >> 8 & 0x3FF) << 4,
            max_handle_mask=value >> 20 & 0xF,
        )
