"""The VT-d remapping unit: registers, caches, walks, faults and the invalidation queue, over injected memory."""

from __future__ import annotations

from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.interrupts import Blocked, Compatible, Outcome, Remapped
from viommu_actors.vtd.listener import InvalidationListener
from viommu_actors.vtd.tables import Context, Leaf, TableFault, leaves, read_context, walk
from viommu_actors.vtd.translator import Translation, is_interrupt
from viommu_actors.vtd.unit import RemappingUnit

__all__ = [
    "Blocked",
    "Compatible",
    "Context",
    "InvalidationListener",
    "Leaf",
    "Outcome",
    "Remapped",
    "RemappingUnit",
    "TableFault",
    "Translation",
    "UnitConfig",
    "is_interrupt",
    "leaves",
    "read_context",
    "walk",
]
