"""Interrupts of an open vfio-pci device that signal eventfds: INTx, MSI or MSI-X (drivers/vfio/pci/vfio_pci_intrs.c).

The kernel programs the function; the user has no hand in addresses and data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EINVAL, ENOTTY
from functools import partial
from typing import TYPE_CHECKING

from viommu_actors.kernel.msi import Msi, Msix
from viommu_actors.kernel.process import EventFd
from viommu_actors.kernel.vfio.intx import Intx
from viommu_actors.spec.pci import COMMAND, CapabilityId, Command
from viommu_actors.spec.vfio import IRQ_COUNT, IrqAction, IrqFlags, IrqIndex

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import PciDevice


@dataclass(frozen=True)
class IrqInfo:
    """VFIO_DEVICE_GET_IRQ_INFO."""

    flags: IrqFlags
    count: int


class DeviceInterrupts:
    """INTx, MSI and MSI-X of one function, of which one at a time is on."""

    def __init__(self, kernel: Kernel, device: PciDevice) -> None:
        self._irq = kernel.irq
        self._device = device
        self._active: IrqIndex | None = None
        self._triggers: dict[int, EventFd | None] = {}
        #: Vectors of the kernel by their number in the index.
        self._vectors: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self._owned: list[tuple[int, range]] = []
        #: signalled when the user is to let go of the device
        self._request: EventFd | None = None
        self.intx = Intx(kernel, device)
        if self.intx.offered:
            self._counts[IrqIndex.INTX] = 1
        if device.capability(CapabilityId.MSI) is not None:
            self._counts[IrqIndex.MSI] = Msi(device).messages
        if device.capability(CapabilityId.MSIX) is not None:
            self._look_at_msix()

    @property
    def msi_active(self) -> bool:
        """MSI is on through VFIO_DEVICE_SET_IRQS."""
        return self._active is IrqIndex.MSI

    def owns(self, bar: int, offset: int, size: int) -> bool:
        """Whether an access reaches the MSI-X table or its pending bits, which are the kernel's."""
        return any(bar == owned and offset < place.stop and place.start < offset + size for owned, place in self._owned)

    def info(self, index: int) -> IrqInfo:
        """Count 0 for a kind that is not offered; raises EINVAL for an index beyond all."""
        if not 0 <= index < IRQ_COUNT:
            raise OSError(EINVAL, f"{self._device.name} has no interrupt index {index}")
        if index == IrqIndex.REQ:
            return IrqInfo(IrqFlags.EVENTFD | IrqFlags.NORESIZE, 1)
        count = self._counts.get(index, 0)
        if not count:
            return IrqInfo(IrqFlags(0), 0)
        if index == IrqIndex.INTX:
            return IrqInfo(IrqFlags.EVENTFD | IrqFlags.MASKABLE | IrqFlags.AUTOMASKED, count)
        # MSI-X vectors come and go one by one; how many MSI messages there are is settled when it is turned on.
        resize = IrqFlags(0) if index == IrqIndex.MSIX else IrqFlags.NORESIZE
        return IrqInfo(IrqFlags.EVENTFD | resize, count)

    def set(self, index: int, start: int, eventfds: tuple[EventFd | None, ...]) -> None:
        """VFIO_DEVICE_SET_IRQS, trigger action: vectors from `start` signal the eventfds.

        None takes a vector's eventfd away, none at all disables the index. Raises EINVAL for vectors that are not
        there, and while the other kind is on; ENOSPC where the kernel has no vectors for them.
        """
        name = self._device.name
        self._check(index, start, len(eventfds))
        if index == IrqIndex.REQ:
            self._request = eventfds[0] if eventfds else None
            return
        if self._active not in (None, index):
            raise OSError(EINVAL, f"{name}: interrupts of index {self._active} are on, not of {index}")
        with self._decoding():
            if not eventfds:
                self.disable()
            elif index == IrqIndex.INTX:
                self._set_intx(eventfds[0])
            elif index == IrqIndex.MSI:
                self._set_msi(start, eventfds)
            else:
                self._set_msix(start, eventfds)

    def act(self, index: int, action: int, start: int, count: int) -> None:
        """VFIO_DEVICE_SET_IRQS without data: masks, unmasks or raises interrupts that are on.

        Raises OSError: EINVAL for interrupts that are not there, or not on; ENOTTY for an action that the index does
        not have: MSI and MSI-X are not masked by VFIO.
        """
        self._check(index, start, count)
        masks = index == IrqIndex.INTX and action in (IrqAction.MASK, IrqAction.UNMASK)
        if not masks and action != IrqAction.TRIGGER:
            raise OSError(ENOTTY, f"{self._device.name}: no action {action:#x} for index {index}")
        limit = 1 if index == IrqIndex.INTX else len(self._vectors)
        if self._active is None or index != self._active or count <= 0 or start + count > limit:
            raise OSError(EINVAL, f"{self._device.name}: interrupts {start}+{count} of index {index} are not on")
        if action == IrqAction.TRIGGER:
            for number in range(start, start + count):
                self._signal(number)
        elif action == IrqAction.MASK:
            self.intx.mask()
        else:
            self.intx.unmask()

    def request(self) -> None:
        """Asks the user to let go of the device (VFIO_PCI_REQ_IRQ_INDEX), where he wants to be asked."""
        if self._request is not None:
            self._request.signal()

    def disable(self) -> None:
        """No interrupt of the function comes from here on."""
        self._triggers.clear()
        self._vectors.clear()
        if self._active is IrqIndex.INTX:
            self.intx.disable()
        elif self._active is not None:
            with self._decoding():
                self._irq.free_device(self._device)
        self._active = None

    def restore(self) -> None:
        """After a reset of the function."""
        if self._active is IrqIndex.MSIX:
            with self._decoding():
                self._irq.restore(self._device)

    def _check(self, index: int, start: int, count: int) -> None:
        """Whatever is to be done to them (vfio_set_irqs_validate_and_prepare)."""
        there = self.info(index).count
        if start < 0 or start >= there or count > there - start:
            raise OSError(EINVAL, f"{self._device.name}: interrupts {start}+{count} of {there} at index {index}")

    def _set_intx(self, eventfd: EventFd | None) -> None:
        if self._active is None:
            self.intx.enable(eventfd)
            self._active = IrqIndex.INTX
        else:
            self.intx.set_trigger(eventfd)

    def _set_msi(self, start: int, eventfds: tuple[EventFd | None, ...]) -> None:
        count = start + len(eventfds)
        if self._active is None:
            handlers = [partial(self._signal, number) for number in range(count)]
            self._vectors = dict(enumerate(self._irq.request_messages(self._device, handlers)))
            self._active = IrqIndex.MSI
        elif count > len(self._vectors):
            raise OSError(EINVAL, f"{self._device.name}: MSI is on with {len(self._vectors)} messages")
        self._triggers.update(enumerate(eventfds, start))

    def _set_msix(self, start: int, eventfds: tuple[EventFd | None, ...]) -> None:
        fresh = self._active is None
        if fresh:
            self._irq.enable_msix(self._device)
            self._active = IrqIndex.MSIX
        try:
            for number, eventfd in enumerate(eventfds, start):
                self._set_vector(number, eventfd)
        except OSError:
            if fresh:
                self.disable()
            raise

    def _set_vector(self, number: int, eventfd: EventFd | None) -> None:
        self._triggers[number] = eventfd
        if eventfd is not None and number not in self._vectors:
            handler = partial(self._signal, number)
            self._vectors[number] = self._irq.request_msix(self._device, number, handler)
        elif eventfd is None and number in self._vectors:
            self._irq.free(self._vectors.pop(number))

    def _signal(self, number: int) -> None:
        if self._active is IrqIndex.INTX:
            self.intx.signal()
            return
        eventfd = self._triggers.get(number)
        if eventfd is not None:
            eventfd.signal()

    def _look_at_msix(self) -> None:
        """A function whose table lies nowhere has no MSI-X for the user."""
        try:
            msix = Msix(self._device)
        except OSError:
            return
        self._counts[IrqIndex.MSIX] = msix.vectors
        self._owned = [msix.table, msix.pending]

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """The table can be reached, even while the user has memory decoding off."""
        command = self._device.config_read(COMMAND, 2)
        if command & Command.MEMORY or not self._owned:
            yield
            return
        self._device.config_write(COMMAND, 2, command | int(Command.MEMORY))
        try:
            yield
        finally:
            self._device.config_write(COMMAND, 2, command)
