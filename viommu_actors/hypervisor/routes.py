"""The VM's MSI routes: which message each interrupt line (gsi) of an irqfd becomes."""

from __future__ import annotations

from viommu_actors.hypervisor.parent import ParentKernel

#: Below stand the 24 lines of the I/O APIC.
_FIRST_GSI = 24


class Routes:
    """Keeps KVM's routing table equal to what the devices asked for."""

    def __init__(self, parent: ParentKernel, vm: int) -> None:
        self._parent = parent
        self._vm = vm
        self._routes: dict[int, tuple[int, int]] = {}

    def add(self, address: int, data: int) -> int:
        """A new line for this message; returns its gsi."""
        gsi = next(n for n in range(_FIRST_GSI, 1 << 16) if n not in self._routes)
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

    def message_of(self, gsi: int) -> tuple[int, int]:
        """(address, data) of a line."""
        return self._routes[gsi]

    def _commit(self) -> None:
        self._parent.set_routes(self._vm, [(gsi, *route) for gsi, route in sorted(self._routes.items())])
