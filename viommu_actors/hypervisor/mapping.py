"""A device's container as the hypervisor fills it: guest-physical ranges at IOVAs, by VFIO.

As QEMU's vfio_iommu_map_notify: a failed map is logged and counted, and the guest is not told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from viommu_actors.hypervisor.parent import ParentKernel
from viommu_actors.spec.vtd import Access


class GuestMapping:
    """The map and unmap ports of a shadow, over one VFIO container.

    `ram` lists (gpa, size, vaddr) of the guest's memory slots.
    """

    def __init__(
        self,
        parent: ParentKernel,
        container: int,
        ram: list[tuple[int, int, int]],
        counters: Counter[str],
        log: Callable[[str], None],
    ) -> None:
        self._parent = parent
        self._container = container
        self.ram = ram
        self._counters = counters
        self._log = log

    def map(self, iova: int, gpa: int, size: int, access: Access) -> bool:
        """False where the range is no guest RAM or the parent kernel refuses."""
        vaddr = self._vaddr(gpa, size)
        if vaddr is None:
            self._counters["maps_outside_ram"] += 1
            return False
        self._counters["vfio_maps"] += 1
        try:
            self._parent.map_dma(self._container, int(access), vaddr, iova, size)
        except OSError as error:
            self._counters["map_errors"] += 1
            self._log(f"VFIO_MAP_DMA {iova:#x}+{size:#x} failed: {error.strerror}")
            return False
        return True

    def _vaddr(self, gpa: int, size: int) -> int | None:
        for base, length, vaddr in self.ram:
            if base <= gpa and gpa + size <= base + length:
                return vaddr + gpa - base
        return None

    def unmap(self, iova: int, size: int) -> None:
        """Takes every mapping inside the range away; a barrier."""
        self._counters["vfio_unmaps"] += 1
        self._parent.unmap_dma(self._container, iova, size)

    def map_all(self) -> None:
        """All guest RAM at its guest-physical addresses: the device of a guest without a vIOMMU."""
        for base, length, _ in self.ram:
            self.map(base, base, length, Access.READ | Access.WRITE)
