"""Who wants to hear of invalidations: the shadow of an assigned device (section 6.1, caching mode)."""

from __future__ import annotations

from typing import Protocol


class Effort:
    """What may still be done, in entries read, until the rest of the invalidations has to wait; below zero nothing.

    A guest decides how much its invalidations make their listeners do; who runs them, how much of it at a time.
    """

    def __init__(self) -> None:
        self.left = 0


class InvalidationListener(Protocol):
    """Called in the order of descriptors, after the unit's caches are clean and before a wait's status is written."""

    def translation_changed(self, enabled: bool) -> None:
        """TE was switched."""

    def root_changed(self) -> None:
        """A new root table pointer was latched (SRTP)."""

    def context_invalidated(self, granularity: int, domain: int, source: int, function_mask: int) -> None:
        """`granularity` is a ContextGranularity; fields that it does not use are as software wrote them."""

    def iotlb_invalidated(self, granularity: int, domain: int, address: int, mask: int) -> None:
        """`granularity` is an IotlbGranularity; 2^mask pages at `address`, as written: perhaps not aligned to them."""

    def unit_reset(self) -> None:
        """All registers are as after power on."""


class Unheard:
    """Nobody listens."""

    def translation_changed(self, enabled: bool) -> None: ...

    def root_changed(self) -> None: ...

    def context_invalidated(self, granularity: int, domain: int, source: int, function_mask: int) -> None: ...

    def iotlb_invalidated(self, granularity: int, domain: int, address: int, mask: int) -> None: ...

    def unit_reset(self) -> None: ...
