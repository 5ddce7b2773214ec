"""What an application asks of the kernel it runs on: hugepages, sysfs, VFIO, UIO, sleep; and the BARs it has mapped.

Applications are written against this interface; the wire implements it towards the process of the kernel. Methods
that enter the kernel raise OSError with Linux's errno and a reason. `memory`, `mmio_read` and `mmio_write` enter no
kernel: they are loads and stores of the process's own mappings.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from viommu_actors.kernel.pages import HUGEPAGE as HUGEPAGE
from viommu_actors.kernel.sysfs import PciInfo as PciInfo
from viommu_actors.kernel.vfio.calls import VfioCalls
from viommu_actors.memory import Memory


class System(VfioCalls, Protocol):
    """One application's kernel interface and address space."""

    @property
    def memory(self) -> Memory:
        """The process's own mappings, by user address."""
        ...

    #: Size of the process's hugepages together, a multiple of `HUGEPAGE`; 0 without any.
    hugepage_bytes: int

    # --- memory

    def mmap_hugepages(self) -> int:
        """User address of all of the process's hugepages, one after another. ENOMEM where there are none."""
        ...

    def pagemap(self, vaddr: int) -> int:
        """Physical address behind a user address (/proc/self/pagemap); 0 without CAP_SYS_ADMIN. EFAULT."""
        ...

    # --- sysfs

    def pci_devices(self) -> Sequence[PciInfo]: ...

    def bind(self, device: str, driver: str) -> None:
        """Takes a function from its driver and gives it to another (driver_override, unbind, bind); "" to none.

        ENODEV: no such function or driver; EINVAL: vfio-pci refuses one without an IOMMU group, unless
        `noiommu_mode`; EBUSY: a process has it open.
        """
        ...

    def noiommu_mode(self) -> bool:
        """/sys/module/vfio/parameters/enable_unsafe_noiommu_mode."""
        ...

    # --- VFIO without an IOMMU, and UIO

    def open_noiommu_group(self, number: int) -> int:
        """Opens /dev/vfio/noiommu-N. EPERM without CAP_SYS_RAWIO, ENOENT, EBUSY. It taints the kernel."""
        ...

    def open_uio(self, device: str) -> int:
        """Opens the /dev/uioN of a function bound to uio_pci_generic. ENODEV for any other."""
        ...

    def uio_config_read(self, uio: int, offset: int, size: int) -> bytes:
        """Reads configuration space by sysfs's `config`. EINVAL outside of it."""
        ...

    def uio_config_write(self, uio: int, offset: int, data: bytes) -> None:
        """As `uio_config_read`."""
        ...

    def uio_write(self, uio: int, on: int) -> None:
        """Turns interrupts on or off, where the driver has `irqcontrol`. ENOSYS: it has not; EIO as `read_count`."""
        ...

    def uio_mmap(self, uio: int, bar: int) -> int:
        """User address of a BAR (sysfs's `resourceN`). ENOENT where there is none."""
        ...

    # --- sleep

    def wait(self, descriptors: Collection[int], seconds: float) -> Collection[int]:
        """Sleeps until one of these is signalled (epoll_wait), and tells which; none after so many seconds. They are
        eventfds, or open devices of UIO.

        It may tell of one whose signals have been read already, as a wait that nothing in the kernel stands behind may.
        """
        ...

    def read_count(self, descriptor: int) -> int:
        """How often an eventfd was signalled since the last time; how many interrupts a device of UIO had in all.

        It does not block. EAGAIN: none since the last time; EIO: the device has no interrupt.
        """
        ...

    # --- the process itself

    def mmio_read(self, vaddr: int, size: int) -> int:
        """Loads 1, 2, 4 or 8 bytes from a mapped BAR."""
        ...

    def mmio_write(self, vaddr: int, size: int, value: int) -> None:
        """Stores 1, 2, 4 or 8 bytes to a mapped BAR; posted."""
        ...

    def pause(self) -> None:
        """Lets others have the CPU for a moment: what a poll does that found nothing."""
        ...

    def clock(self) -> float:
        """Seconds of the monotonic clock."""
        ...
