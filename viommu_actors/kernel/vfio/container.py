"""VFIO containers: the IOMMU context that groups share (drivers/vfio/container.c)."""

from __future__ import annotations

from errno import EINVAL, ENODEV, ENOTTY, EPERM
from typing import TYPE_CHECKING

from viommu_actors.kernel.vfio.noiommu import NoIommu
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
        self._iommu: Type1 | NoIommu | None = None

    @property
    def has_iommu(self) -> bool:
        """Whether VFIO_SET_IOMMU is done, be it that there is none."""
        return self._iommu is not None

    @property
    def maps(self) -> bool:
        """Whether it has mappings."""
        return isinstance(self._iommu, Type1)

    @property
    def type1(self) -> Type1:
        """Raises EINVAL before VFIO_SET_IOMMU, ENOTTY without an IOMMU."""
        if self._iommu is None:
            raise OSError(EINVAL, "the container has no IOMMU: VFIO_SET_IOMMU comes first")
        if not isinstance(self._iommu, Type1):
            raise OSError(ENOTTY, "without an IOMMU a container has no mappings: devices use physical addresses")
        return self._iommu

    def set_iommu(self, kind: int) -> None:
        """VFIO_SET_IOMMU.

        Raises EINVAL without a group or when done already, ENODEV for a type that is not offered, and what attaching
        the groups raises (EPERM without interrupt remapping).
        """
        if not self.groups or self._iommu is not None:
            raise OSError(EINVAL, "VFIO_SET_IOMMU is for a container that has groups, once")
        noiommu = self.groups[0].noiommu
        offered = IommuType.NOIOMMU if noiommu else IommuType.TYPE1V2
        if kind != offered:
            raise OSError(ENODEV, f"IOMMU type {kind} is not offered; {offered} is")
        if noiommu:
            self._iommu = NoIommu()
            return
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
        self._iommu = type1

    def close(self, process: UserProcess) -> None:
        """The container goes on for the groups that are in it."""

    def add(self, group: Group) -> None:
        """A group joins, and the IOMMU if there is one. Raises what attaching raises, EPERM where not all have one."""
        if self.groups and self.groups[0].noiommu != group.noiommu:
            raise OSError(EPERM, "a container has groups with an IOMMU, or without, and not both")
        if self._iommu is not None:
            self._iommu.attach(group.devices)
        self.groups.append(group)

    def remove(self, group: Group) -> None:
        """A group leaves; with the last one go the mappings."""
        self.groups.remove(group)
        if self._iommu is None:
            return
        self._iommu.detach(group.devices)
        if not self.groups:
            self._iommu.release()
            self._iommu = None
