"""INTx of assigned devices: the guest's I/O APIC, and the lines that lead to it (QEMU: hw/vfio/pci.c `vfio_intx_*`).

The kernel beneath masks a device's INTx as it signals it. The hypervisor raises the guest's line, and once the guest
has told its I/O APIC that the interrupt is over it lowers the line and unmasks the device, which signals again if it
still asks. Nothing of this is KVM's alone: each of these interrupts is forwarded by the hypervisor, as in QEMU where it
keeps the I/O APIC to itself for interrupt remapping (kernel-irqchip=split) and has no irqfd for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from viommu_actors.hypervisor.parent import ParentKernel
from viommu_actors.hypervisor.regions import Refused
from viommu_actors.ioapic import IoApic
from viommu_actors.spec import vfio

_ONE = 1


class Lines:
    """The guest's I/O APIC. `send(address, data)` takes its messages to the vIOMMU, and from there to the guest."""

    def __init__(self, send: Callable[[int, int], object]) -> None:
        self.controller = IoApic(send, self._ended, self._opened)
        self._devices: list[Intx] = []

    def add(self, device: Intx) -> None:
        self._devices.append(device)

    def remove(self, device: Intx) -> None:
        self._devices.remove(device)
        self.settle(device.line)

    def settle(self, line: int) -> None:
        """A line is up as long as one of its devices asks."""
        self.controller.set_line(line, any(device.asking for device in self._devices if device.line == line))

    def _ended(self, line: int) -> None:
        """The guest is through with a line's interrupt (QEMU: vfio_intx_eoi). What asks still is signalled again."""
        ended = [device for device in self._devices if device.line == line and device.asking]
        for device in ended:
            device.asking = False
        self.settle(line)
        for device in ended:
            device.unmask()

    def _opened(self) -> None:
        """An entry changed: what the guest listens to may have become another line."""
        for device in self._devices:
            device.settle()


class Intx:
    """INTx of one device; on while the guest has its line open, and neither MSI nor MSI-X of it is on.

    (QEMU turns it on from the start. The kernel beneath would set up a line of its own for each device then, also for
    those that never use it.)
    """

    def __init__(
        self,
        parent: ParentKernel,
        device: int,
        line: int,
        lines: Lines,
        counters: Counter[str],
        refused: Refused,
    ) -> None:
        """`device` is its VFIO descriptor, `line` that of the guest's I/O APIC."""
        self.line = line
        self.asking = False
        self._parent = parent
        self._device = device
        self._lines = lines
        self._counters = counters
        self._refused = refused
        self._eventfd: int | None = None
        self._barred = False
        lines.add(self)

    def give_way(self, barred: bool) -> None:
        """A message signalled interrupt of the device goes on or off: VFIO has one kind on at a time."""
        self._barred = barred
        self.settle()

    def settle(self) -> None:
        """On or off, as the guest wants it now."""
        wanted = not self._barred and not self._lines.controller.masked(self.line)
        if wanted and self._eventfd is None:
            self._enable()
        elif not wanted and self._eventfd is not None:
            self._disable()

    def signalled(self, eventfd: int) -> bool:
        """An eventfd woke the hypervisor; False where it is not this one."""
        if eventfd != self._eventfd:
            return False
        self._counters["interrupts_forwarded"] += 1
        self.asking = True
        self._lines.settle(self.line)
        return True

    def unmask(self) -> None:
        """Lets the device to its wire again."""
        self._parent.act_on_irqs(self._device, vfio.IrqIndex.INTX, vfio.IrqAction.UNMASK, 0, _ONE)

    def unplug(self) -> None:
        """The device is gone, and its line down."""
        self._barred = True
        self.settle()
        self._lines.remove(self)

    def _enable(self) -> None:
        eventfd = self._parent.eventfd()
        try:
            self._parent.set_irqs(self._device, vfio.IrqIndex.INTX, 0, (eventfd,))
        except OSError as error:
            self._refused("INTx", error)
            self._parent.close(eventfd)
        else:
            self._eventfd = eventfd

    def _disable(self) -> None:
        assert self._eventfd is not None, "it is on"
        self._parent.set_irqs(self._device, vfio.IrqIndex.INTX, 0, ())
        self._parent.close(self._eventfd)
        self._eventfd = None
        self.asking = False
        self._lines.settle(self.line)
