"""The owner's side of attacks on another device's registers: one that keeps what is written to it, and its content."""

from __future__ import annotations

from collections.abc import Callable

from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.pci import PciDevice
from viommu_actors.spec import edu, pci

_SIZE = 4


class RegisterGuard:
    """Registers of one kernel's devices; `random(n)` gives n unguessable bytes."""

    def __init__(self, kernel: Kernel, random: Callable[[int], bytes]) -> None:
        self._kernel = kernel
        self._random = random
        self._read: Callable[[], int] = lambda: 0

    def guard_liveness(self, bdf: int) -> int:
        """Guards the register of an edu that answers with the inverse of what was written, with fresh content; its
        offset in BAR 0. Raises ValueError for another device."""
        device = self._kernel.device(bdf)
        if (device.vendor, device.device) != (edu.VENDOR_ID, edu.DEVICE_ID):
            raise ValueError(f"{device.name} is no edu")
        self._watch(device)
        device.write(edu.BAR, edu.Reg.LIVENESS, _SIZE, int.from_bytes(self._random(_SIZE), "little"))
        return edu.Reg.LIVENESS

    def guard_interrupt_line(self, bdf: int) -> int:
        """Guards the interrupt line register of a function, a note of its kernel to itself; its offset."""
        device = self._kernel.device(bdf)
        self._read = lambda: device.config_read(pci.INTERRUPT_LINE, 1)
        return pci.INTERRUPT_LINE

    def digest(self) -> str:
        """What the guarded register holds now."""
        return f"{self._read():#x}"

    def _watch(self, device: PciDevice) -> None:
        self._read = lambda: device.read(edu.BAR, edu.Reg.LIVENESS, _SIZE)
