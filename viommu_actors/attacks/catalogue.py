"""The attacks that a rogue device can play: what each does, and what should stop it.

Ids are those of the project's catalogue and never change meaning. Sources: Thunderclap (NDSS 2019),
Markuze et al. (ASPLOS 2016), Intel VT-d specification 3.x.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Target(StrEnum):
    """Whose memory or interrupts an attack aims at, as seen by who drives the rogue."""

    GUEST_MEMORY = "guest memory"
    HOST_MEMORY = "host memory"
    OTHER_GUEST = "other guest"
    #: Of the kernel that drives the device; the host's own where that kernel has no IOMMU.
    PAGE_TABLES = "page tables"
    #: A vector of the host's CPU that is no device's.
    HOST_VECTOR = "host's interrupts"
    #: The vector of another device, by the handle that this one was given.
    OTHER_DEVICE = "another device's interrupts"
    BEYOND_TABLE = "an entry beyond the table"
    ABSENT_ENTRY = "an entry that is not present"


Access = Literal["read", "write", "interrupt"]
#: What stands between a device and the memory of the kernel that drives it.
DmaSetting = Literal["none", "strict", "passthrough"]
#: On top of those, interrupt remapping, and the same without its check of the source ID.
Setting = Literal[DmaSetting, "ir", "ir-nosid"]


@dataclass(frozen=True)
class Attack:
    id: str
    name: str
    access: Access
    does: str
    stopped_by: str
    targets: tuple[Target, ...]


CATALOGUE: dict[str, Attack] = {
    attack.id: attack
    for attack in (
        Attack(
            "A1",
            "scan-read",
            "read",
            "reads page after page of memory that no driver gave to the device",
            "address translation: no mapping",
            (Target.GUEST_MEMORY, Target.HOST_MEMORY),
        ),
        Attack(
            "A2",
            "arbitrary write",
            "write",
            "writes a pattern to memory that no driver gave to the device",
            "address translation: no mapping",
            (Target.GUEST_MEMORY, Target.HOST_MEMORY),
        ),
        Attack(
            "A12",
            "cross-guest DMA",
            "write",
            "writes to the memory of a guest that the device is not assigned to",
            "a domain for each VM",
            (Target.OTHER_GUEST,),
        ),
        Attack(
            "A31",
            "write to page tables",
            "write",
            "writes to the page tables that translate the device's own DMA",
            "tables are never mapped for a device",
            (Target.PAGE_TABLES,),
        ),
        Attack(
            "A32",
            "write to root table or queue",
            "write",
            "writes to the root table, the context table and the invalidation queue",
            "tables are never mapped for a device",
            (Target.PAGE_TABLES,),
        ),
        Attack(
            "A22",
            "MSI injection",
            "interrupt",
            "writes a compatibility-format message with a vector that is not its own",
            "interrupt remapping: the format is blocked",
            (Target.HOST_VECTOR,),
        ),
        Attack(
            "A23",
            "handle of another device",
            "interrupt",
            "writes a remappable message with the handle that another device was given",
            "interrupt remapping: source validation of the entry",
            (Target.OTHER_DEVICE,),
        ),
        Attack(
            "A24",
            "handle of no entry",
            "interrupt",
            "writes remappable messages with handles that nobody was given",
            "interrupt remapping: the table's size, the entry's present bit",
            (Target.BEYOND_TABLE, Target.ABSENT_ENTRY),
        ),
        Attack(
            "A25",
            "no dword at the interrupt window",
            "interrupt",
            "reads it, and writes it in other sizes and alignments than an interrupt has",
            "the interrupt window itself",
            (Target.HOST_VECTOR,),
        ),
    )
}
