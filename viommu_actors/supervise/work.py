"""Honest work of one device, and what it cost: counts on both sides of the hypervisor, taken between commands."""

from __future__ import annotations

from collections import Counter
from typing import Any

from viommu_actors.report.results import Counts, Io
from viommu_actors.supervise.owner import Owner
from viommu_actors.supervise.supervisor import Supervisor

#: Result key -> (whose counter, its name there)
_COUNTED = {
    "traps": ("hypervisor", "traps"),
    "vfio_maps": ("hypervisor", "vfio_maps"),
    "vfio_unmaps": ("hypervisor", "vfio_unmaps"),
    "pte_writes": ("kernel", "pte_writes"),
    "invalidations": ("kernel", "invalidations"),
    "queue_tail_writes": ("kernel", "queue_tail_writes"),
    "dma_maps": ("kernel", "dma_maps"),
    "dma_unmaps": ("kernel", "dma_unmaps"),
    "interrupts": ("kernel", "interrupts"),
    "interrupts_forwarded": ("hypervisor", "interrupts_forwarded"),
}
_PAGE = 4096
#: Frames on their way at a time; a nic's receive ring has room for more.
_BURST = 8
_WARM_UP = 2


class Work:
    """One device's driver at work."""

    def __init__(self, supervisor: Supervisor, device: str, owner: Owner) -> None:
        self._supervisor = supervisor
        self._device = device
        self._owner = owner
        self._setup: Counter[str] = Counter()

    def set_up(self) -> None:
        """Tears the driver down and sets it up again, for the counts of both."""
        self._counted(self._setup, "rebind")

    def alone(self, operations: int) -> Io:
        """The driver's own traffic: an edu's copies, a nic's loopback."""
        # The first buffers build the upper levels of the page tables, which stay: that is no steady state.
        self._counted(self._setup, "io", operations=_WARM_UP)
        counts: Counter[str] = Counter()
        done = self._counted(counts, "io", operations=operations)
        return self._row(counts, done["operations"], done["bytes"], done["verified"], done["mapping"])

    def send_to(self, peer: Owner, frames: int) -> Io:
        """Frames over the cable, a page each, checked by the kernel at the other end."""
        command = self._supervisor.command
        self._counted(self._setup, "listen")
        command(peer.kernel, "listen", bdf=peer.bdf)
        counts: Counter[str] = Counter()
        verified = True
        for first in range(0, frames, _BURST):
            burst = min(_BURST, frames - first)
            self._counted(counts, "send", first=first, count=burst)
            verified &= bool(command(peer.kernel, "receive", bdf=peer.bdf, first=first, count=burst))
        mapping = command(self._owner.kernel, "mapping", bdf=self._owner.bdf)
        return self._row(counts, frames, frames * _PAGE, verified, mapping)

    def _row(self, counts: Counter[str], operations: int, size: int, verified: bool, mapping: Any) -> Io:
        return Io(
            device=self._device,
            mapping=mapping,
            operations=operations,
            bytes=size,
            verified=verified,
            setup=Counts(**self._setup),
            **counts,
        )

    def _counted(self, counts: Counter[str], name: str, **arguments: Any) -> Any:
        """Has the kernel do something to the device, and adds what it cost."""
        before = self._counters()
        result = self._supervisor.command(self._owner.kernel, name, bdf=self._owner.bdf, **arguments)
        after = self._counters()
        for key in _COUNTED:
            counts[key] += after[key] - before[key]
        return result

    def _counters(self) -> dict[str, int]:
        command, owner = self._supervisor.command, self._owner
        sides: dict[str, dict[str, int]] = {"hypervisor": {}, "kernel": command(owner.kernel, "counters")}
        if owner.hypervisor is not None:
            sides["hypervisor"] = command(owner.hypervisor, "counters")
        return {key: sides[side].get(name, 0) for key, (side, name) in _COUNTED.items()}
