"""The owner's side of attacks on another device's registers: one that keeps what is written to it, and its content."""

from __future__ import annotations

from collections.abc import Callable

from viommu_actors.kernel.kernel import Kernel
from viommu_actors.spec import edu, pci

_SIZE = 4


class RegisterGuard:
    """Registers of one kernel's devices; `random(n)` gives n unguessable bytes."""

    def __init__(self, kernel: Kernel, random: Callable[[int], bytes]) -> None:
        self._kernel = kernel
        self._random = random
        self._read: Callable[[], int] = lambda: 0
        self._restore: Callable[[], None] = lambda: None

    def guard_liveness(self, bdf: int) -> int:
        """Guards the register of an edu that answers with the inverse of what was written, with fresh content; its
        offset in BAR 0. Raises ValueError for another device."""
        device = self._kernel.device(bdf)
        if (device.vendor, device.device) != (edu.VENDOR_ID, edu.DEVICE_ID):
            raise ValueError(f"{device.name} is no edu")
        content = int.from_bytes(self._random(_SIZE), "little")
        self._read = lambda: device.read(edu.BAR, edu.Reg.LIVENESS, _SIZE)
        self._restore = lambda: device.write(edu.BAR, edu.Reg.LIVENESS, _SIZE, content)
        self._restore()
        return edu.Reg.LIVENESS

    def guard_interrupt_line(self, bdf: int) -> int:
        """Guards the interrupt line register of a function, a note of its kernel to itself; its offset."""
        device = self._kernel.device(bdf)
        content = device.config_read(pci.INTERRUPT_LINE, 1)
        self._read = lambda: device.config_read(pci.INTERRUPT_LINE, 1)
        self._restore = lambda: device.config_write(pci.INTERRUPT_LINE, 1, content)
        return pci.INTERRUPT_LINE

    def digest(self) -> str:
        """What the guarded register holds now."""
        return f"{self._read():#x}"

    def restore(self) -> None:
        """Puts back what an attack has changed of the guarded register."""
        self._restore()
        self._restore = lambda: None
