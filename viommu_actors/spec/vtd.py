"""VT-d layouts, all in one name space: registers, tables, faults, invalidation descriptors."""

from __future__ import annotations

from viommu_actors.spec.vtd_faults import *  # noqa: F403
from viommu_actors.spec.vtd_invalidation import *  # noqa: F403
from viommu_actors.spec.vtd_registers import *  # noqa: F403
from viommu_actors.spec.vtd_structures import *  # noqa: F403
