"""Interrupts of a kernel: vectors, the messages of devices that raise them, dispatch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import EBUSY, EINVAL, ENOSPC, ENOTSUP

from viommu_actors.kernel.interrupt_remapping import InterruptRemapping
from viommu_actors.kernel.msi import Msi, Msix
from viommu_actors.kernel.pci import PciDevice
from viommu_actors.spec import pci
from viommu_actors.spec.vtd_interrupts import INTERRUPT_BASE, InterruptRequest

Handler = Callable[[], None]

#: Vectors for devices; below are exceptions and legacy interrupts, above the kernel's own.
FIRST_VECTOR = 0x30
LAST_VECTOR = 0xEF
#: How many spurious interrupts are logged; all are counted.
_SPURIOUS_LOGGED = 10


@dataclass
class _Signal:
    """What a device sends for its vectors: its MSI, or one entry of its MSI-X table (`index`)."""

    device: PciDevice
    vectors: list[int]
    silence: Callable[[], None]
    address: int
    data: int
    index: int | None
    #: The first of its remapping entries, where it is remapped, and how many vectors there were at first.
    entry: int | None
    messages: int


class Interrupts:
    """Who handles which vector."""

    #: Set once the unit remaps interrupts: messages programmed from then on are in remappable format.
    remapping: InterruptRemapping | None = None

    def __init__(self, counters: Counter[str], log: Callable[[str], None]) -> None:
        self._counters = counters
        self._log = log
        self._handlers: list[Handler | None] = [None] * 256
        self._signals: dict[int, _Signal] = {}
        #: MSI-X that is enabled, by the device's bdf.
        self._msix: dict[int, Msix] = {}
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
        """Enables the device's MSI with one message; returns its vector.

        Raises OSError: ENOTSUP for a device without MSI, ENOSPC where vectors or remapping entries are used up.
        """
        (vector,) = self.request_messages(device, [handler])
        return vector

    def request_messages(self, device: PciDevice, handlers: Sequence[Handler]) -> list[int]:
        """Enables the device's MSI with a message for each handler; returns their vectors.

        Raises as `request_msi` does; ENOSPC too for more messages than the device offers, and, as on Linux, for
        several without interrupt remapping.
        """
        msi = Msi(device)
        count = 1 << (len(handlers) - 1).bit_length()
        if count > msi.messages or (count > 1 and self._remapping_of(device) is None):
            raise OSError(ENOSPC, f"{device.name} has no {len(handlers)} MSI messages to use")
        signal = self._request(device, handlers, msi.disable)
        msi.enable(signal.address, signal.data, count)
        return list(signal.vectors)

    def enable_msix(self, device: PciDevice) -> int:
        """Enables the device's MSI-X with every vector masked, until `free_device`; returns how many there are.

        Raises OSError: ENOTSUP for a device without it, EINVAL for a broken one, EBUSY where it is enabled.
        """
        if device.bdf in self._msix:
            raise OSError(EBUSY, f"the MSI-X of {device.name} is in use")
        msix = Msix(device)
        msix.enable()
        self._msix[device.bdf] = msix
        return msix.vectors

    def request_msix(self, device: PciDevice, index: int, handler: Handler) -> int:
        """Sets one entry of a MSI-X table that `enable_msix` has enabled; returns its vector.

        Raises OSError: EINVAL where there is no such entry, EBUSY where it is in use, ENOSPC as `request_msi`.
        """
        msix = self._msix.get(device.bdf)
        if msix is None or not 0 <= index < msix.vectors:
            raise OSError(EINVAL, f"{device.name} has no MSI-X vector {index}")
        if any(signal.device is device and signal.index == index for signal in self._signals.values()):
            raise OSError(EBUSY, f"MSI-X vector {index} of {device.name} is in use")
        signal = self._request(device, [handler], lambda: msix.clear(index), index)
        msix.set(index, signal.address, signal.data)
        return signal.vectors[0]

    def request_vectors(self, device: PciDevice, handlers: Sequence[Handler]) -> list[int]:
        """A vector for each handler by MSI-X, where the device has enough of them; else one MSI that runs them all.

        Raises as `request_msi` does. `free_device` gives them back.
        """
        if not has_vectors(device, len(handlers)):
            return [self.request_msi(device, lambda: _run(handlers))]
        self.enable_msix(device)
        try:
            return [self.request_msix(device, index, handler) for index, handler in enumerate(handlers)]
        except OSError:
            self.free_device(device)
            raise

    def free(self, vector: int) -> None:
        """Forgets the handler. The device's message behind it is silenced first, with its last vector if they are
        several."""
        signal = self._signals.pop(vector, None)
        if signal is not None:
            signal.vectors.remove(vector)
            if not signal.vectors:
                signal.silence()
                remapping = self._remapping_of(signal.device)
                if signal.entry is not None and remapping is not None:
                    remapping.free(signal.entry, signal.messages)
        self._handlers[vector] = None
        self._masked.discard(vector)
        self._pending.discard(vector)

    def messages_of(self, bdf: int) -> list[tuple[int, int, int]]:
        """(vector, address, data) of each interrupt that a device was given, as programmed into it."""
        signals = {id(signal): signal for signal in self._signals.values() if signal.device.bdf == bdf}
        return [
            (vector, signal.address, signal.data + number)
            for signal in signals.values()
            if len(signal.vectors) == signal.messages
            for number, vector in enumerate(signal.vectors)
        ]

    def free_device(self, device: PciDevice) -> None:
        """Frees every vector of the device, and disables its MSI or MSI-X."""
        for vector in [vector for vector, signal in self._signals.items() if signal.device is device]:
            self.free(vector)
        msix = self._msix.pop(device.bdf, None)
        if msix is not None:
            msix.disable()

    def restore(self, device: PciDevice) -> None:
        """Sets the device's MSI-X table again, after a reset lost it."""
        if device.bdf in self._msix:
            self._msix[device.bdf].restore()

    def mask_device_vector(self, vector: int) -> None:
        """Masks the vector's entry in the device's own MSI-X table. Raises OSError(ENOTSUP) for any other vector."""
        msix, index = self._entry_of(vector)
        msix.mask(index)

    def unmask_device_vector(self, vector: int) -> None:
        """Takes that back; what came meanwhile is pending in the device, and comes now."""
        msix, index = self._entry_of(vector)
        msix.unmask(index)

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

    def _request(
        self,
        device: PciDevice,
        handlers: Sequence[Handler],
        silence: Callable[[], None],
        index: int | None = None,
    ) -> _Signal:
        """Vectors for the handlers, and the message that raises them (VT-d section 5.1.2.2)."""
        vectors: list[int] = []
        remapping = self._remapping_of(device)
        try:
            for handler in handlers:
                vectors.append(self.request_vector(handler))
            entry = None if remapping is None else remapping.allocate(device.bdf, vectors, device.aliases)
        except OSError:
            for vector in vectors:
                self.free(vector)
            raise
        address, data = INTERRUPT_BASE, vectors[0]
        if entry is not None:
            # The subhandle is the number of the message, which the device puts into the data's low bits.
            address, data = InterruptRequest(entry, 0, subhandle_valid=True).encode()
        signal = _Signal(device, vectors, silence, address, data, index, entry, len(vectors))
        self._signals.update(dict.fromkeys(vectors, signal))
        return signal

    def _remapping_of(self, device: PciDevice) -> InterruptRemapping | None:
        return self.remapping if self.remapping is not None and self.remapping.covers(device) else None

    def _entry_of(self, vector: int) -> tuple[Msix, int]:
        signal = self._signals.get(vector)
        if signal is None or signal.index is None:
            raise OSError(ENOTSUP, f"vector {vector:#x} is no MSI-X vector of a device")
        return self._msix[signal.device.bdf], signal.index


def has_messages(device: PciDevice) -> bool:
    """Whether the device has MSI or MSI-X."""
    return any(device.capability(kind) is not None for kind in (pci.CapabilityId.MSI, pci.CapabilityId.MSIX))


def has_vectors(device: PciDevice, count: int) -> bool:
    """Whether the device's MSI-X has that many."""
    offset = device.capability(pci.CapabilityId.MSIX)
    if offset is None:
        return False
    return device.config_read(offset + pci.MSIX_CONTROL, 2) & pci.MSIX_TABLE_SIZE_MASK >= count - 1


def _run(handlers: Sequence[Handler]) -> None:
    for handler in handlers:
        handler()
