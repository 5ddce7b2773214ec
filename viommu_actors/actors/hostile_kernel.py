"""A guest's kernel in hostile hands: control commands that write into its own tables what it must not get."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from viommu_actors.attacks.offers import entry_of
from viommu_actors.kernel.domain import Domain
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.spec import pci
from viommu_actors.spec.vtd import PTE_READ, PTE_SIZE, PTE_WRITE


class HostileKernel:
    """What it changes stands in the entry of a page that is mapped for a device; `mend_entry` puts that back."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._memory = kernel.machine.memory
        #: place and content of the entry that was changed
        self._entry: tuple[int, bytes] | None = None

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """By command name."""
        return {"point_entry": self.point_entry, "race_entry": self.race_entry, "mend_entry": self.mend_entry}

    def point_entry(self, bdf: str, iova: int, target: int) -> None:
        """Points the entry at an address that is not this machine's, and tells its IOMMU of the change."""
        domain, place = self._look_up(bdf, iova)
        self._memory.write(place, _entry(target))
        self._invalidate(domain, iova)

    def race_entry(self, bdf: str, iova: int, target: int, times: int) -> None:
        """Another processor rewrites the entry, there and back, while this one tells its IOMMU of it so many times."""
        domain, place = self._look_up(bdf, iova)
        assert self._entry is not None
        own, foreign, over = self._entry[1], _entry(target), threading.Event()

        def rewrite() -> None:
            while not over.is_set():
                self._memory.write(place, foreign)
                self._memory.write(place, own)

        processor = threading.Thread(target=rewrite)
        processor.start()
        try:
            for _ in range(times):
                self._invalidate(domain, iova)
        finally:
            over.set()
            processor.join()

    def mend_entry(self, bdf: str, iova: int) -> None:
        """The entry is what it was."""
        if self._entry is not None:
            self._memory.write(*self._entry)
            self._entry = None
            self._invalidate(self._domain(bdf), iova)

    def _look_up(self, bdf: str, iova: int) -> tuple[Domain, int]:
        domain = self._domain(bdf)
        place = entry_of(self._kernel, domain, iova)
        self._entry = place, self._memory.read(place, PTE_SIZE)
        return domain, place

    def _domain(self, bdf: str) -> Domain:
        iommu = self._kernel.iommu
        domain = None if iommu is None else iommu.attached(self._kernel.device(pci.parse_bdf(bdf)))
        if not isinstance(domain, Domain):
            raise ValueError(f"{bdf} has no page tables")
        return domain

    def _invalidate(self, domain: Domain, iova: int) -> None:
        assert self._kernel.iommu is not None
        self._kernel.iommu.invalidation.iotlb_pages(domain.id, iova, 0)


def _entry(target: int) -> bytes:
    return (target | PTE_READ | PTE_WRITE).to_bytes(PTE_SIZE, "little")
