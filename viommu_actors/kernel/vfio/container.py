"""VFIO containers: the IOMMU context that groups share (drivers/vfio/container.c)."""

from __future__ import annotations

from errno import EINVAL, ENODEV
from typing import TYPE_CHECKING

from viommu_actors.kernel.vfio.type1 import Type1
from viommu_actors.spec.vfio import IommuType

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.process import UserProcess
    from viommu_actors.kernel.vfio.group import Group


class Container:
    """An open /dev/vfio/vfio. It has an IOMMU from VFIO_SET_IOMMU until its last group leaves."""

    def __init__(self, kernel: Kernel) -> None:
        self.groups: list[Group] = []
        self._kernel = kernel
        self._type1: Type1 | None = None

    @property
    def has_iommu(self) -> bool:
        return self._type1 is not None

    @property
    def type1(self) -> Type1:
        """Raises EINVAL before VFIO_SET_IOMMU."""
        if self._type1 is None:
            raise OSError(EINVAL, "the container has no IOMMU: VFIO_SET_IOMMU comes first")
        return self._type1

    def set_iommu(self, kind: int) -> None:
        """VFIO_SET_IOMMU.

        Raises EINVAL without a group or when done already, ENODEV for a type that is not offered, and what attaching
        the groups raises (EPERM without interrupt remapping).
        """
        if not self.groups or self._type1 is not None:
            raise OSError(EINVAL, "VFIO_SET_IOMMU is for a container that has groups, once")
        if kind != IommuType.TYPE1V2:
            raise OSError(ENODEV, f"IOMMU type {kind} is not offered; {IommuType.TYPE1V2} is")
        type1 = Type1(self._kernel)
        attached: list[Group] = []
        try:
            for group in self.groups:
                type1.attach(group.devices)
                attached.append(group)
        except OSError:
            for group in attached:
                type1.detach(group.devices)
            type1.release()
            raise
        self._type1 = type1

    def close(self, process: UserProcess) -> None:
        """The container goes on for the groups that are in it."""

    def add(self, group: Group) -> None:
        """A group joins, and the IOMMU if there is one. Raises what attaching raises."""
        if self._type1 is not None:
            self._type1.attach(group.devices)
        self.groups.append(group)

    def remove(self, group: Group) -> None:
        """A group leaves; with the last one go the mappings."""
        self.groups.remove(group)
        if self._type1 is None:
            return
        self._type1.detach(group.devices)
        if not self.groups:
            self._type1.release()
            self._type1 = None
