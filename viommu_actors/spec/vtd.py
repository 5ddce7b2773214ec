"""VT-d layouts, all in one name space: registers, tables, faults, invalidation descriptors."""

from __future__ import annotations

from viommu_actors.spec.vtd_faults import *
from viommu_actors.spec.vtd_invalidation import *
from viommu_actors.spec.vtd_registers import *
from viommu_actors.spec.vtd_structures import *
