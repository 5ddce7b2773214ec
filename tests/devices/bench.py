"""One endpoint on a test bench: the root port's part is played by hand."""

from __future__ import annotations

from typing import Any

import pytest

from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.pci.fragment import byte_count
from viommu_actors.spec import pci, tlp

BAR_ADDRESS = 0xC000_0000
BUS = 5
FUNCTION = pci.bdf(BUS, 0, 0)
VECTOR = 0x41
MESSAGE_ADDRESS = 0xFEE0_0000


class Bench:
    """Owns memory that answers DMA, unless an address is in `refused`; keeps all that was sent."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.sent: list[Any] = []
        self.lines: list[str] = []
        self.memory = bytearray(size)
        self.refused: set[int] = set()
        self.vectors: list[int] = []
        self._tag = 0
        self._answered = 0
        self.endpoint: Endpoint

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def take(self) -> list[Any]:
        """What was sent since the last call."""
        sent, self.sent = self.sent, []
        return sent

    def dma_write(self, address: int, data: bytes) -> bool:
        """A DMA write of the endpoint, which does not wait for anything; whether it was let."""
        task = self.endpoint.dma_write(address, data)
        with pytest.raises(StopIteration) as over:
            next(task)
        return bool(over.value.value)

    # --- requests from the root port

    def ask(self, message: Any) -> tlp.Completion:
        """Sends a non-posted request; its completion is the last thing sent."""
        self.endpoint.receive(message)
        completion = self.sent.pop()
        assert isinstance(completion, tlp.Completion) and completion.tag == message.tag
        return completion

    def configure(self, offset: int, size: int, value: int) -> None:
        self._tag = (self._tag + 1) % 256
        data = value.to_bytes(size, "little")
        self.endpoint.receive(tlp.CfgWrite(self._tag, BUS, 0, offset, data))
        self.sent.remove(tlp.Completion(self._tag, 0, 0, b""))

    def config_read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.ask(tlp.CfgRead(0, BUS, 0, offset, size)).data, "little")

    def read(self, offset: int, size: int = 4) -> int | None:
        """A register; None for an unsupported request."""
        completion = self.ask(tlp.MmioRead(9, BAR_ADDRESS + offset, size))
        return None if completion.status else int.from_bytes(completion.data, "little")

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.endpoint.receive(tlp.MmioWrite(BAR_ADDRESS + offset, value.to_bytes(size, "little")))

    def enable(self, max_payload: int = 4096, max_read: int = 4096, extended_tags: bool = False) -> None:
        """As a kernel and a driver do: BAR, bus master, MSI, payload sizes."""
        self.configure(pci.BAR0, 4, BAR_ADDRESS)
        self.configure(pci.COMMAND, 2, pci.Command.MEMORY | pci.Command.BUS_MASTER)
        config = self.endpoint.config
        msi, express = (config.capability(it) for it in (pci.CapabilityId.MSI, pci.CapabilityId.PCI_EXPRESS))
        assert msi is not None and express is not None
        self.configure(msi + pci.MSI_ADDRESS, 4, MESSAGE_ADDRESS)
        self.configure(msi + pci.MSI_DATA_64, 2, VECTOR)
        self.configure(msi + pci.MSI_CONTROL, 2, pci.MSI_ENABLE)
        sizes = pci.payload_code(max_payload) << pci.DEVCTL_MAX_PAYLOAD_SHIFT
        sizes |= pci.payload_code(max_read) << pci.DEVCTL_MAX_READ_SHIFT
        self.configure(express + pci.EXP_DEVICE_CONTROL, 2, sizes | (pci.DEVCTL_EXTENDED_TAG if extended_tags else 0))

    # --- memory behind the root port

    def serve(self) -> None:
        """Carries out what was sent, and what that makes the endpoint send, until nothing more comes."""
        while self.sent:
            self._serve_one(self.sent.pop(0))

    def _serve_one(self, message: Any) -> None:
        match message:
            case tlp.MemRead(_, tag, _, address, dwords, first_be, last_be):
                if not self._allowed(address, dwords * 4):
                    self.endpoint.receive(tlp.Completion(tag, tlp.CompletionStatus.UNSUPPORTED_REQUEST, 0, b""))
                    return
                data = bytes(self.memory[address : address + dwords * 4])
                self.endpoint.receive(tlp.Completion(tag, 0, byte_count(dwords, first_be, last_be), data))
            case tlp.MemWrite(_, _, address, _, _, data) if address == MESSAGE_ADDRESS:
                self.vectors.append(int.from_bytes(data, "little"))
            case tlp.MemWrite(_, _, address, first_be, last_be, data):
                if self._allowed(address, len(data)):
                    lead = (first_be & -first_be).bit_length() - 1
                    count = byte_count(len(data) // 4, first_be, last_be)
                    self.memory[address + lead : address + lead + count] = data[lead : lead + count]

    def _allowed(self, address: int, length: int) -> bool:
        return address >> 12 not in self.refused and address + length <= len(self.memory)
