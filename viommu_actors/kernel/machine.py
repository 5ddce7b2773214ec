"""The machine a kernel stands on: memory, MMIO, interrupts and a console. The same for host and guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from viommu_actors.memory import Memory


class Machine(Protocol):
    """Ports of one machine. Its CPU is single and runs with interrupts disabled.

    Interrupts are taken only in `wait_for_interrupt`: a handler never runs inside another
    kernel operation, so kernel code needs no locks and may use MMIO freely.
    """

    @property
    def memory(self) -> Memory:
        """Physical memory as this kernel's CPU sees it."""
        ...

    def mmio_read(self, address: int, size: int) -> int:
        """Reads 1, 2, 4 or 8 bytes, naturally aligned. May block; where nothing answers, all-ones."""
        ...

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """Writes 1, 2, 4 or 8 bytes, naturally aligned. May block; where nothing answers, it is lost."""
        ...

    def wait_for_interrupt(self, timeout: float) -> bool:
        """Serves until at least one interrupt went to the handler; False after `timeout` seconds without."""
        ...

    def set_interrupt_handler(self, handler: Callable[[int], None]) -> None:
        """`handler(vector)` is called for each interrupt from then on."""
        ...

    def log(self, line: str) -> None:
        """One line of the kernel's log."""
        ...


class KernelPanic(Exception):
    """The kernel cannot go on; the message says why. Nothing it manages may be relied on after."""
