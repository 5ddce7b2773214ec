"""A PCI Express switch: an upstream port, downstream ports with access control, and the way between those.

PCI Express Base 5.0 sections 1.3.3, 2.2.4 and 6.12. Without ACS request redirect a memory request to a peer's BAR
turns round in the switch, and no IOMMU sees it. Completions of such requests take the same way back; completion
redirect would send them by way of the root complex, which changes nothing that anyone here could tell.
"""

from __future__ import annotations

from collections.abc import Sequence

from viommu_actors.pci import config_space
from viommu_actors.pci.bridge_function import BridgeFunction
from viommu_actors.pci.component import Component, SwitchConfig, behind, is_device
from viommu_actors.pci.link import Link, Outcome
from viommu_actors.pci.peer import forward
from viommu_actors.pci.root_port import SERVICES, RootPort
from viommu_actors.pci.upstream import Upstream
from viommu_actors.spec import pci
from viommu_actors.spec.tlp import AddressType, Atomic, MemRead, MemWrite


class DownstreamPort(BridgeFunction, Link):
    """A port of a switch. The bus behind it holds one device. `above` is asked by what goes up to the root."""

    def __init__(self, config: SwitchConfig, number: int, max_payload: int, above: Switch) -> None:
        space = config_space.bridge_header(pci.VENDOR_TEXAS_INSTRUMENTS, pci.DEVICE_SWITCH_DOWNSTREAM)
        express = config_space.add_express(space, pci.PortType.DOWNSTREAM_PORT, max_payload)
        config_space.number_port(space, express, number)
        # Off until a kernel turns it on: nothing has to be isolated before.
        acs = config_space.add_acs(space, SERVICES, pci.Acs(0)) if config.acs else None
        self._above = above
        Link.__init__(self, behind(config.name, number))
        BridgeFunction.__init__(self, space, express, acs)

    def set_presence(self, present: bool) -> None:
        self.show_link(present)

    def reset(self) -> None:
        super().reset()
        self.show_link(self.send is not None)

    def ingress(self, requester: int, address_type: int) -> Outcome | None:
        """Why a well-formed request may not enter the switch, or None."""
        if self.source_validation and not self.forwards_bus(requester >> 8):
            return Outcome.ACS
        if address_type and self.translation_blocking:
            return Outcome.TRANSLATION_BLOCKING
        return None if self.bus_master else Outcome.NO_BUS_MASTER

    def reset_behind(self) -> None:
        self.hot_reset()

    def refusal(self, requester: int, address_type: int) -> Outcome | None:
        """As `Link`: each port on the way up is asked."""
        return self.ingress(requester, address_type) or self._above.refusal(requester, address_type)


class UpstreamPort(BridgeFunction):
    """The port of a switch towards the root: a bridge to the switch's inner bus, where the downstream ports are."""

    def __init__(self, max_payload: int, ports: Sequence[DownstreamPort]) -> None:
        space = config_space.bridge_header(pci.VENDOR_TEXAS_INSTRUMENTS, pci.DEVICE_SWITCH_UPSTREAM)
        express = config_space.add_express(space, pci.PortType.UPSTREAM_PORT, max_payload)
        self._ports = ports
        super().__init__(space, express, None)

    def reset_behind(self) -> None:
        for port in self._ports:
            port.reset()
            port.reset_behind()


class Switch(Component):
    """Stands behind the root port `above`; what is not for a peer goes up to `upstream`."""

    def __init__(self, config: SwitchConfig, above: RootPort, upstream: Upstream, max_payload: int) -> None:
        self._above = above
        self._upstream = upstream
        self.ports = [DownstreamPort(config, number, max_payload, self) for number in range(config.ports)]
        self.upstream_port = UpstreamPort(max_payload, self.ports)
        self.links = self.ports
        self._origin = {port.name: port for port in self.ports}

    def refusal(self, requester: int, address_type: int) -> Outcome | None:
        """Why a request may not go up from the downstream ports, or None."""
        if not self.upstream_port.bus_master:
            return Outcome.NO_BUS_MASTER
        return self._above.refusal(requester, address_type)

    def receive(self, link: Link, message: object) -> None:
        """As `Component`. A request that asks for a translation is for the root complex, whatever it names."""
        if isinstance(message, MemRead | MemWrite | Atomic) and message.at != AddressType.TRANSLATION_REQUEST:
            peer = next((port for port in self.ports if port.forwards_address(message.address)), None)
            origin = self._origin[link.name]
            redirected = origin.upstream_forwarding if peer is origin else origin.request_redirect
            if peer is not None and not redirected:
                # A port sends nothing back to where it came from.
                peers = [] if peer is origin else [peer]
                refusal = origin.ingress(message.requester, message.at)
                forward(link, message, refusal, peers, self._upstream.complete)
                return
        self._upstream.receive(link, message)

    # --- down

    def function_at(self, bdf: int) -> BridgeFunction | None:
        if is_device(bdf, self._above.first_bus):
            return self.upstream_port if pci.bdf_function(bdf) == 0 else None
        inner = pci.bdf_bus(bdf) == self.upstream_port.first_bus and pci.bdf_function(bdf) == 0
        return self.ports[pci.bdf_device(bdf)] if inner and pci.bdf_device(bdf) < len(self.ports) else None

    def device_at(self, bdf: int) -> Link | None:
        port = self._towards(pci.bdf_bus(bdf))
        return port if port is not None and is_device(bdf, port.first_bus) else None

    def requester_of(self, bdf: int) -> Link | None:
        return self._towards(pci.bdf_bus(bdf))

    def claimants(self, address: int) -> Sequence[Link]:
        if not self.upstream_port.forwards_address(address):
            return ()
        port = next((port for port in self.ports if port.forwards_address(address)), None)
        return () if port is None else (port,)

    def reset(self) -> None:
        self.upstream_port.reset()
        self.upstream_port.reset_behind()

    def _towards(self, bus: int) -> DownstreamPort | None:
        """The port that requests by ID leave by; None where they are for the switch itself, or for nobody."""
        if not self.upstream_port.forwards_bus(bus) or bus == self.upstream_port.first_bus:
            return None
        return next((port for port in self.ports if port.forwards_bus(bus)), None)
