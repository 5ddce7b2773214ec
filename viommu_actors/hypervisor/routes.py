"""The VM's MSI routes: which message each interrupt line (gsi) of an irqfd becomes."""

from __future__ import annotations

from viommu_actors.hypervisor.parent import ParentKernel
from viommu_actors.spec.kvm import IOAPIC_LINES, ROUTE_LIMIT

_GSIS = range(IOAPIC_LINES, ROUTE_LIMIT)


class Routes:
    """Keeps KVM's routing table equal to what the devices asked for."""

    def __init__(self, parent: ParentKernel, vm: int) -> None:
        self._parent = parent
        self._vm = vm
        self._routes: dict[int, tuple[int, int]] = {}

    def add(self, address: int, data: int) -> int | None:
        """A new line for this message; returns its gsi, None where all are in use."""
        gsi = next((n for n in _GSIS if n not in self._routes), None)
        if gsi is not None:
            self.change(gsi, address, data)
        return gsi

    def change(self, gsi: int, address: int, data: int) -> None:
        """The line now stands for another message."""
        if self._routes.get(gsi) != (address, data):
            self._routes[gsi] = (address, data)
            self._commit()

    def remove(self, gsi: int) -> None:
        """The line is free."""
        del self._routes[gsi]
        self._commit()

    def _commit(self) -> None:
        self._parent.set_routes(self._vm, [(gsi, *route) for gsi, route in sorted(self._routes.items())])
