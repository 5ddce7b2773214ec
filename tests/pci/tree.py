"""A root complex with a switch or a bridge in a slot, set up as a kernel would do it, for tests of their rules."""

from __future__ import annotations

from tests.pci.fabric import Target
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.pci.component import BridgeConfig, SwitchConfig
from viommu_actors.pci.root_complex import RootComplex
from viommu_actors.pci.root_port import PortConfig
from viommu_actors.spec import pci, tlp
from viommu_actors.spec.vtd import Access, FaultReason

FULL = 0xF
#: Slot 1 has a device on bus 1; slot 2 has the switch (buses 2 to 5) or the bridge (buses 2 and 3).
PLAIN = pci.bdf(1, 0, 0)
PLAIN_LINK = "slot1"
PLAIN_BAR = 0xC000_0000
UPSTREAM_PORT = pci.bdf(2, 0, 0)
DOWNSTREAM_PORTS = (pci.bdf(3, 0, 0), pci.bdf(3, 1, 0))
BELOW = (pci.bdf(4, 0, 0), pci.bdf(5, 0, 0))
LINKS = ("sw0.0", "sw0.1")
BARS = (0xC010_0000, 0xC020_0000)
BRIDGE = pci.bdf(2, 0, 0)
ON_BRIDGE = (pci.bdf(3, 0, 0), pci.bdf(3, 1, 0))
BRIDGE_LINKS = ("br0.0", "br0.1")
ALIAS = pci.bdf(3, 0, 0)
#: All of the devices on the bridge's bus.
BRIDGE_WINDOW = 0xC010_0000


class Tree:
    """The fabric; its IOMMU lets through what `table` holds, by requester and page, or all while that is None."""

    def __init__(self, below: SwitchConfig | BridgeConfig, root_acs: bool = True) -> None:
        self.ram = bytearray(range(256)) * 4096
        self.memory = PhysicalMemory([Slot("ram", 0, memoryview(self.ram))])
        self.table: dict[tuple[int, int], Access] | None = None
        self.asked: list[tuple[int, int, Access]] = []
        self.interrupts: list[tuple[int, int, int]] = []
        ports = [PortConfig(1, root_acs), PortConfig(2, root_acs, below=below)]
        self.root = RootComplex(self.memory, self.translate, self.interrupt, ports)
        self.sent: dict[str, list[tlp.Downstream]] = {link: [] for link in self.root.ports}
        for link in self.root.ports:
            self.root.attach(link, lambda message, link=link: self._send(link, message))
        self._bridge(pci.bdf(0, 1, 0), 1, 1, PLAIN_BAR, PLAIN_BAR)
        if isinstance(below, SwitchConfig):
            self._bridge(pci.bdf(0, 2, 0), 2, 5, BARS[0], BARS[1])
            self._bridge(UPSTREAM_PORT, 3, 5, BARS[0], BARS[1])
            for number, port in enumerate(DOWNSTREAM_PORTS):
                self._bridge(port, 4 + number, 4 + number, BARS[number], BARS[number])
        else:
            self._bridge(pci.bdf(0, 2, 0), 2, 3, BRIDGE_WINDOW, BRIDGE_WINDOW)
            self._bridge(BRIDGE, 3, 3, BRIDGE_WINDOW, BRIDGE_WINDOW)

    def _bridge(self, bdf: int, first_bus: int, last_bus: int, window: int, last_window: int) -> None:
        self.configure(bdf, pci.PRIMARY_BUS, 4, last_bus << 16 | first_bus << 8)
        self.configure(bdf, pci.MEMORY_BASE, 4, last_window >> 16 << 16 | window >> 16)
        self.configure(bdf, pci.COMMAND, 2, pci.Command.MEMORY | pci.Command.BUS_MASTER)

    def _send(self, link: str, message: tlp.Downstream) -> bool:
        self.sent[link].append(message)
        return True

    def configure(self, function: int, offset: int, size: int, value: int) -> None:
        self.root.config_write(function, offset, size, value, lambda: None)

    def acs(self, port: int, services: pci.Acs) -> None:
        """Turns access control services of a downstream port on, and the others off."""
        bridge = self.root.ports[LINKS[DOWNSTREAM_PORTS.index(port)]].config
        self.configure(port, bridge.extended_capability(pci.ExtendedCapabilityId.ACS) + pci.ACS_CONTROL, 2, services)

    def interrupt(self, requester: int, address: int, data: int) -> FaultReason | None:
        self.interrupts.append((requester, address, data))
        return None

    def translate(self, requester: int, address: int, access: Access) -> Target:
        self.asked.append((requester, address, access))
        if self.table is not None and access & ~self.table.get((requester, address >> 12), Access(0)):
            return Target(0, 6)
        return Target(address, None)

    def read(self, link: str, requester: int, address: int, dwords: int = 1, first: int = FULL, **other: int) -> None:
        last = other.get("last", FULL if dwords > 1 else 0)
        self.root.receive(link, tlp.MemRead(requester, 7, other.get("at", 0), address, dwords, first, last))

    def write(self, link: str, requester: int, address: int, data: bytes, first: int = FULL, at: int = 0) -> None:
        self.root.receive(link, tlp.MemWrite(requester, at, address, first, FULL if len(data) > 4 else 0, data))

    def counters(self, link: str) -> dict[str, int]:
        return dict(self.root.ports[link].counters)


def switch(acs: bool = True) -> Tree:
    return Tree(SwitchConfig("sw0", 2, acs))


def bridge() -> Tree:
    return Tree(BridgeConfig("br0", 2))
