"""The books of every level that maps: what was mapped and not unmapped must be what is live.

Mapped and unmapped are counted as it happens; live is looked up where the mappings stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from viommu_actors.hypervisor.shadow import Shadow
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.vfio.vfio import Vfio

Book = dict[str, Any]


def kernel_books(kernel: Kernel, vfio: Vfio | None) -> list[Book]:
    """Of a kernel: buffers of the DMA API, mappings of VFIO's containers, bytes in the page tables."""
    found = []
    if kernel.live_buffers is not None:
        counters = kernel.counters
        found.append(_book("DMA API, buffers", counters["dma_maps"], counters["dma_unmaps"], kernel.live_buffers))
    if vfio is not None and vfio.mappings:
        each = vfio.mappings
        totals = (sum(type1.mapped for type1 in each), sum(type1.unmapped for type1 in each))
        found.append(_book("VFIO, mappings", *totals, sum(type1.live for type1 in each)))
    if kernel.iommu is not None:
        domains = kernel.iommu.domains
        totals = (sum(domain.mapped for domain in domains), sum(domain.unmapped for domain in domains))
        found.append(_book("page tables, bytes", *totals, sum(domain.live for domain in domains)))
    return found


def shadow_books(shadows: Sequence[Shadow]) -> list[Book]:
    """Of a hypervisor: what its shadows hold."""
    mapped, gone = (sum(shadow.counters[name] for shadow in shadows) for name in ("maps", "mappings_gone"))
    return [_book("shadow, mappings", mapped, gone, sum(len(shadow.mappings()) for shadow in shadows))]


def _book(level: str, mapped: int, unmapped: int, live: int) -> Book:
    return {"level": level, "mapped": mapped, "unmapped": unmapped, "live": live}
