"""One freshly reset unit, with memory and devices, and the operations of a transcript carried out on it."""

from __future__ import annotations

from typing import Any, Final

from msgspec import UNSET

from viommu_actors.memory import Unclaimed
from viommu_actors.replay import transcript as t
from viommu_actors.replay.memory import SparseMemory
from viommu_actors.spec.vtd import PAGE_SIZE, Access
from viommu_actors.spec.vtd_interrupts import Interrupt
from viommu_actors.vtd import Blocked, Remapped, RemappingUnit, UnitConfig, is_interrupt
from viommu_actors.vtd.deviations import Quirk, Quirks, quirk_set
from viommu_actors.vtd.listener import InvalidationListener

#: What happened, by the names of the fields that a transcript has for it.
Observed = dict[str, Any]
_NOTHING: Final[Observed] = {}
_U64: Final = 1 << 64


def unit_config(platform: t.Platform, quirks: Quirks) -> UnitConfig:
    return UnitConfig(
        aw_bits=platform.aw_bits,
        caching_mode=platform.caching_mode,
        pass_through=platform.pt,
        intremap=platform.intremap,
        eim=platform.eim,
        device_iotlb=platform.device_iotlb,
        snoop_control=platform.snoop_control,
        dma_drain=platform.dma_drain,
        dma_translation=platform.dma_translation,
        quirks=quirks,
    )


class Machine:
    """`run` carries out an operation and says what was observed."""

    def __init__(self, header: t.Header, quirks: Quirks, listener: InvalidationListener | None = None) -> None:
        self.memory = SparseMemory(header.ranges())
        self.unit = RemappingUnit(unit_config(header.platform, quirks), self.memory, self._send, listener)
        for device in header.devices:
            self.unit.attach(t.bdf(device))
        self._sent: list[t.SentInterrupt] = []
        #: QEMU's emulated devices tell their id with an MSI, but not with any other write.
        self._anonymous_writes = Quirk.WRITES_ANONYMOUS in quirk_set(quirks)

    def run(self, operation: t.Operation) -> Observed:
        """Raises Unclaimed where the transcript itself looks at memory that it does not have."""
        match operation:
            case t.MemWrite():
                self.memory.write(int(operation.addr, 16), bytes.fromhex(operation.data))
            case t.RegRead():
                value = self.unit.read(int(operation.offset, 16), operation.size)
                return {"expect": hex(value & int(operation.mask, 16))}
            case t.RegWrite():
                self.unit.write(int(operation.offset, 16), operation.size, int(operation.value, 16))
            case t.DmaRead():
                return self.dma(operation, operation.len, None)
            case t.DmaWrite():
                data = bytes.fromhex(operation.data)
                return self.dma(operation, len(data), data)
            case t.MemRead():
                return {"expect": self.memory.read(int(operation.addr, 16), operation.len).hex()}
            case t.MemFill():
                self.memory.write(int(operation.addr, 16), filled(operation))
            case t.Msi():
                return self._msi(operation)
            case t.Irqs():
                sent, self._sent = self._sent, []
                return {"expect": sent}
        return _NOTHING

    def _send(self, address: int, data: int) -> None:
        self._sent.append(t.SentInterrupt(hex(address), hex(data)))

    def _msi(self, operation: t.Msi) -> Observed:
        address, data = int(operation.addr, 16), int(operation.data, 16)
        if not is_interrupt(address):
            return {"expect": "dma_" + self.dma(operation, 4, data.to_bytes(4, "little"))["expect"]}
        delivered = self._interrupt(t.bdf(operation.bdf), address, data)
        if delivered is None:
            return {"expect": "dropped", "remapped": False, "delivered": None}
        remapped = delivered.remapped_index is not UNSET
        return {"expect": "delivered", "remapped": remapped, "delivered": delivered}

    def _interrupt(self, requester: int | None, address: int, data: int) -> t.Delivered | None:
        outcome = self.unit.remap_interrupt(requester, address, data)
        if isinstance(outcome, Blocked):
            return None
        return _delivered(outcome.interrupt, outcome.entry if isinstance(outcome, Remapped) else None)

    def dma(self, operation: t.DmaRead | t.DmaWrite | t.Msi, length: int, data: bytes | None) -> Observed:
        """A request, cut at page boundaries as the fabric does; `data` is what it writes."""
        requester, address = t.bdf(operation.bdf), int(operation.addr, 16)
        access = Access.READ if data is None else Access.WRITE
        segments: list[t.Segment] = []
        reasons: list[int] = []
        got = b""
        for iova, count in pages(address, length):
            segment = t.Segment(hex(iova), count, "ok")
            piece = bytes(count)
            if is_interrupt(iova):
                segment.result = "interrupt"
                if data is not None:
                    start = iova - address
                    segment.msi = self._written_interrupts(requester, iova, data[start : start + count])
            else:
                translation = self.unit.translate(requester, iova, access)
                if translation.reason is not None:
                    segment.result = "blocked"
                    reasons.append(int(translation.reason))
                else:
                    segment.gpa = hex(translation.address)
                    try:
                        if data is None:
                            piece = self.memory.read(translation.address, count)
                        else:
                            self.memory.write(translation.address, data[iova - address : iova - address + count])
                    except Unclaimed:
                        segment.result = "unclaimed"
            got += piece
            segments.append(segment)
        results = {segment.result for segment in segments}
        outcome = results.pop() if len(results) == 1 else "partial"
        observed: Observed = {"expect": outcome, "segments": segments, "reasons": reasons}
        if data is None and outcome == "ok":
            observed["expect_data"] = got.hex()
        return observed

    def _written_interrupts(self, requester: int, address: int, data: bytes) -> list[t.Delivered]:
        """A write to the interrupt range is an interrupt if it is a whole aligned word, and from QEMU's device each."""
        if self._anonymous_writes:
            first = -address % 4
            words = [(address + at, data[at : at + 4]) for at in range(first, len(data) - 3, 4)]
        else:
            words = [(address, data)] if len(data) == 4 and not address % 4 else []
        sender = None if self._anonymous_writes else requester
        delivered = [self._interrupt(sender, at, int.from_bytes(word, "little")) for at, word in words]
        return [interrupt for interrupt in delivered if interrupt is not None]


def pages(address: int, length: int) -> list[tuple[int, int]]:
    """A range as (address, length) of its pieces, none of which crosses a page."""
    end = address + length
    pieces = []
    while address < end:
        stop = min(end, (address // PAGE_SIZE + 1) * PAGE_SIZE)
        pieces.append((address, stop - address))
        address = stop
    return pieces


def filled(operation: t.MemFill) -> bytes:
    """The bytes that it writes."""
    word, step = int(operation.word, 16), operation.step
    step = int(step, 16) if isinstance(step, str) else step
    return b"".join((word + index * step).__mod__(_U64).to_bytes(8, "little") for index in range(operation.len // 8))


def _delivered(interrupt: Interrupt, entry: int | None) -> t.Delivered:
    """As the recording's interrupt controllers took it: they have eight bits for a destination."""
    return t.Delivered(
        interrupt.destination & 0xFF,
        int(interrupt.logical),
        interrupt.delivery_mode,
        interrupt.vector,
        int(interrupt.level),
        UNSET if entry is None else entry,
    )
