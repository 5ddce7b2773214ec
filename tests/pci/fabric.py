"""A root complex of two ports in one process, for tests of its rules."""

from __future__ import annotations

from typing import NamedTuple

from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.pci.root_complex import RootComplex
from viommu_actors.pci.root_port import PortConfig, slot_name
from viommu_actors.spec import pci, tlp
from viommu_actors.spec.vtd import Access, FaultReason

DEVICE = pci.bdf(1, 0, 0)
PEER = pci.bdf(2, 0, 0)
SLOT, PEER_SLOT = 1, 2
LINK, PEER_LINK = slot_name(SLOT), slot_name(PEER_SLOT)
PEER_BAR = 0xC010_0000
FULL = 0xF
WRITE_FAULT, READ_FAULT = 5, 6


class Target(NamedTuple):
    address: int
    reason: int | None


class Fabric:
    """A root complex of two ports over 1 MiB, whose IOMMU is a table: (requester, page) -> (page, access)."""

    def __init__(self, acs: bool = True, max_payload: int = 4096) -> None:
        self.ram = bytearray(range(256)) * 4096
        self.memory = PhysicalMemory([Slot("ram", 0, memoryview(self.ram))])
        self.table: dict[tuple[int, int], tuple[int, Access]] | None = None
        self.asked: list[tuple[int, int, Access]] = []
        self.interrupts: list[tuple[int, int, int]] = []
        self.sent: dict[str, list[tlp.Downstream]] = {LINK: [], PEER_LINK: []}
        self.room = True
        ports = [PortConfig(slot, acs, max_payload) for slot in (SLOT, PEER_SLOT)]
        self.blocks: FaultReason | None = None
        self.root = RootComplex(self.memory, self.translate, self.interrupt, ports)
        for slot in (SLOT, PEER_SLOT):
            link = slot_name(slot)
            self.root.attach(link, lambda message, link=link: self.send(link, message))
            port = pci.bdf(0, slot, 0)
            self.configure(port, pci.PRIMARY_BUS, 4, slot << 16 | slot << 8)
            window = 0xC000 + 0x10 * (slot - 1)
            self.configure(port, pci.MEMORY_BASE, 4, window << 16 | window)
            self.configure(port, pci.COMMAND, 2, pci.Command.MEMORY | pci.Command.BUS_MASTER)
            express = self.root.ports[link].config.capability(pci.CapabilityId.PCI_EXPRESS)
            assert express is not None
            code = pci.payload_code(max_payload) << pci.DEVCTL_MAX_PAYLOAD_SHIFT
            self.configure(port, express + pci.EXP_DEVICE_CONTROL, 2, code)

    def configure(self, function: int, offset: int, size: int, value: int) -> None:
        self.root.config_write(function, offset, size, value, lambda: None)

    def send(self, link: str, message: tlp.Downstream) -> bool:
        if self.room:
            self.sent[link].append(message)
        return self.room

    def interrupt(self, requester: int, address: int, data: int) -> FaultReason | None:
        self.interrupts.append((requester, address, data))
        return self.blocks

    def translate(self, requester: int, address: int, access: Access) -> Target:
        self.asked.append((requester, address, access))
        if self.table is None:
            return Target(address, None)
        page, allowed = self.table.get((requester, address >> 12), (0, Access(0)))
        if access & ~allowed:
            return Target(0, WRITE_FAULT if access & ~allowed & Access.WRITE else READ_FAULT)
        return Target(page << 12 | address & 0xFFF, None)

    def read(self, address: int, dwords: int = 1, first: int = FULL, last: int | None = None, **other: int) -> None:
        last = last if last is not None else FULL if dwords > 1 else 0
        requester, at = other.get("requester", DEVICE), other.get("at", 0)
        self.root.receive(LINK, tlp.MemRead(requester, 7, at, address, dwords, first, last))

    def write(self, address: int, data: bytes, first: int = FULL, last: int | None = None, **other: int) -> None:
        last = last if last is not None else FULL if len(data) > 4 else 0
        requester, at = other.get("requester", DEVICE), other.get("at", 0)
        self.root.receive(LINK, tlp.MemWrite(requester, at, address, first, last, data))

    def atomic(self, kind: int, address: int, data: bytes) -> None:
        self.root.receive(LINK, tlp.Atomic(DEVICE, 7, 0, kind, address, data))

    @property
    def answers(self) -> list[tlp.Completion]:
        return [message for message in self.sent[LINK] if isinstance(message, tlp.Completion)]

    @property
    def counters(self) -> dict[str, int]:
        return dict(self.root.ports[LINK].counters)


UNSUPPORTED = tlp.Completion(7, tlp.CompletionStatus.UNSUPPORTED_REQUEST, 0, b"")
