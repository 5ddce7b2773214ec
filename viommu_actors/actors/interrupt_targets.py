"""Control commands about the host's interrupts as a rogue's target: what it is told, and what is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from viommu_actors.kernel.interrupt_remapping import ENTRIES
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.spec import pci
from viommu_actors.spec.vtd_interrupts import INTERRUPT_BASE, InterruptRequest


class InterruptTargets:
    """`delivered` counts what the local APIC took, by vector."""

    def __init__(self, kernel: Kernel, delivered: Counter[int]) -> None:
        self._kernel = kernel
        self._delivered = delivered
        self._own: int | None = None
        self._guarded = 0

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """By command name."""
        return {
            "guard_vector": self.guard_vector,
            "guard_device": self.guard_device,
            "guard_entry": self.guard_entry,
            "interrupt_digest": self.digest,
        }

    def guard_vector(self) -> dict[str, Any]:
        """A vector of the kernel's own, that no device was given; the compatibility message that would raise it."""
        if self._own is None:
            self._own = self._kernel.irq.request_vector(lambda: None)
        return self._guard(self._own, INTERRUPT_BASE, self._own)

    def guard_device(self, bdf: str) -> dict[str, Any] | None:
        """The message that another device was given; None where it has no interrupt."""
        for vector, address, data in self._kernel.irq.messages_of(pci.parse_bdf(bdf)):
            return self._guard(vector, address, data)
        return None

    def guard_entry(self, beyond: bool) -> dict[str, Any]:
        """A handle of no entry: beyond the table, or the table's last one, which is handed out last."""
        target = self.guard_vector()
        address, data = InterruptRequest(ENTRIES if beyond else ENTRIES - 1).encode()
        return target | {"address": address, "data": data}

    def digest(self) -> str:
        """How often the guarded vector was raised."""
        return f"{self._delivered[self._guarded]} interrupts at vector {self._guarded:#x}"

    def _guard(self, vector: int, address: int, data: int) -> dict[str, Any]:
        self._guarded = vector
        return {"address": address, "data": data, "vector": vector, "digest": self.digest()}
