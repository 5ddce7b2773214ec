"""The type1 IOMMU driver of VFIO: a container's mappings, in version 2's rules (drivers/vfio/vfio_iommu_type1.c)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from errno import EEXIST, EINVAL, ENOSPC, EPERM
from typing import TYPE_CHECKING, NamedTuple

from viommu_actors.kernel.process import UserProcess
from viommu_actors.spec.vfio import ADDRESS_LIMIT, DMA_ENTRY_LIMIT, PAGE_SIZE, DmaFlags

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import PciDevice

#: What Linux prints and the user gets EPERM for.
UNSAFE_INTERRUPTS = (
    "vfio_iommu_type1_attach_group: No interrupt remapping support.  "
    'Use the module param "allow_unsafe_interrupts" to enable VFIO IOMMU support on this platform'
)
_PAGE_MASK = PAGE_SIZE - 1
_ALL_FLAGS = int(DmaFlags.READ | DmaFlags.WRITE)


class Range(NamedTuple):
    """Inclusive IOVAs that may be mapped."""

    first: int
    last: int


class Type1:
    """Mappings of one container, kept alike in the one domain that all its groups share."""

    def __init__(self, kernel: Kernel) -> None:
        iommu = kernel.iommu
        assert iommu is not None, "a group exists only behind an IOMMU"
        self._kernel = kernel
        self._iommu = iommu
        self._domain = iommu.new_domain()
        self.iova_ranges = _usable(self._domain.width, self._domain.reserved)
        #: VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL: how many more mappings there may be.
        self.dma_avail = int(kernel.cmdline.get("vfio_iommu_type1.dma_entry_limit", str(DMA_ENTRY_LIMIT)))
        #: Mappings that were ever made, and taken away again.
        self.mapped = self.unmapped = 0
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}

    @property
    def live(self) -> int:
        """Mappings that there are now."""
        return len(self._starts)

    def attach(self, devices: list[PciDevice]) -> None:
        """Puts every device of a group into the domain. Raises EPERM where it could forge interrupts."""
        unsafe = self._kernel.cmdline.enabled("vfio_iommu_type1.allow_unsafe_interrupts")
        if not self._iommu.interrupt_remapping and not unsafe:
            self._kernel.machine.log(UNSAFE_INTERRUPTS)
            raise OSError(EPERM, UNSAFE_INTERRUPTS)
        attached: list[PciDevice] = []
        try:
            for device in devices:
                self._iommu.attach(device, self._domain)
                attached.append(device)
        except OSError:
            self.detach(attached)
            raise

    def detach(self, devices: list[PciDevice]) -> None:
        """Takes devices out of the domain: from here on their DMA is blocked."""
        for device in devices:
            self._iommu.detach(device)

    def map(self, process: UserProcess, flags: int, vaddr: int, iova: int, size: int) -> None:
        """VFIO_IOMMU_MAP_DMA.

        Raises EINVAL (no access asked for or an unknown flag, not whole pages, a wrap, an IOVA that is reserved or too
        wide), EEXIST (overlap), ENOSPC (no entry left) and EFAULT (no such user memory), tested in Linux's order.
        """
        if not flags or flags & ~_ALL_FLAGS:
            raise OSError(EINVAL, f"flags {flags:#x}: READ, WRITE or both")
        if not size or (size | iova | vaddr) & _PAGE_MASK:
            raise OSError(EINVAL, f"vaddr {vaddr:#x} iova {iova:#x} size {size:#x}: not whole pages")
        if not _fits(iova, size) or not _fits(vaddr, size):
            raise OSError(EINVAL, f"vaddr {vaddr:#x} iova {iova:#x} size {size:#x}: wraps")
        last = iova + size - 1
        position = bisect_right(self._starts, last)
        if position:
            before = self._starts[position - 1]
            if before + self._sizes[before] > iova:
                raise OSError(EEXIST, f"iova {iova:#x} size {size:#x} overlaps the mapping at {before:#x}")
        if not self.dma_avail:
            raise OSError(ENOSPC, f"no mapping left: dma_entry_limit is {len(self._starts)}")
        for first, end in self.iova_ranges:
            if first <= iova and last <= end:
                break
        else:
            raise OSError(EINVAL, f"iova {iova:#x} size {size:#x}: reserved, or beyond the address width")
        # The flags are the bits of `Access`.
        self._enter(process, flags, vaddr, iova, size)
        self._starts.insert(position, iova)
        self._sizes[iova] = size
        self.dma_avail -= 1
        self.mapped += 1

    def unmap(self, iova: int, size: int) -> int:
        """VFIO_IOMMU_UNMAP_DMA: takes away every mapping in the range; the bytes that were mapped, perhaps none.

        Raises EINVAL where the range is not whole pages, wraps or would split a mapping; then nothing is unmapped.
        When it returns, no access through the mappings can complete.
        """
        if not size or (iova | size) & _PAGE_MASK or not _fits(iova, size):
            raise OSError(EINVAL, f"iova {iova:#x} size {size:#x}: no range of whole pages")
        starts, sizes = self._starts, self._sizes
        end = iova + size
        begin = bisect_left(starts, iova)
        stop = bisect_left(starts, end, begin)
        if begin and starts[begin - 1] + sizes[starts[begin - 1]] > iova:
            raise OSError(EINVAL, f"iova {iova:#x} splits the mapping at {starts[begin - 1]:#x}")
        if begin == stop:
            return 0
        if starts[stop - 1] + sizes[starts[stop - 1]] > end:
            raise OSError(EINVAL, f"iova {iova:#x} size {size:#x} splits the mapping at {starts[stop - 1]:#x}")
        return self._remove(begin, stop)

    def release(self) -> None:
        """Every mapping goes, and the domain. Its devices have been detached."""
        if self._starts:
            self._remove(0, len(self._starts))
        self._iommu.free_domain(self._domain)

    def _enter(self, process: UserProcess, access: int, vaddr: int, iova: int, size: int) -> None:
        """Maps physical pieces as large as they come; all or nothing."""
        done = 0
        try:
            for physical, length in process.translate(vaddr, size):
                self._domain.map(iova + done, physical, length, access)
                done += length
        except OSError:
            if done:
                self._domain.unmap(iova, done)
            raise

    def _remove(self, begin: int, stop: int) -> int:
        """Takes away mappings by index; neighbours without a gap in one unmap, and so in one invalidation."""
        unmapped = 0
        first = self._starts[begin]
        end = first
        for start in self._starts[begin:stop]:
            if start != end:
                self._domain.unmap(first, end - first)
                first = start
            size = self._sizes.pop(start)
            end = start + size
            unmapped += size
        self._domain.unmap(first, end - first)
        del self._starts[begin:stop]
        self.dma_avail += stop - begin
        self.unmapped += stop - begin
        return unmapped


def _fits(address: int, size: int) -> bool:
    return address >= 0 and size > 0 and address + size <= ADDRESS_LIMIT


def _usable(width: int, reserved: list[tuple[int, int]]) -> tuple[Range, ...]:
    """The IOVAs of `width` bits without the reserved ranges (inclusive)."""
    usable: list[Range] = []
    first = 0
    for begin, last in sorted(reserved):
        if begin > first:
            usable.append(Range(first, begin - 1))
        first = max(first, last + 1)
    limit = (1 << width) - 1
    if first <= limit:
        usable.append(Range(first, limit))
    return tuple(usable)
