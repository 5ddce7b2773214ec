"""A user process as its kernel knows it: open files, and the address space that its requests speak of."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from errno import EBADF, EFAULT, EINVAL, EMFILE, ENOMEM, ENOTTY, EPERM
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from viommu_actors.spec.privileges import Capability
from viommu_actors.spec.vtd import PAGE_MASK

T = TypeVar("T")
_new = tuple.__new__

_FIRST_DESCRIPTOR = 3
#: RLIMIT_NOFILE: descriptors are below it (INR_OPEN_MAX, include/uapi/linux/fs.h).
DESCRIPTOR_LIMIT = 4096
#: User addresses: from here to the end of the lower half of a 48-bit address space.
_FIRST_ADDRESS = 0x1000_0000_0000
_LAST_ADDRESS = 0x7FFF_FFFF_FFFF
#: An area and the physical memory below it agree modulo this, so that pages of any size fit both.
_CONGRUENCE = 1 << 30


class Vma(NamedTuple):
    """An area of user addresses over physically contiguous memory, or over a BAR (`device` set)."""

    start: int
    size: int
    physical: int
    device: object | None = None

    @property
    def end(self) -> int:
        return self.start + self.size


class Piece(NamedTuple):
    """Physically contiguous bytes."""

    physical: int
    size: int


class File(Protocol):
    """What a descriptor names."""

    def close(self, process: UserProcess) -> None:
        """The descriptor is gone."""
        ...


class EventFd:
    """A counter that wakes whoever waits: an irqfd in the kernel, else the process."""

    def __init__(self) -> None:
        self.count = 0
        self.wake_process: Callable[[], None] | None = None
        self.irqfd: Callable[[], None] | None = None

    def signal(self) -> None:
        """Adds one and wakes. An irqfd consumes the count at once."""
        if self.irqfd is not None:
            self.irqfd()
        else:
            self.count += 1
            if self.wake_process is not None:
                self.wake_process()

    def read(self) -> int:
        """The count since the last read."""
        count, self.count = self.count, 0
        return count

    def close(self, process: UserProcess) -> None:
        """Who still signals it wakes no one."""
        self.irqfd = self.wake_process = None


class UserProcess:
    """Descriptor table and address space of one process.

    `notify(name, descriptor)` is called, and must not block, when an eventfd of the process is signalled that no
    irqfd consumes.
    """

    def __init__(
        self,
        name: str,
        notify: Callable[[str, int], None] | None = None,
        capabilities: frozenset[Capability] = frozenset(),
    ) -> None:
        self.name = name
        self._capabilities = capabilities
        self.files: dict[int, File] = {}
        #: Called with an area that has just gone, as MMU notifiers are.
        self.mmu_notifiers: list[Callable[[Vma], None]] = []
        self._notify = notify
        self._areas: list[Vma] = []
        self._starts: list[int] = []
        self._next_address = _FIRST_ADDRESS

    # --- descriptors

    def install(self, file: File) -> int:
        """The lowest free descriptor, now naming `file`. Raises EMFILE where there is none; `file` is closed then."""
        free = (number for number in range(_FIRST_DESCRIPTOR, DESCRIPTOR_LIMIT) if number not in self.files)
        descriptor = next(free, None)
        if descriptor is None:
            file.close(self)
            raise OSError(EMFILE, f"{self.name}: {DESCRIPTOR_LIMIT} descriptors are the limit")
        self.files[descriptor] = file
        return descriptor

    def file(self, descriptor: int, kind: type[T], mismatch: int = ENOTTY) -> T:
        """The open file, which must be a `kind`. Raises EBADF, or `mismatch` for a file of another kind."""
        try:
            file = self.files[descriptor]
        except KeyError:
            raise OSError(EBADF, f"{self.name}: bad file descriptor {descriptor}") from None
        if not isinstance(file, kind):
            raise OSError(mismatch, f"{self.name}: descriptor {descriptor} is no {kind.__name__}")
        return file

    def eventfd(self) -> int:
        """A new eventfd. Raises EMFILE."""
        file = EventFd()
        descriptor = self.install(file)
        file.wake_process = self.waker(descriptor)
        return descriptor

    def waker(self, descriptor: int) -> Callable[[], None]:
        """What wakes the process where it sleeps on a descriptor of its own."""
        return (lambda: None) if self._notify is None else partial(self._notify, self.name, descriptor)

    def close(self, descriptor: int) -> None:
        """Raises EBADF."""
        try:
            file = self.files.pop(descriptor)
        except KeyError:
            raise OSError(EBADF, f"{self.name}: bad file descriptor {descriptor}") from None
        file.close(self)

    def exit(self) -> None:
        """The process ends, however it does: everything it had is closed, and its memory goes."""
        while self.files:
            self.close(min(self.files))
        while self._starts:
            self.unmap_memory(self._starts[-1])

    def capable(self, capability: Capability) -> bool:
        """Whether the process has the capability."""
        return capability in self._capabilities

    def require(self, capability: Capability, error: int = EPERM) -> None:
        """Raises `error` where the process lacks the capability."""
        if not self.capable(capability):
            raise OSError(error, f"{self.name} has no CAP_{capability.name}")

    # --- addresses

    def map_memory(self, paddr: int, size: int) -> int:
        """Lends RAM at `paddr` to the process; returns its user address, equal to `paddr` modulo 1 GiB.

        Raises EINVAL unless address and size are whole pages, ENOMEM when the user addresses are used up.
        """
        return self._map(paddr, size, None)

    def map_bar(self, physical: int, size: int, device: object) -> int:
        """As `map_memory`, over the BAR of an open VFIO device."""
        return self._map(physical, size, device)

    def unmap_memory(self, vaddr: int) -> None:
        """Takes away the area that starts at `vaddr`. Raises EINVAL where there is none."""
        index = bisect_right(self._starts, vaddr) - 1
        if index < 0 or self._starts[index] != vaddr:
            raise OSError(EINVAL, f"{self.name}: nothing is mapped at {vaddr:#x}")
        area = self._areas.pop(index)
        del self._starts[index]
        for notifier in tuple(self.mmu_notifiers):
            notifier(area)

    def unmap_device(self, device: object) -> None:
        """Takes away every area over BARs of `device`."""
        for area in [area for area in self._areas if area.device is device]:
            self.unmap_memory(area.start)

    def area(self, vaddr: int, size: int) -> Vma:
        """The one area that holds the whole range. Raises EFAULT."""
        index = bisect_right(self._starts, vaddr) - 1
        if index >= 0:
            area = self._areas[index]
            if vaddr + size <= area.start + area.size:
                return area
        raise OSError(EFAULT, f"{self.name}: bad address {vaddr:#x} for {size:#x} bytes")

    def translate(self, vaddr: int, size: int) -> list[Piece]:
        """The physical memory behind a range, in as few pieces as there are. Raises EFAULT where it has a hole."""
        pieces: list[Piece] = []
        end = vaddr + size
        while vaddr < end:
            start, room, physical, _ = self.area(vaddr, 1)
            physical += vaddr - start
            if end <= start + room and not pieces:
                return [_new(Piece, (physical, size))]
            length = min(start + room, end) - vaddr
            if pieces and pieces[-1].physical + pieces[-1].size == physical:
                pieces[-1] = Piece(pieces[-1].physical, pieces[-1].size + length)
            else:
                pieces.append(Piece(physical, length))
            vaddr += length
        return pieces

    def _map(self, physical: int, size: int, device: object | None) -> int:
        if size <= 0 or physical < 0 or (physical | size) & PAGE_MASK:
            raise OSError(EINVAL, f"{self.name}: {physical:#x}+{size:#x} is not made of whole pages")
        start = self._next_address + (physical - self._next_address) % _CONGRUENCE
        if start + size - 1 > _LAST_ADDRESS:
            raise OSError(ENOMEM, f"{self.name}: no user addresses left for {size:#x} bytes")
        self._next_address = start + size
        self._areas.append(Vma(start, size, physical, device))
        self._starts.append(start)
        return start
