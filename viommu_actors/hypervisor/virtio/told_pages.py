"""What a back end was told for its device-IOTLB, so that it hears of the invalidations that concern it alone.

The vIOMMU's listener for an emulated function: nothing is mapped for it anywhere, so there is nothing to be shadowed.
After QEMU's hw/virtio/vhost.c (vhost_iommu_unmap_notify).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from viommu_actors.hypervisor.held import HeldMappings, Mapping
from viommu_actors.hypervisor.virtio.memory import Entry
from viommu_actors.spec.vtd import FUNCTION_MASKS, PAGE_SHIFT, ContextGranularity, IotlbGranularity

_LAST_ADDRESS: Final = (1 << 64) - 1
#: Leaves that are remembered at a time. A back end that asks for more is told to forget all of them.
CAPACITY: Final = 4096


class ToldPages:
    """`invalidate(range)` is the barrier: when it returns the back end has forgotten whatever overlaps, and all else
    that it was told to forget. The range is (first, last), or None where it was told of nothing there.
    """

    def __init__(self, requester: int, invalidate: Callable[[tuple[int, int] | None], None]) -> None:
        self.requester = requester
        self._invalidate = invalidate
        self._held = HeldMappings()
        #: whose translations these are, for a domain of None whatever changes
        self._domains: set[int | None] = set()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def full(self) -> bool:
        return len(self._held) >= CAPACITY

    def told(self, entry: Entry) -> None:
        """The back end may hold this from here on. It is not `full`."""
        self._held.take(entry.iova, entry.iova + entry.size - 1)
        self._held.add(Mapping(entry.iova, entry.address, entry.size, entry.access))
        self._domains.add(entry.domain)

    def forget(self) -> tuple[int, int] | None:
        """The back end holds nothing any more, or is to hold nothing; first and last address of what it was told."""
        gone = self._held.take(0, _LAST_ADDRESS)
        self._domains.clear()
        return (gone[0].iova, gone[-1].last) if gone else None

    # --- as a device of the vIOMMU (`hypervisor.shadow.DeviceShadow`)

    def start(self) -> None:
        """The device is plugged in: nobody was told anything."""

    def stop(self) -> None:
        """The device is unplugged."""
        self._drop_all()

    def translation_changed(self, enabled: bool) -> None:
        self._drop_all()

    def root_changed(self) -> None:
        self._drop_all()

    def context_invalidated(self, granularity: int, domain: int, source: int, function_mask: int) -> None:
        if granularity == ContextGranularity.DEVICE and (source ^ self.requester) & FUNCTION_MASKS[function_mask]:
            return
        self._drop_all()

    def iotlb_invalidated(self, granularity: int, domain: int, address: int, mask: int) -> None:
        if granularity != IotlbGranularity.GLOBAL and domain not in self._domains:
            return
        if granularity == IotlbGranularity.PAGE:
            size = 1 << PAGE_SHIFT + mask
            # As for a shadow: hardware ignores the address bits below the size, QEMU adds the size to them.
            self._drop(address & -size, min(address + size - 1, _LAST_ADDRESS))
        else:
            self._drop_all()

    def unit_reset(self) -> None:
        self._drop_all()

    def _drop_all(self) -> None:
        self._drop(0, _LAST_ADDRESS)

    def _drop(self, first: int, last: int) -> None:
        gone = self._held.take(first, last)
        if not len(self._held):
            self._domains.clear()
        self._invalidate((gone[0].iova, gone[-1].last) if gone else None)
