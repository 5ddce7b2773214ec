"""An assigned device's regions as its guest reaches them through VFIO: like a bus, they never fail."""

from __future__ import annotations

from collections.abc import Callable

from viommu_actors.hypervisor.parent import ParentKernel

#: refused(what, error): the kernel beneath would not do what the guest asked for.
Refused = Callable[[str, OSError], None]


class Regions:
    """Configuration space and BARs of one VFIO device."""

    def __init__(self, parent: ParentKernel, device: int, refused: Refused) -> None:
        self._parent = parent
        self._device = device
        self._refused = refused

    def read(self, index: int, offset: int, size: int) -> int:
        """`size` bytes; all ones where the kernel refuses."""
        try:
            data = self._parent.region_read(self._device, index, offset, size)
        except OSError as error:
            self._refused(f"read of {size} bytes at {offset:#x} of region {index}", error)
            return (1 << 8 * size) - 1
        return int.from_bytes(data, "little")

    def write(self, index: int, offset: int, size: int, value: int) -> None:
        """The low `size` bytes of `value`; lost where the kernel refuses."""
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        try:
            self._parent.region_write(self._device, index, offset, data)
        except OSError as error:
            self._refused(f"write of {size} bytes at {offset:#x} of region {index}", error)
