"""A bridge from PCI Express to conventional PCI: a shared bus, whose devices have one requester ID between them.

PCI Express to PCI/PCI-X Bridge 1.0 section 2.3: a conventional bus carries no requester ID, so the bridge puts its own
in, the secondary bus number with device and function 0. Devices on the bus hear each other: no IOMMU is between them.
"""

from __future__ import annotations

from collections.abc import Sequence

from viommu_actors.pci import config_space
from viommu_actors.pci.bridge_function import BridgeFunction
from viommu_actors.pci.component import BridgeConfig, Component, behind
from viommu_actors.pci.link import Link, Outcome
from viommu_actors.pci.peer import forward
from viommu_actors.pci.root_port import RootPort
from viommu_actors.pci.upstream import Upstream
from viommu_actors.spec import pci
from viommu_actors.spec.tlp import AddressType, Atomic, ConfigRequest, InvalidateCompletion, MemRead, MemWrite


class Slot(Link):
    """A place on the bus of a bridge."""

    def __init__(self, name: str, bridge: PciBridge) -> None:
        super().__init__(name)
        self._bridge = bridge

    def refusal(self, requester: int, address_type: int) -> Outcome | None:
        return self._bridge.refusal(requester, address_type)

    def forwards_bus(self, bus: int) -> bool:
        return self._bridge.function.forwards_bus(bus)

    def set_presence(self, present: bool) -> None:
        """A conventional bus has no presence that software could see."""


class PciBridge(Component):
    """Stands behind the root port `above`."""

    def __init__(self, config: BridgeConfig, above: RootPort, upstream: Upstream, max_payload: int) -> None:
        self._above = above
        self._upstream = upstream
        self.slots = [Slot(behind(config.name, number), self) for number in range(config.devices)]
        self.links = self.slots
        self.function = _Function(max_payload, self.slots)

    def refusal(self, requester: int, address_type: int) -> Outcome | None:
        """Why a request may not go up, or None."""
        # A conventional bus has no address types.
        if address_type != AddressType.UNTRANSLATED:
            return Outcome.ADDRESS_TYPE
        if not self.function.bus_master:
            return Outcome.NO_BUS_MASTER
        return self._above.refusal(requester, address_type)

    def receive(self, link: Link, message: object) -> None:
        """As `Component`. What a device says it is does not get through."""
        if isinstance(message, MemRead | MemWrite | Atomic | ConfigRequest | InvalidateCompletion):
            message = message._replace(requester=self.function.first_bus << 8)
        if isinstance(message, MemRead | MemWrite | Atomic) and self.function.forwards_address(message.address):
            others = [slot for slot in self.slots if slot is not link]
            forward(link, message, None, others, self._upstream.complete)
        else:
            self._upstream.receive(link, message)

    # --- down

    def function_at(self, bdf: int) -> BridgeFunction | None:
        return self.function if bdf == self._above.first_bus << 8 else None

    def device_at(self, bdf: int) -> Link | None:
        here = 0 < self.function.first_bus == pci.bdf_bus(bdf)
        return self.slots[pci.bdf_device(bdf)] if here and pci.bdf_device(bdf) < len(self.slots) else None

    def requester_of(self, bdf: int) -> Link | None:
        """None: what is completed to the bridge it gives to who asked for it, and of anything else it knows nothing."""
        return None

    def claimants(self, address: int) -> Sequence[Link]:
        """All devices hear what is on the bus; the one whose BAR it is answers."""
        return self.slots if self.function.forwards_address(address) else ()

    def reset(self) -> None:
        self.function.reset()
        self.function.reset_behind()


class _Function(BridgeFunction):
    """The bridge's registers; the payload that it takes is that of its devices too."""

    def __init__(self, max_payload: int, slots: Sequence[Slot]) -> None:
        space = config_space.bridge_header(pci.VENDOR_REDHAT, pci.DEVICE_PCI_BRIDGE)
        express = config_space.add_express(space, pci.PortType.PCI_BRIDGE, max_payload)
        self._slots = slots
        super().__init__(space, express, None)

    def reset_behind(self) -> None:
        for slot in self._slots:
            slot.hot_reset()

    def _latch(self) -> None:
        super()._latch()
        for slot in self._slots:
            slot.max_payload = self.max_payload
