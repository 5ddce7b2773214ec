"""VFIO as a user process calls it: the ioctls, reads, writes and maps of its own descriptors.

Hypervisors and applications are written against this interface; the wire implements it towards the kernel that they
run on, at any depth of nesting. Every method raises OSError with the uapi's errno.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Region(NamedTuple):
    """VFIO_DEVICE_GET_REGION_INFO: flags of spec.vfio, size in bytes."""

    flags: int
    size: int
    offset: int


class VfioCalls(Protocol):
    """One method each; descriptors are integers of the calling process."""

    def open_container(self) -> int: ...

    def iommu_group(self, device: str) -> int:
        """The number of the group of a device named as in sysfs ("0000:01:00.0")."""
        ...

    def open_group(self, number: int) -> int: ...

    def set_container(self, group: int, container: int) -> None: ...

    def set_iommu(self, container: int, kind: int) -> None: ...

    def get_device(self, group: int, device: str) -> int: ...

    def map_dma(self, container: int, flags: int, vaddr: int, iova: int, size: int) -> None: ...

    def unmap_dma(self, container: int, iova: int, size: int) -> int:
        """Returns the bytes unmapped; once it returns, no access through them can complete."""
        ...

    def region_info(self, device: int, index: int) -> Region: ...

    def irq_count(self, device: int, index: int) -> int: ...

    def region_read(self, device: int, index: int, offset: int, size: int) -> bytes: ...

    def region_write(self, device: int, index: int, offset: int, data: bytes) -> None: ...

    def set_irqs(self, device: int, index: int, start: int, eventfds: tuple[int, ...]) -> None: ...

    def act_on_irqs(self, device: int, index: int, action: int, start: int, count: int) -> None: ...

    def reset(self, device: int) -> None: ...

    def mmap_region(self, device: int, index: int) -> int:
        """User address of a device region."""
        ...

    def eventfd(self) -> int: ...

    def close(self, handle: int) -> None: ...
