"""What a hypervisor asks of the kernel it runs on: VFIO and KVM, as ioctls of file descriptors.

The hypervisor is written against this interface; the wire implements it towards the process of
the parent kernel, at any depth of nesting. Every method raises OSError with the uapi's errno.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from viommu_actors.kernel.vfio.calls import VfioCalls

#: (flags, vaddr, iova, size)
MapRequest = tuple[int, int, int, int]


class ParentKernel(VfioCalls, Protocol):
    """The ioctls, one method each; descriptors are integers of this process."""

    def map_dma_each(self, container: int, requests: Sequence[MapRequest]) -> list[OSError | None]:
        """Several `map_dma`, one after another, none of which waits for the one before; what was refused, and why."""
        ...

    def mmap_ram(self, slot: str) -> int:
        """User address of one of this process's own memory slots."""
        ...

    def create_vm(self, name: str) -> int: ...

    def set_memory(self, vm: int, slot: int, gpa: int, size: int, vaddr: int) -> bytes:
        """Sets a KVM memory slot (size 0 takes it away); returns a channel token for a BAR, else b""."""
        ...

    def set_routes(self, vm: int, routes: list[tuple[int, int, int]]) -> None:
        """MSI routes (gsi, address, data), all of them."""
        ...

    def irqfd(self, vm: int, eventfd: int, gsi: int, assign: bool) -> None:
        """From here on a signal of `eventfd` is the interrupt of `gsi`; `assign` False: it wakes this process again."""
        ...

    def signal_msi(self, vm: int, address: int, data: int) -> None: ...
