"""The interrupt vectors of an assigned device, from VFIO's eventfds to the guest's local APIC.

The fast path is KVM's alone: eventfd, irqfd, route. The route holds the message as the vIOMMU remaps
it, computed when the guest programs the device or invalidates interrupt entries (QEMU:
kvm_arch_fixup_msi_route). A vector that is masked, or whose message the vIOMMU blocks, has no irqfd:
its eventfd wakes the hypervisor, which holds it as pending or lets the vIOMMU record the fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from viommu_actors.hypervisor.intx import Intx, Lines
from viommu_actors.hypervisor.parent import ParentKernel
from viommu_actors.hypervisor.regions import Refused
from viommu_actors.hypervisor.routes import Routes

#: remap(requester, address, data, record): the message after remapping, None where it is blocked;
#: `record` lets the vIOMMU record the fault.
Remap = Callable[[int, int, int, bool], tuple[int, int] | None]


@dataclass
class _Vector:
    """One vector: the guest's message, and how it is delivered now."""

    eventfd: int
    address: int = 0
    data: int = 0
    masked: bool = True
    pending: bool = False
    gsi: int | None = field(default=None)


@dataclass(frozen=True)
class Delivery:
    """What all devices of a VM share. `irqfd` False: every interrupt goes through the hypervisor."""

    parent: ParentKernel
    vm: int
    routes: Routes
    remap: Remap
    counters: Counter[str]
    refused: Refused
    lines: Lines
    irqfd: bool = True


class Vectors:
    """The vectors of one interrupt index (VFIO's MSI or MSI-X) of one device."""

    def __init__(self, delivery: Delivery, device: int, requester: int, index: int, intx: Intx | None) -> None:
        """`requester` is the device's ID in the guest; its `intx` is off while these are on."""
        self._intx = intx
        self._delivery = delivery
        self._device = device
        self._requester = requester
        self._index = index
        self._vectors: list[_Vector] = []

    @property
    def enabled(self) -> bool:
        return bool(self._vectors)

    @property
    def eventfds(self) -> list[int]:
        return [vector.eventfd for vector in self._vectors]

    def enable(self, count: int) -> None:
        """Has VFIO signal an eventfd for each vector; all of them masked until `program`.

        Where VFIO refuses, because the device's other kind of interrupt is on or vectors are used up, there are none,
        as in QEMU.
        """
        if not count:
            return
        parent = self._delivery.parent
        if self._intx is not None:
            self._intx.give_way(True)
        self._vectors = [_Vector(parent.eventfd()) for _ in range(count)]
        try:
            parent.set_irqs(self._device, self._index, 0, tuple(self.eventfds))
        except OSError as error:
            self._delivery.refused(f"{count} interrupts of index {self._index}", error)
            for vector in self._vectors:
                parent.close(vector.eventfd)
            self._vectors.clear()
            self._let_intx()

    def disable(self) -> None:
        """No interrupt any more."""
        if not self._vectors:
            return
        self._delivery.parent.set_irqs(self._device, self._index, 0, ())
        for vector in self._vectors:
            self._leave_fast_path(vector)
            self._delivery.parent.close(vector.eventfd)
        self._vectors.clear()
        self._let_intx()

    def program(self, number: int, address: int, data: int, masked: bool) -> None:
        """The guest's message of a vector, and whether it is masked. One that came meanwhile is delivered."""
        vector = self._vectors[number]
        vector.address, vector.data, vector.masked = address, data, masked
        self._route(vector)
        if vector.pending and not masked:
            vector.pending = False
            self._deliver(vector)

    def pending(self, number: int) -> bool:
        """Whether an interrupt came while the vector was masked."""
        return number < len(self._vectors) and self._vectors[number].pending

    def reroute(self) -> None:
        """The vIOMMU's interrupt entries changed: every route is computed anew."""
        for vector in self._vectors:
            self._route(vector)

    def signalled(self, eventfd: int) -> bool:
        """An eventfd woke the hypervisor; False where it is none of these."""
        for vector in self._vectors:
            if vector.eventfd == eventfd:
                self._deliver(vector)
                return True
        return False

    def _let_intx(self) -> None:
        if self._intx is not None:
            self._intx.give_way(False)

    def _route(self, vector: _Vector) -> None:
        delivery = self._delivery
        message = None
        if delivery.irqfd and not vector.masked:
            message = delivery.remap(self._requester, vector.address, vector.data, False)
        if message is None:
            self._leave_fast_path(vector)
        elif vector.gsi is None:
            vector.gsi = delivery.routes.add(*message)
            if vector.gsi is not None:
                delivery.parent.irqfd(delivery.vm, vector.eventfd, vector.gsi, True)
        else:
            delivery.routes.change(vector.gsi, *message)

    def _leave_fast_path(self, vector: _Vector) -> None:
        if vector.gsi is not None:
            self._delivery.parent.irqfd(self._delivery.vm, vector.eventfd, vector.gsi, False)
            self._delivery.routes.remove(vector.gsi)
            vector.gsi = None

    def _deliver(self, vector: _Vector) -> None:
        """The slow path."""
        delivery = self._delivery
        if vector.masked:
            vector.pending = True
            return
        delivery.counters["interrupts_forwarded"] += 1
        message = delivery.remap(self._requester, vector.address, vector.data, True)
        if message is not None:
            delivery.parent.signal_msi(delivery.vm, *message)
