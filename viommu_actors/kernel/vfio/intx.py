"""INTx of an open vfio-pci device (drivers/vfio/pci/vfio_pci_intrs.c `vfio_intx_*`).

An interrupt masks itself, by the function's interrupt disable bit, until the user has seen to it and unmasks it: the
line may be another's too, and nobody else can make the function take its wire down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from viommu_actors.kernel import intx
from viommu_actors.kernel.process import EventFd

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import PciDevice


class Intx:
    """The one interrupt of index INTX. What says "on" is `enable`."""

    def __init__(self, kernel: Kernel, device: PciDevice) -> None:
        """A function without an interrupt disable bit is not offered. (Linux masks its line instead, which it then
        must have for itself.)"""
        self._lines = kernel.lines
        self._device = device
        self._on = False
        self._masked = False
        #: the user's own interrupt disable bit, which is virtual
        self._disabled = False
        self._trigger: EventFd | None = None
        self.offered = self._lines.line_of(device) is not None and intx.mask_supported(device)

    def enable(self, trigger: EventFd | None) -> None:
        """From here on interrupts signal `trigger`. Raises OSError as `LineInterrupts.request`."""
        self._lines.request(self._device, self._handle)
        self._on = True
        self._trigger = trigger
        self._masked = self._disabled
        intx.enable(self._device, not self._masked)

    def set_trigger(self, trigger: EventFd | None) -> None:
        """They signal another, or none."""
        self._trigger = trigger

    def disable(self) -> None:
        """None comes any more."""
        if self._on:
            self._lines.free(self._device)
            intx.enable(self._device, False)
            self._on = False
            self._trigger = None

    def mask(self) -> None:
        """Keeps the function from its wire."""
        if self._on and not self._masked:
            intx.enable(self._device, False)
            self._masked = True

    def unmask(self) -> None:
        """The user has seen to it. A function that is asking again is not let to its wire: that is told at once."""
        if self._on and self._masked and not self._disabled and not intx.check_and_unmask(self._device):
            self.signal()
        elif not self._disabled:
            self._masked = False

    def signal(self) -> None:
        """Unless the user has disabled it."""
        if self._trigger is not None and not self._disabled:
            self._trigger.signal()

    def set_disabled(self, disabled: bool) -> None:
        """The user has written his interrupt disable bit."""
        if disabled == self._disabled:
            return
        self._disabled = disabled
        if disabled:
            self.mask()
        else:
            self.unmask()

    def _handle(self) -> bool:
        """Whether it was this function's (vfio_intx_handler)."""
        if self._masked or not intx.check_and_mask(self._device):
            return False
        self._masked = True
        self.signal()
        return True
