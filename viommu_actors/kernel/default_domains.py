"""The domain that a device is in unless VFIO has it: translated for the DMA API, or identity (iommu=pt)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from viommu_actors.kernel.dma import DirectDma, Dma, TranslatedDma
from viommu_actors.kernel.domain import AnyDomain, Domain
from viommu_actors.kernel.intel_iommu import IntelIommu
from viommu_actors.kernel.iova import IovaAllocator
from viommu_actors.kernel.pages import PAGE, PageAllocator
from viommu_actors.kernel.pci import PciDevice
from viommu_actors.spec.vtd import Access


class DefaultDomains:
    """One domain for each group, made when it is first needed; or one identity domain for all."""

    def __init__(
        self,
        iommu: IntelIommu,
        pages: PageAllocator,
        counters: Counter[str],
        *,
        identity: Iterable[tuple[int, int]] | None,
        windows: Iterable[tuple[int, int]],
    ) -> None:
        """`identity` holds the RAM of a kernel with iommu=pt, None otherwise; `windows` the [first, end) that BARs
        may take, which no I/O virtual address uses (Linux: iova_reserve_pci_windows)."""
        self._iommu = iommu
        self._pages = pages
        self._counters = counters
        self._windows = tuple(windows)
        self._identity = None if identity is None else self._identity_domain(identity)
        self._groups: dict[int, tuple[Domain, IovaAllocator]] = {}

    def claim(self, device: PciDevice) -> None:
        """Puts the device into its default domain. Raises OSError as `IntelIommu.attach` does."""
        self._iommu.attach(device, self._identity or self._group(device)[0])

    def dma(self, device: PciDevice) -> Dma:
        """The device's DMA, which `claim` has put into its default domain."""
        if self._identity is not None:
            return DirectDma(self._pages, self._counters)
        domain, iovas = self._group(device)
        return TranslatedDma(domain, iovas, self._pages, self._counters)

    @property
    def live_buffers(self) -> int | None:
        """Buffers that have an I/O virtual address; None where none needs one."""
        return sum(iovas.live for _, iovas in self._groups.values()) if self._identity is None else None

    def forget(self, group: int) -> None:
        """The group's last device is gone; so is its domain."""
        entry = self._groups.pop(group, None)
        if entry is not None:
            self._iommu.free_domain(entry[0])

    def _group(self, device: PciDevice) -> tuple[Domain, IovaAllocator]:
        number = self._iommu.group_of(device.bdf)
        assert number is not None, f"{device.name} is behind no IOMMU"
        if number not in self._groups:
            domain = self._iommu.new_domain()
            reserved = [(first, last + 1) for first, last in domain.reserved]
            self._groups[number] = domain, IovaAllocator(domain.width, [*reserved, *self._windows])
        return self._groups[number]

    def _identity_domain(self, ram: Iterable[tuple[int, int]]) -> AnyDomain:
        """Pass-through where the unit has it; else all RAM mapped to itself (Linux: si_domain)."""
        if self._iommu.pass_through is not None:
            return self._iommu.pass_through
        domain = self._iommu.new_domain()
        for base, size in ram:
            first, end = -(-base // PAGE) * PAGE, (base + size) // PAGE * PAGE
            if end > first:
                domain.map(first, first, end - first, int(Access.BOTH))
        return domain
