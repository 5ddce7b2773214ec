"""What stands in a slot in place of a device, and has devices behind it: a switch or a bridge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from viommu_actors.pci.bridge_function import BridgeFunction
from viommu_actors.pci.link import Link, Outstanding
from viommu_actors.spec import pci
from viommu_actors.spec.tlp import MmioRead, MmioWrite

#: Devices behind one component.
MAX_BEHIND = 8


@dataclass(frozen=True)
class SwitchConfig:
    """A switch with so many downstream ports, which have access control services or not."""

    name: str
    ports: int
    acs: bool = True

    def __post_init__(self) -> None:
        _check(self.ports)


@dataclass(frozen=True)
class BridgeConfig:
    """A bridge to conventional PCI with so many devices on its bus."""

    name: str
    devices: int

    def __post_init__(self) -> None:
        _check(self.devices)


def behind(name: str, number: int) -> str:
    """Name of the link to one device behind a component: downstream port or device `number` of it."""
    return f"{name}.{number}"


class Component(ABC):
    """Routes what goes down from its root port, and takes what its devices send."""

    #: One for each device.
    links: Sequence[Link]

    @abstractmethod
    def receive(self, link: Link, message: object) -> None:
        """Carries out what the device of the link sent. Whatever it sent, this returns."""

    @abstractmethod
    def function_at(self, bdf: int) -> BridgeFunction | None:
        """The component's own function of that address."""

    @abstractmethod
    def device_at(self, bdf: int) -> Link | None:
        """Where a configuration request for that address leaves the component."""

    @abstractmethod
    def requester_of(self, bdf: int) -> Link | None:
        """Where a completion for that requester leaves the component, if it is for a device and not the component."""

    @abstractmethod
    def claimants(self, address: int) -> Sequence[Link]:
        """Where a memory request to that address leaves the component."""

    @abstractmethod
    def reset(self) -> None:
        """The hot reset of the link above: the component's registers, and every device."""


@dataclass
class _Asked:
    """A read that several devices hear: the first one's data counts."""

    waiting: int
    done: Callable[[int], None]
    failed: Callable[[], None]
    answered: bool = field(default=False)

    def take(self, value: int) -> None:
        if not self.answered:
            self.answered = True
            self.done(value)

    def miss(self) -> None:
        self.waiting -= 1
        if not self.waiting and not self.answered:
            self.failed()


def read_registers(
    claimants: Sequence[Link], address: int, size: int, done: Callable[[int], None], failed: Callable[[], None]
) -> None:
    """Reads 1, 2, 4 or 8 bytes, naturally aligned, of whichever of the devices answers."""
    if not claimants:
        failed()
        return
    asked = _Asked(len(claimants), done, failed)
    for link in claimants:
        link.request(Outstanding(size, asked.take, asked.miss), lambda tag: MmioRead(tag, address, size))


def write_registers(claimants: Sequence[Link], address: int, data: bytes) -> None:
    """Writes 1, 2, 4 or 8 bytes, naturally aligned, posted."""
    for link in claimants:
        link.post(MmioWrite(address, data))


def _check(count: int) -> None:
    if not 1 <= count <= MAX_BEHIND:
        raise ValueError(f"{count} devices behind one component: 1 to {MAX_BEHIND} can be")


def is_device(bdf: int, bus: int) -> bool:
    """Whether the address is of device 0 of the bus, the only one that a link leads to (PCIe section 7.3.1)."""
    return pci.bdf_bus(bdf) == bus and pci.bdf_device(bdf) == 0
