"""What the owners of memory, of the root complex and of the IOMMU saw of one attack on one target.

Nothing in here comes from the rogue.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Fault(Struct, kw_only=True, frozen=True):
    """A record of an access that something refused.

    `unit` is who refused it ("host iommu", "vm0 viommu", "root port 1"), `source` the requester as `01:00.0`,
    `address` and `reason` in hexadecimal (`address` empty where what was refused has none, `reason` a VT-d fault
    reason, empty for a port's log), `text` what the reason means, `count` how many accesses the record stands for.
    """

    kind: Literal["remapping", "acs", "malformed", "rejected"]
    unit: str
    source: str
    address: str
    write: bool
    reason: str = ""
    text: str = ""
    count: int = 1


class Evidence(Struct, kw_only=True, frozen=True):
    """Proofs of one verdict.

    Of the `aimed` addresses that were to be tried, `tried` were seen at the root port, in `attempts` accesses; each of
    those was refused (`refused`), let through to other memory (`elsewhere`), or let through to the target. `reached`
    counts accesses that got to the target at whatever address they were made. The canaries are digests over the
    target's canary pages, taken by the memory's owner; for interrupts, the victim's count of them. `fault` is a record
    of what refused, by `source`, the requester that the device used; `control` whether a legal DMA of the same device
    went through afterwards.
    """

    source: str
    aimed: int
    tried: int
    attempts: int
    canary_before: str
    canary_after: str
    fault: Fault | None
    control: bool
    reached: int = 0
    elsewhere: int = 0
    refused: int = 0
