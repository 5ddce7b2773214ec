"""The memory BARs of an assigned device: where the guest put them, and their memory slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from viommu_actors.hypervisor.parent import ParentKernel
from viommu_actors.spec import pci, vfio

_DWORD = 4
_ALL_ONES = 0xFFFF_FFFF


@dataclass
class BarWindow:
    """One memory BAR; `token` is the channel that leads to it, empty where its accesses trap."""

    index: int
    size: int
    flags: int
    slot: int
    vaddr: int | None
    address: int = 0
    token: bytes = b""
    mapped: bool = False

    @property
    def is_64bit(self) -> bool:
        return self.flags & pci.BAR_TYPE_MASK == pci.BAR_TYPE_64

    @property
    def offset(self) -> int:
        """Of its first register in configuration space."""
        return pci.BAR0 + self.index * _DWORD

    def holds(self, base: int) -> bool:
        """Whether the dword at `base` is one of its registers."""
        return base == self.offset or (self.is_64bit and base == self.offset + _DWORD)

    def register(self, base: int) -> int:
        """What the dword at `base` reads as."""
        return self.address & _ALL_ONES | self.flags if base == self.offset else self.address >> 32

    def moved(self, base: int, value: int) -> int:
        """The address after a write of its register at `base`."""
        if base == self.offset:
            address = self.address & ~_ALL_ONES | value & pci.BAR_MEMORY_MASK
        else:
            address = self.address & _ALL_ONES | value << 32
        return address & ~(self.size - 1)

    @property
    def being_sized(self) -> bool:
        """Software wrote all ones to learn the size: no address to decode."""
        return self.address >= (1 << 64 if self.is_64bit else 1 << 32) - self.size


class Bars:
    """All BARs of one device. A BAR that decodes is a memory slot of the VM, so that it does not trap."""

    def __init__(self, parent: ParentKernel, vm: int, device: int, raw: bytes, next_slot: Callable[[], int]) -> None:
        """`raw` is the device's configuration header."""
        self._parent = parent
        self._vm = vm
        self._device = device
        self.windows: list[BarWindow] = []
        index = 0
        while index < pci.ENDPOINT_BARS:
            region = parent.region_info(device, index)
            flags = raw[pci.BAR0 + index * _DWORD] & 0xF
            if region.size and not flags & pci.BAR_IO:
                mmap = region.flags & vfio.RegionFlags.MMAP
                vaddr = parent.mmap_region(device, index) if mmap else None
                self.windows.append(BarWindow(index, region.size, flags, next_slot(), vaddr))
                index += 1 + self.windows[-1].is_64bit
            else:
                index += 1

    def of(self, base: int) -> BarWindow | None:
        """The BAR that a dword of configuration space belongs to."""
        return next((bar for bar in self.windows if bar.holds(base)), None)

    def at(self, address: int, size: int) -> BarWindow | None:
        """The decoding BAR that holds this guest-physical range."""
        for bar in self.windows:
            if bar.mapped and bar.address <= address and address + size <= bar.address + bar.size:
                return bar
        return None

    def move(self, bar: BarWindow, base: int, value: int, decoding: bool) -> bool:
        """The guest writes a BAR's register; True where the address map changed."""
        changed = self._unmap(bar)
        bar.address = bar.moved(base, value)
        return self.update(decoding) or changed

    def update(self, decoding: bool) -> bool:
        """Makes the memory slots what the command register and the BARs ask for; True where that changed any."""
        changed = False
        for bar in self.windows:
            wanted = decoding and bar.address != 0 and not bar.being_sized
            if wanted and not bar.mapped:
                if bar.vaddr is not None:
                    bar.token = self._parent.set_memory(self._vm, bar.slot, bar.address, bar.size, bar.vaddr)
                bar.mapped = changed = True
            elif not wanted:
                changed = self._unmap(bar) or changed
        return changed

    def read(self, bar: BarWindow, address: int, size: int) -> int:
        """MMIO read through VFIO, for a BAR that is no memory slot."""
        data = self._parent.region_read(self._device, bar.index, address - bar.address, size)
        return int.from_bytes(data, "little")

    def write(self, bar: BarWindow, address: int, size: int, value: int) -> None:
        """MMIO write through VFIO."""
        self._parent.region_write(self._device, bar.index, address - bar.address, value.to_bytes(size, "little"))

    def _unmap(self, bar: BarWindow) -> bool:
        if not bar.mapped:
            return False
        if bar.vaddr is not None:
            self._parent.set_memory(self._vm, bar.slot, bar.address, 0, bar.vaddr)
        bar.mapped, bar.token = False, b""
        return True
