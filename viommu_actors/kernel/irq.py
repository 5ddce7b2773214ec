"""Interrupts of a kernel: vectors, message signalled interrupts, dispatch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from errno import ENOSPC, ENOTSUP

from viommu_actors.kernel.pci import PciDevice
from viommu_actors.spec import pci

Handler = Callable[[], None]

#: Vectors for devices; below are exceptions and legacy interrupts, above the kernel's own.
FIRST_VECTOR = 0x30
LAST_VECTOR = 0xEF
#: xAPIC message to local APIC 0, physical destination, fixed delivery, edge (Intel SDM volume 3, section 11.11).
MESSAGE_ADDRESS = 0xFEE0_0000
#: How many spurious interrupts are logged; all are counted.
_SPURIOUS_LOGGED = 10


class Interrupts:
    """Who handles which vector."""

    def __init__(self, counters: Counter[str], log: Callable[[str], None]) -> None:
        self._counters = counters
        self._log = log
        self._handlers: list[Handler | None] = [None] * 256
        self._devices: dict[int, PciDevice] = {}
        self._masked: set[int] = set()
        self._pending: set[int] = set()

    def request_vector(self, handler: Handler) -> int:
        """A vector of its own for `handler`. Raises OSError(ENOSPC) where all are in use."""
        for vector in range(FIRST_VECTOR, LAST_VECTOR + 1):
            if self._handlers[vector] is None:
                self._handlers[vector] = handler
                return vector
        raise OSError(ENOSPC, "no interrupt vector left")

    def request_msi(self, device: PciDevice, handler: Handler) -> int:
        """Programs and enables the device's MSI with one message; returns its vector.

        Raises OSError(ENOTSUP) for a device without MSI.
        """
        offset = device.capability(pci.CapabilityId.MSI)
        if offset is None:
            raise OSError(ENOTSUP, f"{device.name} has no MSI capability")
        vector = self.request_vector(handler)
        control = device.config_read(offset + pci.MSI_CONTROL, 2)
        device.config_write(offset + pci.MSI_ADDRESS, 4, MESSAGE_ADDRESS)
        if control & pci.MSI_64BIT:
            device.config_write(offset + pci.MSI_ADDRESS_UPPER, 4, 0)
            device.config_write(offset + pci.MSI_DATA_64, 2, vector)
        else:
            device.config_write(offset + pci.MSI_DATA_32, 2, vector)
        control = control & ~pci.MSI_MULTIPLE_ENABLE_MASK | pci.MSI_ENABLE
        device.config_write(offset + pci.MSI_CONTROL, 2, control)
        self._devices[vector] = device
        return vector

    def free(self, vector: int) -> None:
        """Disables the device's MSI, if the vector is one, and forgets the handler."""
        device = self._devices.pop(vector, None)
        if device is not None:
            offset = device.capability(pci.CapabilityId.MSI)
            assert offset is not None
            control = device.config_read(offset + pci.MSI_CONTROL, 2)
            device.config_write(offset + pci.MSI_CONTROL, 2, control & ~pci.MSI_ENABLE)
        self._handlers[vector] = None
        self._masked.discard(vector)
        self._pending.discard(vector)

    def mask(self, vector: int) -> None:
        """Holds the vector's interrupts back until `unmask`."""
        self._masked.add(vector)

    def unmask(self, vector: int) -> None:
        """Lets interrupts through again; one that came meanwhile is handled now."""
        self._masked.discard(vector)
        if vector in self._pending:
            self._pending.discard(vector)
            self.dispatch(vector)

    def dispatch(self, vector: int) -> None:
        """Runs the vector's handler; an interrupt that nobody asked for is counted and dropped."""
        self._counters["interrupts"] += 1
        handler = self._handlers[vector & 0xFF]
        if handler is None:
            self._counters["spurious_interrupts"] += 1
            if self._counters["spurious_interrupts"] <= _SPURIOUS_LOGGED:
                self._log(f"irq: no handler for vector {vector:#x}")
        elif vector in self._masked:
            self._pending.add(vector)
        else:
            handler()
