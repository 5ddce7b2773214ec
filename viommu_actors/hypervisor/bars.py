"""The memory BARs of an assigned device: where the guest put them, and their memory slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from viommu_actors.hypervisor.regions import Regions
from viommu_actors.hypervisor.vectors import Delivery
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
    #: where the kernel beneath would not have it
    refused_at: int | None = None

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
    """All BARs of one device. A BAR that decodes is a memory slot of the VM, so that it does not trap.

    One that would lie over RAM or another BAR gets no slot, and answers nowhere until there is room for it.
    """

    def __init__(
        self, delivery: Delivery, device: int, regions: Regions, raw: bytes, next_slot: Callable[[], int]
    ) -> None:
        """`raw` is the device's configuration header."""
        parent = self._parent = delivery.parent
        self._vm = delivery.vm
        self._refused = delivery.refused
        self._regions = regions
        self._decoding = False
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

    def move(self, bar: BarWindow, base: int, value: int) -> bool:
        """The guest writes a BAR's register; True where the address map changed."""
        changed = self._unmap(bar)
        bar.address = bar.moved(base, value)
        return self.settle() or changed

    def decode(self, on: bool) -> bool:
        """The guest switches memory decoding; True where the address map changed."""
        self._decoding = on
        return self.settle()

    def settle(self) -> bool:
        """Makes the memory slots what the command register and the BARs ask for; True where that changed any."""
        changed = False
        for bar in self.windows:
            if self._decoding and bar.address != 0 and not bar.being_sized:
                changed = self._map(bar) or changed
            else:
                changed = self._unmap(bar) or changed
        return changed

    def read(self, bar: BarWindow, address: int, size: int) -> int:
        """MMIO read through VFIO, for a BAR that is no memory slot."""
        return self._regions.read(bar.index, address - bar.address, size)

    def write(self, bar: BarWindow, address: int, size: int, value: int) -> None:
        """MMIO write through VFIO."""
        self._regions.write(bar.index, address - bar.address, size, value)

    def _map(self, bar: BarWindow) -> bool:
        if bar.mapped:
            return False
        if bar.vaddr is not None:
            try:
                bar.token = self._parent.set_memory(self._vm, bar.slot, bar.address, bar.size, bar.vaddr)
            except OSError as error:
                if bar.refused_at != bar.address:
                    bar.refused_at = bar.address
                    self._refused(f"BAR {bar.index} at {bar.address:#x}", error)
                return False
        bar.mapped, bar.refused_at = True, None
        return True

    def _unmap(self, bar: BarWindow) -> bool:
        if not bar.mapped:
            return False
        if bar.vaddr is not None:
            self._parent.set_memory(self._vm, bar.slot, bar.address, 0, bar.vaddr)
        bar.mapped, bar.token = False, b""
        return True
