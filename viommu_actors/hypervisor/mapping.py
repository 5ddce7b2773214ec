"""A device's container as the hypervisor fills it: guest-physical ranges at IOVAs, by VFIO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from viommu_actors.hypervisor.held import Mapping
from viommu_actors.hypervisor.parent import ParentKernel
from viommu_actors.hypervisor.shadow import Ram, ShadowPorts
from viommu_actors.spec.vtd import Access


class GuestMapping(ShadowPorts):
    """The ports of a shadow over one VFIO container; `vaddrs` are user addresses of the ranges of `ram`."""

    def __init__(
        self, parent: ParentKernel, container: int, ram: list[Ram], vaddrs: list[int], counters: Counter[str]
    ) -> None:
        self._parent = parent
        self._container = container
        self._pieces = ram
        #: (first address, the one behind the last, user address)
        self._ram = [(piece.base, piece.base + piece.size, vaddr) for piece, vaddr in zip(ram, vaddrs, strict=True)]
        self._counters = counters

    def map(self, iova: int, gpa: int, size: int, access: Access) -> None:
        """Raises OSError where the parent kernel refuses; the range must lie in one range of RAM."""
        self._counters["vfio_maps"] += 1
        self._parent.map_dma(self._container, int(access), self._vaddr(gpa), iova, size)

    def map_each(self, mappings: Sequence[Mapping]) -> list[OSError | None]:
        self._counters["vfio_maps"] += len(mappings)
        requests = [(int(access), self._vaddr(gpa), iova, size) for iova, gpa, size, access in mappings]
        return self._parent.map_dma_each(self._container, requests)

    def _vaddr(self, gpa: int) -> int:
        for base, end, vaddr in self._ram:
            if base <= gpa < end:
                return vaddr + gpa - base
        raise ValueError(f"no guest RAM at {gpa:#x}")

    def unmap(self, iova: int, size: int) -> None:
        """Takes every mapping inside the range away; a barrier."""
        self._counters["vfio_unmaps"] += 1
        self._parent.unmap_dma(self._container, iova, size)

    def map_all(self) -> None:
        """All guest RAM at its guest-physical addresses: for the devices of a guest without a vIOMMU."""
        for piece in self._pieces:
            self.map(piece.base, piece.base, piece.size, piece.access)
