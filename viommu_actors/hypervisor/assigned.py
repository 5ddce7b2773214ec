"""A device of the parent kernel as the guest sees it: vfio-pci's user, after QEMU's hw/vfio/pci.c.

What the guest reads of configuration space comes from the device through VFIO, except what this
machine decides: the BARs' addresses, the MSI registers, the list of capabilities, and the edits
that a topology asks for. BARs become memory slots of the VM, so that MMIO does not exit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from viommu_actors.hypervisor.parent import ParentKernel
from viommu_actors.hypervisor.routes import Routes
from viommu_actors.spec import pci, vfio

_DWORD = 4
_ALL_ONES = 0xFFFF_FFFF
_CAPABILITIES = {
    "pm": pci.CapabilityId.POWER_MANAGEMENT,
    "msi": pci.CapabilityId.MSI,
    "pcie": pci.CapabilityId.PCI_EXPRESS,
}


@dataclass(frozen=True)
class Edit:
    """One change to the visible configuration space: hide a capability, or force bits of a dword."""

    hide: str | None = None
    offset: int = 0
    mask: int = 0
    value: int = 0


@dataclass
class BarWindow:
    """A memory BAR: where the guest put it, and the channel that leads to it (empty: it traps)."""

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


@dataclass
class _Msi:
    """The guest's view of the MSI capability at `offset`."""

    offset: int
    control: int
    address: int = 0
    data: int = 0
    eventfds: list[int] = field(default_factory=list)
    gsis: list[int] = field(default_factory=list)


