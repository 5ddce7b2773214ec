"""An application with its devices: what it has from its start to its end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from errno import ENODEV
from typing import NamedTuple

from viommu_actors.app.eal import Eal
from viommu_actors.app.iova import IovaMode
from viommu_actors.app.mempool import Heap, Mempool
from viommu_actors.app.pci import KERNEL_DRIVERS, Function, UserDriver
from viommu_actors.app.pmd_nic import BUFFER, RING_SIZE, NicPort
from viommu_actors.app.pmd_virtio import VirtioPort
from viommu_actors.app.port import Port
from viommu_actors.app.system import HUGEPAGE, System
from viommu_actors.app.testpmd import BURST
from viommu_actors.spec import nic
from viommu_actors.virtio import net

#: The poll-mode driver of each (vendor, device).
_PORTS: Mapping[tuple[int, int], type[NicPort | VirtioPort]] = {
    (nic.VENDOR_ID, nic.DEVICE_ID): NicPort,
    net.IDENTITY: VirtioPort,
}


class Refused(NamedTuple):
    """What the kernel did not do, in Linux's terms."""

    errno: int
    reason: str


def buffers_for(ports: int) -> int:
    """Packet buffers in the pool of so many devices: their receive rings full, and a burst of each on its way.

    A packet on its way is in two buffers: the one that it came into, and until that is cleaned up the one that it was
    sent from.
    """
    return ports * (RING_SIZE + 2 * BURST)


def hugepages_for(ports: int) -> int:
    """Bytes of hugepages that an application with so many devices needs: a pool, two rings each, and a page beside."""
    needed = (buffers_for(ports) + 2 * ports + 1) * BUFFER
    return -(-needed // HUGEPAGE) * HUGEPAGE


class Application:
    """Devices bound, opened and driven, over one pool of buffers that is mapped once."""

    def __init__(
        self,
        system: System,
        drivers: Mapping[str, UserDriver],
        log: Callable[[str], None],
        rx_interrupts: Collection[str] = (),
    ) -> None:
        """`drivers`: by device ("0000:00:03.0") the way to it; `rx_interrupts` are those to sleep on.

        A device that the kernel refuses is in `refused`, the others work. Raises OSError where nothing can start.
        """
        self.refused: dict[str, Refused] = {}
        self.ports: dict[str, Port] = {}
        bound = [name for name, driver in drivers.items() if self._bind(system, name, KERNEL_DRIVERS[driver])]
        self._eal = Eal(system, bound, log)
        try:
            functions = {name: function for name in bound if (function := self._probe(name, drivers[name])) is not None}
            kinds = {name: _PORTS[self._eal.identity(name)] for name in functions}
            headroom = net.HEADER_BYTES if VirtioPort in kinds.values() else 0
            pool = Mempool(self.heap, buffers_for(len(functions)), BUFFER, headroom)
            for name, function in functions.items():
                interrupt = name in rx_interrupts
                self.ports[name] = kinds[name](system, name, function, self.heap, pool, rx_interrupt=interrupt)
        except OSError:
            self._eal.close()
            raise

    @property
    def iova_mode(self) -> IovaMode:
        return self._eal.iova_mode

    @property
    def heap(self) -> Heap:
        return self._eal.heap

    def port(self, name: str) -> Port:
        """Raises OSError(ENODEV) for a device that it does not have."""
        if name not in self.ports:
            raise OSError(ENODEV, f"no port {name}")
        return self.ports[name]

    def close(self) -> None:
        """Stops the devices and gives them, and the mappings, back to the kernel."""
        for port in self.ports.values():
            port.close()
        self.ports.clear()
        self._eal.close()

    def _bind(self, system: System, name: str, driver: str) -> bool:
        try:
            if all(info.driver != driver for info in system.pci_devices() if info.name == name):
                system.bind(name, driver)
        except OSError as error:
            self._refuse(name, error)
        return name not in self.refused

    def _probe(self, name: str, driver: UserDriver) -> Function | None:
        vendor, device = self._eal.identity(name)
        try:
            if (vendor, device) not in _PORTS:
                raise OSError(ENODEV, f"no driver for {name} [{vendor:04x}:{device:04x}]")
            return self._eal.probe(name, driver)
        except OSError as error:
            self._refuse(name, error)
            return None

    def _refuse(self, name: str, error: OSError) -> None:
        self.refused[name] = Refused(error.errno or 0, error.strerror or str(error))
