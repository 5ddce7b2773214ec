"""Who the processes of kernel tests are."""

from __future__ import annotations

from viommu_actors.spec.privileges import Capability

#: Who opens what is root's: /dev/vfio/N, /dev/uioN, sysfs.
ROOT = frozenset(Capability)