class AssignedFunction:
    """One assigned function; `device` is its VFIO device descriptor."""

    def __init__(
        self,
        parent: ParentKernel,
        vm: int,
        device: int,
        routes: Routes,
        edits: list[Edit],
        next_slot: Callable[[], int],
    ) -> None:
        self._parent = parent
        self._vm = vm
        self._device = device
        self._routes = routes
        self._config_at = parent.region_info(device, vfio.RegionIndex.CONFIG).offset
        raw = parent.region_read(device, vfio.RegionIndex.CONFIG, 0, pci.CONVENTIONAL_SIZE)
        #: dword offset -> (mask, value): bits that this machine decides
        self._emulated: dict[int, tuple[int, int]] = {}
        self._msi: _Msi | None = None
        self._command = int.from_bytes(raw[pci.COMMAND : pci.COMMAND + 2], "little")
        self.bars = self._realize_bars(raw, next_slot)
        self._realize_capabilities(raw, {edit.hide for edit in edits if edit.hide})
        self._emulate(pci.INTERRUPT_LINE, 0xFF, 0xFF)
        for edit in edits:
            if edit.hide is None:
                self._emulate(edit.offset, edit.mask, edit.value)

    # --- configuration space, as the guest's ECAM accesses it

    def config_read(self, offset: int, size: int) -> int:
        """`size` 1, 2 or 4, within one dword."""
        base, shift = offset & ~3, (offset & 3) * 8
        mask, emulated = self._emulated_dword(base)
        value = emulated & mask
        if mask != _ALL_ONES:
            data = self._parent.region_read(self._device, vfio.RegionIndex.CONFIG, base, _DWORD)
            value |= int.from_bytes(data, "little") & ~mask
        return value >> shift & (1 << size * 8) - 1

    def config_write(self, offset: int, size: int, value: int) -> bool:
        """True where the guest's address map changed."""
        base, shift = offset & ~3, (offset & 3) * 8
        bar = self._bar_of(base)
        if bar is not None:
            old = self._bar_dword(base, bar)
            kept = old & ~((1 << size * 8) - 1 << shift)
            return self._write_bar(base, bar, kept | value << shift)
        if self._msi is not None and self._msi.offset <= base < self._msi.offset + 16:
            self._write_msi(offset, size, value)
            return False
        if offset == pci.INTERRUPT_LINE:
            self._emulate(offset, 0xFF, value)  # a note of software to itself
            return False
        self._parent.region_write(self._device, vfio.RegionIndex.CONFIG, offset, value.to_bytes(size, "little"))
        if base == pci.COMMAND:
            written = (1 << size * 8) - 1 << shift & 0xFFFF
            self._command = self._command & ~written | value << shift & written
            return self._update_slots()
        return False

    # --- MMIO of BARs that are no memory slot

    def window_at(self, address: int, size: int) -> BarWindow | None:
        """The mapped BAR that holds this range."""
        for bar in self.bars:
            if bar.mapped and bar.address <= address and address + size <= bar.address + bar.size:
                return bar
        return None

    def slow_read(self, bar: BarWindow, address: int, size: int) -> int:
        """MMIO read through VFIO, for a BAR that cannot be a memory slot."""
        data = self._parent.region_read(self._device, bar.index, address - bar.address, size)
        return int.from_bytes(data, "little")

    def slow_write(self, bar: BarWindow, address: int, size: int, value: int) -> None:
        """MMIO write through VFIO."""
        self._parent.region_write(self._device, bar.index, address - bar.address, value.to_bytes(size, "little"))

    # --- realize

    def _realize_bars(self, raw: bytes, next_slot: Callable[[], int]) -> list[BarWindow]:
        bars: list[BarWindow] = []
        index = 0
        while index < pci.ENDPOINT_BARS:
            region = self._parent.region_info(self._device, index)
            offset = pci.BAR0 + index * _DWORD
            flags = raw[offset] & 0xF
            if region.size and not flags & pci.BAR_IO:
                mmap = region.flags & vfio.RegionFlags.MMAP
                vaddr = self._parent.mmap_region(self._device, index) if mmap else None
                bars.append(BarWindow(index, region.size, flags, next_slot(), vaddr))
                index += 2 if flags & pci.BAR_TYPE_MASK == pci.BAR_TYPE_64 else 1
            else:
                self._emulate(offset, _ALL_ONES, 0)
                index += 1
        self._emulate(pci.ROM_ADDRESS, _ALL_ONES, 0)
        # A device alone in its slot, whatever its place on the host's bus.
        self._emulate(pci.CACHE_LINE_SIZE, pci.HEADER_MULTI_FUNCTION << 16, 0)
        return bars

    def _realize_capabilities(self, raw: bytes, hidden: set[str]) -> None:
        """Relinks the capability list without the hidden ones, and takes over MSI."""
        hidden_ids = {_CAPABILITIES[name] for name in hidden}
        shown: list[tuple[int, int]] = []
        pointer, seen = raw[pci.CAPABILITY_POINTER] & ~3, set[int]()
        while pointer >= pci.FIRST_CAPABILITY and pointer not in seen:
            seen.add(pointer)
            if raw[pointer] not in hidden_ids:
                shown.append((pointer, raw[pointer]))
            pointer = raw[pointer + pci.CAPABILITY_NEXT] & ~3
        self._emulate(pci.CAPABILITY_POINTER & ~3, 0xFF, shown[0][0] if shown else 0)
        if not shown:
            self._emulate(pci.COMMAND, pci.Status.CAPABILITIES << 16, 0)
        for (offset, kind), (following, _) in pairwise([*shown, (0, 0)]):
            self._emulate(offset, 0xFF00, following << 8)
            if kind == pci.CapabilityId.MSI:
                control = int.from_bytes(raw[offset + 2 : offset + 4], "little")
                self._msi = _Msi(offset, control & ~(pci.MSI_ENABLE | pci.MSI_MULTIPLE_ENABLE_MASK))
            elif kind == pci.CapabilityId.PCI_EXPRESS:
                # On the guest's root bus it is an integrated endpoint, whose link registers are not there.
                kind_bits = pci.PortType.ROOT_COMPLEX_ENDPOINT << pci.EXP_FLAGS_TYPE_SHIFT
                self._emulate(offset, pci.EXP_FLAGS_TYPE_MASK << 16, kind_bits << 16)
                for register in (pci.EXP_LINK_CAPABILITIES, pci.EXP_LINK_CONTROL):
                    self._emulate(offset + register, _ALL_ONES, 0)

    def _emulate(self, offset: int, mask: int, value: int) -> None:
        base, shift = offset & ~3, (offset & 3) * 8
        old_mask, old = self._emulated.get(base, (0, 0))
        mask, value = mask << shift & _ALL_ONES, value << shift & _ALL_ONES
        self._emulated[base] = (old_mask | mask, old & ~mask | value & mask)

    def _emulated_dword(self, base: int) -> tuple[int, int]:
        bar = self._bar_of(base)
        if bar is not None:
            return _ALL_ONES, self._bar_dword(base, bar)
        if self._msi is not None:
            dword = self._msi_dword(base)
            if dword is not None:
                mask, value = self._emulated.get(base, (0, 0))
                return mask | dword[0], value & mask & ~dword[0] | dword[1]
        return self._emulated.get(base, (0, 0))

    # --- BARs

    def _bar_of(self, base: int) -> BarWindow | None:
        for bar in self.bars:
            first = pci.BAR0 + bar.index * _DWORD
            if base == first or (bar.is_64bit and base == first + _DWORD):
                return bar
        return None

    def _bar_dword(self, base: int, bar: BarWindow) -> int:
        if base == pci.BAR0 + bar.index * _DWORD:
            return bar.address & _ALL_ONES | bar.flags
        return bar.address >> 32

    def _write_bar(self, base: int, bar: BarWindow, value: int) -> bool:
        if base == pci.BAR0 + bar.index * _DWORD:
            address = bar.address & ~_ALL_ONES | value & pci.BAR_MEMORY_MASK
        else:
            address = bar.address & _ALL_ONES | value << 32
        address &= ~(bar.size - 1)
        changed = self._unmap(bar)
        bar.address = address
        return self._update_slots() or changed

    def _update_slots(self) -> bool:
        """Makes the memory slots what the command register and the BARs ask for."""
        changed = False
        for bar in self.bars:
            sizing = bar.address >= (1 << 64 if bar.is_64bit else 1 << 32) - bar.size
            wanted = bool(self._command & pci.Command.MEMORY) and bar.address != 0 and not sizing
            if wanted and not bar.mapped:
                if bar.vaddr is not None:
                    bar.token = self._parent.set_memory(self._vm, bar.slot, bar.address, bar.size, bar.vaddr)
                bar.mapped = changed = True
            elif not wanted:
                changed = self._unmap(bar) or changed
        return changed

    def _unmap(self, bar: BarWindow) -> bool:
        if not bar.mapped:
            return False
        if bar.vaddr is not None:
            self._parent.set_memory(self._vm, bar.slot, bar.address, 0, bar.vaddr)
        bar.mapped, bar.token = False, b""
        return True

    # --- MSI: the guest's registers stay here, the device's own are the parent kernel's

    def _msi_dword(self, base: int) -> tuple[int, int] | None:
        msi = self._msi
        assert msi is not None
        wide = bool(msi.control & pci.MSI_64BIT)
        registers = {
            msi.offset: (0xFFFF_0000, msi.control << 16),
            msi.offset + pci.MSI_ADDRESS: (_ALL_ONES, msi.address & _ALL_ONES),
            msi.offset + (pci.MSI_DATA_64 if wide else pci.MSI_DATA_32): (0xFFFF, msi.data),
        }
        if wide:
            registers[msi.offset + pci.MSI_ADDRESS_UPPER] = (_ALL_ONES, msi.address >> 32)
        return registers.get(base)

    def _write_msi(self, offset: int, size: int, value: int) -> None:
        msi = self._msi
        assert msi is not None
        base, shift = offset & ~3, (offset & 3) * 8
        dword = self._msi_dword(base)
        if dword is None:
            return
        written = (1 << size * 8) - 1 << shift
        new = dword[1] & ~written | value << shift & written
        wide = bool(msi.control & pci.MSI_64BIT)
        if base == msi.offset:
            writable = pci.MSI_ENABLE | pci.MSI_MULTIPLE_ENABLE_MASK
            msi.control = msi.control & ~writable | new >> 16 & writable
        elif base == msi.offset + pci.MSI_ADDRESS:
            msi.address = msi.address & ~_ALL_ONES | new & ~3
        elif wide and base == msi.offset + pci.MSI_ADDRESS_UPPER:
            msi.address = msi.address & _ALL_ONES | new << 32
        else:
            msi.data = new & 0xFFFF
        self._update_msi(msi)

    def _update_msi(self, msi: _Msi) -> None:
        enabled = bool(msi.control & pci.MSI_ENABLE)
        if not enabled:
            if msi.eventfds:
                self._parent.set_irqs(self._device, vfio.IrqIndex.MSI, 0, ())
                for gsi in msi.gsis:
                    self._routes.remove(gsi)
                for eventfd in msi.eventfds:
                    self._parent.close(eventfd)
                msi.eventfds.clear()
                msi.gsis.clear()
            return
        wanted = 1 << ((msi.control & pci.MSI_MULTIPLE_ENABLE_MASK) >> pci.MSI_MULTIPLE_ENABLE_SHIFT)
        vectors = min(wanted, self._parent.irq_count(self._device, vfio.IrqIndex.MSI))
        if not msi.eventfds:
            for vector in range(vectors):
                eventfd = self._parent.eventfd()
                gsi = self._routes.add(msi.address, msi.data + vector)
                self._parent.irqfd(self._vm, eventfd, gsi)
                msi.eventfds.append(eventfd)
                msi.gsis.append(gsi)
            self._parent.set_irqs(self._device, vfio.IrqIndex.MSI, 0, tuple(msi.eventfds))
        else:
            for vector, gsi in enumerate(msi.gsis):
                self._routes.change(gsi, msi.address, msi.data + vector)
