"""MSI of an assigned device: the guest's registers stay here, the device's own are the parent kernel's.

Each vector is an eventfd that VFIO signals and an irqfd of KVM consumes, routed to the message
that the guest programmed: an interrupt reaches the guest without the hypervisor.
"""

from __future__ import annotations

from viommu_actors.hypervisor.parent import ParentKernel
from viommu_actors.hypervisor.routes import Routes
from viommu_actors.spec import pci, vfio

_ALL_ONES = 0xFFFF_FFFF
_WRITABLE = pci.MSI_ENABLE | pci.MSI_MULTIPLE_ENABLE_MASK


class Msi:
    """The capability at `offset`; `control` is the device's, not enabled."""

    def __init__(self, parent: ParentKernel, vm: int, device: int, routes: Routes, offset: int, control: int) -> None:
        self._parent = parent
        self._vm = vm
        self._device = device
        self._routes = routes
        self._offset = offset
        self._control = control & ~_WRITABLE
        self._wide = bool(control & pci.MSI_64BIT)
        self._address = 0
        self._data = 0
        self._eventfds: list[int] = []
        self._gsis: list[int] = []

    def dword(self, base: int) -> tuple[int, int] | None:
        """(mask, value) of a dword of the capability; None where it has none of its registers."""
        if base == self._offset:
            return 0xFFFF_0000, self._control << 16
        if base == self._offset + pci.MSI_ADDRESS:
            return _ALL_ONES, self._address & _ALL_ONES
        if self._wide and base == self._offset + pci.MSI_ADDRESS_UPPER:
            return _ALL_ONES, self._address >> 32
        if base == self._offset + (pci.MSI_DATA_64 if self._wide else pci.MSI_DATA_32):
            return 0xFFFF, self._data
        return None

    def write(self, base: int, written: int, value: int) -> bool:
        """Writes the bits `written` of a dword; False where it is none of the capability's."""
        held = self.dword(base)
        if held is None:
            return False
        new = held[1] & ~written | value & written
        if base == self._offset:
            self._control = self._control & ~_WRITABLE | new >> 16 & _WRITABLE
        elif base == self._offset + pci.MSI_ADDRESS:
            self._address = self._address & ~_ALL_ONES | new & ~3
        elif self._wide and base == self._offset + pci.MSI_ADDRESS_UPPER:
            self._address = self._address & _ALL_ONES | new << 32
        else:
            self._data = new & 0xFFFF
        self._update()
        return True

    def _update(self) -> None:
        if not self._control & pci.MSI_ENABLE:
            self._disable()
        elif not self._eventfds:
            self._enable()
        else:
            for vector, gsi in enumerate(self._gsis):
                self._routes.change(gsi, self._address, self._data + vector)

    def _enable(self) -> None:
        allotted = 1 << ((self._control & pci.MSI_MULTIPLE_ENABLE_MASK) >> pci.MSI_MULTIPLE_ENABLE_SHIFT)
        for vector in range(min(allotted, self._parent.irq_count(self._device, vfio.IrqIndex.MSI))):
            eventfd = self._parent.eventfd()
            gsi = self._routes.add(self._address, self._data + vector)
            self._parent.irqfd(self._vm, eventfd, gsi)
            self._eventfds.append(eventfd)
            self._gsis.append(gsi)
        self._parent.set_irqs(self._device, vfio.IrqIndex.MSI, 0, tuple(self._eventfds))

    def _disable(self) -> None:
        if not self._eventfds:
            return
        self._parent.set_irqs(self._device, vfio.IrqIndex.MSI, 0, ())
        for gsi in self._gsis:
            self._routes.remove(gsi)
        for eventfd in self._eventfds:
            self._parent.close(eventfd)
        self._eventfds.clear()
        self._gsis.clear()
