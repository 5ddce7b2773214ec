"""A device of the parent kernel as the guest sees it: vfio-pci's user, after QEMU's hw/vfio/pci.c.

What the guest reads of configuration space comes from the device through VFIO, except what this
machine decides: the BARs' addresses, the MSI registers, the list of capabilities, and the edits
that a topology asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from viommu_actors.hypervisor.bars import Bars, BarWindow
from viommu_actors.hypervisor.intx import Intx
from viommu_actors.hypervisor.msi import Msi
from viommu_actors.hypervisor.msix import Msix
from viommu_actors.hypervisor.overlay import Decision, Overlay
from viommu_actors.hypervisor.regions import Regions
from viommu_actors.hypervisor.vectors import Delivery, Vectors
from viommu_actors.spec import pci, vfio
from viommu_actors.spec.ioapic import intx_line

_DWORD = 4
_ALL_ONES = 0xFFFF_FFFF
_NOTE = "a note of the guest to itself"
_CAPABILITIES = {
    "pm": pci.CapabilityId.POWER_MANAGEMENT,
    "msi": pci.CapabilityId.MSI,
    "msix": pci.CapabilityId.MSIX,
    "pcie": pci.CapabilityId.PCI_EXPRESS,
}


@dataclass(frozen=True)
class Edit:
    """One change to the visible configuration space: hide a capability, or force bits of a dword."""

    hide: str | None = None
    offset: int = 0
    mask: int = 0
    value: int = 0


class AssignedFunction:
    """One assigned function; `device` is its VFIO device descriptor."""

    def __init__(
        self,
        delivery: Delivery,
        device: int,
        requester: int,
        edits: list[Edit],
        next_slot: Callable[[], int],
    ) -> None:
        """`requester` is its ID in the guest."""
        parent = delivery.parent
        raw = parent.region_read(device, vfio.RegionIndex.CONFIG, 0, pci.CONVENTIONAL_SIZE)
        self._command = int.from_bytes(raw[pci.COMMAND : pci.COMMAND + 2], "little")
        self._regions = Regions(parent, device, delivery.refused)
        self.bars = Bars(delivery, device, self._regions, raw, next_slot)
        self.interrupts: list[Msi | Msix] = []
        self.intx = _intx(delivery, device, requester, raw[pci.INTERRUPT_PIN])
        self._msix: Msix | None = None
        self._overlay = Overlay()
        self._decide_header()
        shown = self._decide_capabilities(raw, {_CAPABILITIES[edit.hide] for edit in edits if edit.hide})
        if (offset := shown.get(pci.CapabilityId.MSI)) is not None:
            control = int.from_bytes(raw[offset + pci.MSI_CONTROL : offset + pci.MSI_CONTROL + 2], "little")
            vectors = Vectors(delivery, device, requester, vfio.IrqIndex.MSI, self.intx)
            self.interrupts.append(Msi(vectors, offset, control, parent.irq_count(device, vfio.IrqIndex.MSI)))
        if (offset := shown.get(pci.CapabilityId.MSIX)) is not None:
            self._msix = Msix(Vectors(delivery, device, requester, vfio.IrqIndex.MSIX, self.intx), offset, raw)
            self.interrupts.append(self._msix)
        self._edits = Overlay()
        for edit in edits:
            if edit.hide is None:
                self._edits.decide(edit.offset, edit.mask, edit.value, "edited by the topology")

    def config_read(self, offset: int, size: int) -> int:
        """`size` 1, 2 or 4, within one dword."""
        base, shift = offset & ~3, (offset & 3) * 8
        mask, value = self._decided(base)
        if mask != _ALL_ONES:
            value |= self._regions.read(vfio.RegionIndex.CONFIG, base, _DWORD) & ~mask
        return value >> shift & (1 << size * 8) - 1

    def config_write(self, offset: int, size: int, value: int) -> bool:
        """`size` 1, 2 or 4, within one dword. True where the guest's address map changed."""
        base, shift = offset & ~3, (offset & 3) * 8
        written = (1 << size * 8) - 1 << shift
        bits = value << shift & written
        bar = self.bars.of(base)
        if bar is not None:
            return self.bars.move(bar, base, bar.register(base) & ~written | bits)
        if any(interrupt.write(base, written, bits) for interrupt in self.interrupts):
            return False
        if offset == pci.INTERRUPT_LINE:
            self._overlay.decide(offset, 0xFF, value, _NOTE)
            return False
        self._regions.write(vfio.RegionIndex.CONFIG, offset, size, value)
        if base != pci.COMMAND:
            return False
        self._command = (self._command & ~written | bits) & 0xFFFF
        return self.bars.decode(bool(self._command & pci.Command.MEMORY))

    # --- MMIO of what is no memory slot

    def mmio_read(self, bar: BarWindow, address: int, size: int) -> int:
        """Read of a BAR that traps."""
        if self._msix is not None and self._msix.holds(bar.index, address - bar.address):
            return self._msix.read(bar.index, address - bar.address, size)
        return self.bars.read(bar, address, size)

    def mmio_write(self, bar: BarWindow, address: int, size: int, value: int) -> None:
        """Write of a BAR that traps."""
        if self._msix is not None and self._msix.holds(bar.index, address - bar.address):
            self._msix.write_table(bar.index, address - bar.address, size, value)
        else:
            self.bars.write(bar, address, size, value)

    def unplug(self) -> None:
        """The device is gone: no interrupt of it, and nothing where its BARs were."""
        for interrupt in self.interrupts:
            interrupt.vectors.disable()
        if self.intx is not None:
            self.intx.unplug()
        self.bars.decode(False)

    def decisions(self) -> list[Decision]:
        """Which bits of the conventional header and capabilities are not the device's, and why."""
        bars = [
            Decision(bar.offset, _ALL_ONES, bar.register(bar.offset), "the guest's own address")
            for bar in self.bars.windows
        ]
        bars += [
            Decision(bar.offset + _DWORD, _ALL_ONES, bar.register(bar.offset + _DWORD), "the guest's own address")
            for bar in self.bars.windows
            if bar.is_64bit
        ]
        dwords = (
            (base, each.dword(base))
            for each in self.interrupts
            for base in range(pci.FIRST_CAPABILITY, pci.CONVENTIONAL_SIZE, _DWORD)
        )
        msi = [Decision(base, *dword, "the guest's own interrupts") for base, dword in dwords if dword is not None]
        return [*bars, *msi, *self._overlay.decisions(), *self._edits.decisions()]

    def _decided(self, base: int) -> tuple[int, int]:
        """(mask, value) of a dword's bits that are not the device's; an edit has the last word."""
        bar = self.bars.of(base)
        mask, value = (_ALL_ONES, bar.register(base)) if bar is not None else self._overlay.at(base)
        for upper_mask, upper in filter(None, (*(each.dword(base) for each in self.interrupts), self._edits.at(base))):
            mask, value = mask | upper_mask, value & ~upper_mask | upper
        return mask, value

    def _decide_header(self) -> None:
        for index in range(pci.ENDPOINT_BARS):
            offset = pci.BAR0 + index * _DWORD
            if self.bars.of(offset) is None:
                self._overlay.decide(offset, _ALL_ONES, 0, "no memory BAR")
        self._overlay.decide(pci.ROM_ADDRESS, _ALL_ONES, 0, "no expansion ROM")
        # A device alone in its slot, whatever its place on the host's bus.
        self._overlay.decide(pci.HEADER_TYPE, pci.HEADER_MULTI_FUNCTION, 0, "alone in its slot")
        self._overlay.decide(pci.INTERRUPT_LINE, 0xFF, 0xFF, _NOTE)

    def _decide_capabilities(self, raw: bytes, hidden: set[pci.CapabilityId]) -> dict[int, int]:
        """Relinks the capability list without the hidden ones; returns offsets of the others by their ID."""
        chain: list[tuple[int, int]] = []
        pointer, seen = raw[pci.CAPABILITY_POINTER] & ~3, set[int]()
        while pointer >= pci.FIRST_CAPABILITY and pointer not in seen:
            seen.add(pointer)
            if raw[pointer] not in hidden:
                chain.append((pointer, raw[pointer]))
            pointer = raw[pointer + pci.CAPABILITY_NEXT] & ~3
        why = f"{', '.join(sorted(kind.name for kind in hidden))} hidden" if hidden else "the list of capabilities"
        self._overlay.decide(pci.CAPABILITY_POINTER, 0xFF, chain[0][0] if chain else 0, why)
        if not chain:
            self._overlay.decide(pci.STATUS, pci.Status.CAPABILITIES, 0, why)
        for (offset, kind), (following, _) in pairwise([*chain, (0, 0)]):
            self._overlay.decide(offset + pci.CAPABILITY_NEXT, 0xFF, following, why)
            if kind == pci.CapabilityId.PCI_EXPRESS:
                self._decide_express(offset)
        return {kind: offset for offset, kind in chain}

    def _decide_express(self, offset: int) -> None:
        """On the guest's root bus it is an integrated endpoint, whose link registers are not there."""
        why = "an endpoint of the root complex"
        kind = pci.PortType.ROOT_COMPLEX_ENDPOINT << pci.EXP_FLAGS_TYPE_SHIFT
        self._overlay.decide(offset + pci.EXP_FLAGS, pci.EXP_FLAGS_TYPE_MASK, kind, why)
        for register in (
            pci.EXP_LINK_CAPABILITIES,
            pci.EXP_LINK_CONTROL,
            pci.EXP_LINK_CAPABILITIES_2,
            pci.EXP_LINK_CONTROL_2,
        ):
            self._overlay.decide(offset + register, _ALL_ONES, 0, why)


def _intx(delivery: Delivery, device: int, requester: int, pin: int) -> Intx | None:
    """INTx of a function on one of the guest's root buses; None where VFIO does not offer it."""
    if not pin or not delivery.parent.irq_count(device, vfio.IrqIndex.INTX):
        return None
    line = intx_line(pci.bdf_device(requester), pin - 1)
    return Intx(delivery.parent, device, line, delivery.lines, delivery.counters, delivery.refused)
