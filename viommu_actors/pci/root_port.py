"""A root port: a slot of the root complex, and what it lets pass.

PCI Express Base 5.0 sections 6.12 (ACS), 7.5 (registers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from viommu_actors.pci import config_space
from viommu_actors.pci.bridge_function import BridgeFunction
from viommu_actors.pci.component import BridgeConfig, Component, SwitchConfig, is_device
from viommu_actors.pci.link import Link, Outcome
from viommu_actors.spec import pci

#: What a port of this fabric has of ACS.
SERVICES = (
    pci.Acs.SOURCE_VALIDATION
    | pci.Acs.TRANSLATION_BLOCKING
    | pci.Acs.REQUEST_REDIRECT
    | pci.Acs.COMPLETION_REDIRECT
    | pci.Acs.UPSTREAM_FORWARDING
)


def slot_name(slot: int) -> str:
    """Name of the link to a root port."""
    return f"slot{slot}"


@dataclass(frozen=True)
class PortConfig:
    """A slot of the topology: device number on bus 0, whether ACS is there, max payload in bytes.

    `below` is what stands in it in place of a device.
    """

    slot: int
    acs: bool = True
    max_payload: int = 4096
    below: SwitchConfig | BridgeConfig | None = None

    @property
    def name(self) -> str:
        """Of the link that ends there."""
        return slot_name(self.slot)

    def __post_init__(self) -> None:
        if not 1 <= self.slot < pci.DEVICES_PER_BUS:
            raise ValueError(f"slot {self.slot} is no device number of bus 0 (1 to 31)")
        if self.max_payload not in pci.PAYLOAD_SIZES:
            raise ValueError(f"max payload {self.max_payload} is none of {pci.PAYLOAD_SIZES}")


class RootPort(BridgeFunction, Link):
    """Device `slot`, function 0 of bus 0. The bus behind it holds one device, or a switch or bridge."""

    def __init__(self, config: PortConfig) -> None:
        self.slot = config.slot
        self.bdf = pci.bdf(0, config.slot, 0)
        space = config_space.bridge_header(pci.VENDOR_REDHAT, pci.DEVICE_ROOT_PORT)
        express = config_space.add_express(space, pci.PortType.ROOT_PORT, config.max_payload)
        config_space.add_slot(space, express, config.slot)
        acs = config_space.add_acs(space, SERVICES, SERVICES) if config.acs else None
        self.component: Component | None = None
        Link.__init__(self, config.name)
        BridgeFunction.__init__(self, space, express, acs)

    def _latch(self) -> None:
        super()._latch()
        passing = self.bus_master and self.first_bus
        self.first_passing = pci.bdf(self.first_bus, 0, 0) if passing else 1
        self.last_passing = pci.bdf(self.last_bus, 31, 7) if passing else 0

    def set_presence(self, present: bool) -> None:
        """Shows in slot and link status what stands in the slot."""
        slot = self._express + pci.EXP_SLOT_STATUS
        state = self.config.read(slot, 2) & ~pci.SLTSTA_PRESENT
        changed = pci.SLTSTA_PRESENCE_CHANGED | pci.SLTSTA_LINK_CHANGED
        self.config.set(slot, 2, state | changed | (pci.SLTSTA_PRESENT if present else 0))
        self.show_link(present)

    def recover(self) -> None:
        self.set_presence(True)
        slot = self._express + pci.EXP_SLOT_STATUS
        changed = pci.SLTSTA_PRESENCE_CHANGED | pci.SLTSTA_LINK_CHANGED
        self.config.set(slot, 2, self.config.read(slot, 2) & ~changed)

    def refusal(self, requester: int, address_type: int) -> Outcome | None:
        """As `Link`. ACS checks the bus number only: another function of the own bus passes (section 6.12.1.1)."""
        if self.source_validation and not self.forwards_bus(requester >> 8):
            return Outcome.ACS
        if address_type and self.translation_blocking:
            return Outcome.TRANSLATION_BLOCKING
        if not self.bus_master:
            return Outcome.NO_BUS_MASTER
        return None

    # --- down

    def reset_behind(self) -> None:
        """The secondary bus reset: of the device, or of the component and all behind it."""
        if self.component is None:
            self.hot_reset()
        else:
            self.component.reset()

    def function_at(self, bdf: int) -> BridgeFunction | None:
        """The component's function of that address."""
        return None if self.component is None else self.component.function_at(bdf)

    def device_at(self, bdf: int) -> Link | None:
        """The link whose device has that address."""
        if self.component is not None:
            return self.component.device_at(bdf)
        return self if is_device(bdf, self.first_bus) else None

    def requester_of(self, bdf: int) -> Link | None:
        """The link whose device a completion for that requester is for; the port forwards its bus."""
        return self if self.component is None else self.component.requester_of(bdf)

    def claimants(self, address: int) -> Sequence[Link]:
        """The links whose devices hear a memory request to that address; the port forwards it."""
        return (self,) if self.component is None else self.component.claimants(address)
