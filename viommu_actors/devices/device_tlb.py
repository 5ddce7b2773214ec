"""The DMA of a function that uses address translation services: translated first, page by page, as it was told.

PCI Express Base 5.0 chapter 10.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING

from viommu_actors.devices.ats import TranslationCache
from viommu_actors.devices.dma_engine import Transfer
from viommu_actors.spec import pci
from viommu_actors.spec.ats import TranslationEntry, decode_range
from viommu_actors.spec.tlp import AddressType, InvalidateCompletion, InvalidateRequest
from viommu_actors.spec.vtd import PAGE_MASK, PAGE_SIZE, Access

if TYPE_CHECKING:
    from viommu_actors.devices.endpoint import Endpoint

#: An address to make a request with, and its type.
Place = tuple[int, AddressType]


class DeviceTlb:
    """Behind the ATS capability at `capability` of an endpoint."""

    def __init__(self, endpoint: Endpoint, capability: int) -> None:
        self._endpoint = endpoint
        self._control = capability + pci.ATS_CONTROL
        self._cache = TranslationCache()
        #: Whether software has switched it on.
        self.enabled = False
        #: What becomes of an invalidation.
        self.invalidated: Callable[[InvalidateRequest], None] = self.forget

    def latch(self) -> None:
        """After a change of configuration space. What was told before it was switched on or off is not used."""
        enabled = bool(self._endpoint.config.read(self._control, 2) & pci.ATS_ENABLE)
        if enabled != self.enabled:
            self.enabled = enabled
            self._cache.clear()

    def read(self, address: int, length: int) -> Generator[Transfer, None, bytes | None]:
        """As `Endpoint.dma_read`."""
        endpoint = self._endpoint
        pieces: list[Transfer] = []
        for start, stop in _pages(address, length):
            place = yield from self._place(address + start, Access.READ)
            if place is None:
                return None
            # Sent at once: nothing can have invalidated the translation since it was found.
            pieces.append(
                endpoint.engine.read(endpoint.requester, place[0], stop - start, endpoint.max_read, place[1])
            )
        yield from pieces
        parts = [piece.data for piece in pieces if piece.data is not None]
        return b"".join(parts) if len(parts) == len(pieces) else None

    def write(self, address: int, data: bytes) -> Generator[Transfer, None, bool]:
        """As `Endpoint.dma_write`."""
        endpoint = self._endpoint
        for start, stop in _pages(address, len(data)):
            place = yield from self._place(address + start, Access.WRITE)
            if place is None:
                return False
            endpoint.engine.write(endpoint.requester, place[0], data[start:stop], endpoint.max_payload, place[1])
        return True

    def receive(self, request: InvalidateRequest) -> None:
        """An invalidation. It is answered whether the capability is enabled or not (section 10.3.4)."""
        self._endpoint.counters["invalidations"] += 1
        self.invalidated(request)

    def forget(self, request: InvalidateRequest) -> None:
        """Drops what is invalidated, and completes it once nothing under way can rest on it (section 10.3.3)."""
        self._cache.invalidate(*decode_range(request.word))
        self._endpoint.engine.drain(partial(self.complete, request))

    def start_over(self) -> None:
        """Forgets all, and obeys invalidations from here on."""
        self._cache.clear()
        self.invalidated = self.forget

    def complete(self, request: InvalidateRequest) -> None:
        """Says that it is done. Posted writes that were sent before are ahead of it on the link."""
        endpoint = self._endpoint
        endpoint.send(InvalidateCompletion(endpoint.requester, request.requester, 1, 1 << request.itag))

    def _place(self, address: int, access: Access) -> Generator[Transfer, None, Place | None]:
        """How the function may reach the byte at `address`; None where it may not."""
        endpoint, cache = self._endpoint, self._cache
        while self.enabled:
            place = cache.find(address, access)
            if place is not None:
                return place
            question = cache.ask()
            try:
                transfer = endpoint.engine.translate(endpoint.requester, address)
                endpoint.counters["translation requests"] += 1
                yield transfer
            finally:
                cache.asked(question)
            if question.stale:
                continue
            entry = None if transfer.data is None else TranslationEntry.decode(transfer.data)
            if entry is None or access & ~entry.access:
                endpoint.counters["not translated"] += 1
                return None
            cache.keep(address, entry)
        return address, AddressType.UNTRANSLATED


def _pages(address: int, length: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the parts of a transfer that lie in one page each."""
    start = 0
    while start < length:
        stop = min(length, start + PAGE_SIZE - (address + start & PAGE_MASK))
        yield start, stop
        start = stop
