"""Carries out the operations of a transcript on a real QEMU and writes down what happened.

What a device's request met is read from QEMU's trace events and from memory. A refused access is tried again in steps
of at most four bytes, so that it shows as several translations of one page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from msgspec import UNSET
from msgspec.structs import replace

from viommu_actors.recorder.board import DATA_SIZE, VIDEO_WINDOW, Board, arguments
from viommu_actors.recorder.qtest import Qemu, QemuError
from viommu_actors.replay import transcript as t
from viommu_actors.replay.machine import filled, pages
from viommu_actors.spec import platform
from viommu_actors.spec.vtd import FAULT_RECORDED, FAULT_SOURCE, Fsts, Reg
from viommu_actors.vtd import is_interrupt

_TRANSLATED: Final = re.compile(
    r"vtd_dmar_translate dev \S+ iova 0x([0-9a-f]+) -> gpa 0x([0-9a-f]+) mask 0x([0-9a-f]+)"
)
_FAULT: Final = re.compile(r"vtd_dmar_fault sid 0x[0-9a-f]+ fault (\d+) addr 0x([0-9a-f]+) write (\d)")
_SENT: Final = re.compile(r"vtd_irq_generate addr 0x([0-9a-f]+) data 0x([0-9a-f]+)")
_REMAPPED: Final = re.compile(r"vtd_ir_remap index (\d+)")
_DELIVERED: Final = re.compile(
    r"apic_deliver_irq dest (\d+) dest_mode (\d+) delivery_mode (\d+) vector (\d+) trigger_mode (\d+)"
)
#: A refused request of no more than this many bytes shows like one that passes.
_STEP: Final = 4


#: How a refusal by a cached entry is told of: QEMU leaves no fault.
_LOST: Final = "none_permission_failed_on_iotlb_hit"


class _Events(NamedTuple):
    translated: list[tuple[int, int, int]]
    """(IOVA, GPA, mask)"""
    faults: list[tuple[int, int, bool]]
    """(reason, address, write)"""
    delivered: list[t.Delivered]
    disabled: list[str]
    """Faults that FPD kept from being recorded."""


class Recorder:
    """A context manager around one QEMU whose unit is freshly reset."""

    def __init__(self, header: t.Header) -> None:
        """Raises QemuError."""
        self._header = header
        self._ram = header.ranges()
        self._sent: list[t.SentInterrupt] = []
        #: Of each device: what its buffer was loaded with.
        self._data: dict[int, bytes] = {}
        self._qemu = Qemu(arguments(header))
        try:
            self._board = Board(self._qemu, header)
            self._qemu.events()
        except BaseException:
            self._qemu.close()
            raise

    def record(self, operations: Iterable[t.Operation]) -> list[t.Operation]:
        """The same operations with what happened in QEMU. Raises QemuError where one cannot be carried out there."""
        operations = list(operations)
        self._load(operations)
        recorded: list[t.Operation] = []
        for operation in operations:
            recorded.append(self._run(operation))
        return recorded

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._qemu.close()

    def _load(self, operations: list[t.Operation]) -> None:
        """Into each device all that it will write, while translation is off."""
        for operation in operations:
            if isinstance(operation, t.DmaWrite):
                requester, data = t.bdf(operation.bdf), bytes.fromhex(operation.data)
                held = self._data.get(requester, b"")
                if data not in held:
                    self._data[requester] = held + data
        for requester, data in self._data.items():
            if len(data) > DATA_SIZE:
                raise QemuError(f"a device writes {len(data)} bytes; edu's buffer has room for {DATA_SIZE}")
            self._board.load(requester, data)
        self._qemu.events()

    def _run(self, operation: t.Operation) -> t.Operation:
        qemu = self._qemu
        match operation:
            case t.MemWrite():
                qemu.write(int(operation.addr, 16), bytes.fromhex(operation.data))
            case t.MemFill():
                qemu.write(int(operation.addr, 16), filled(operation))
            case t.MemRead():
                return replace(operation, expect=qemu.read(int(operation.addr, 16), operation.len).hex())
            case t.RegWrite():
                address = platform.REMAPPING_UNIT_BASE + int(operation.offset, 16)
                qemu.write_register(address, operation.size, int(operation.value, 16))
            case t.RegRead():
                value = self._register(int(operation.offset, 16), operation.size) & int(operation.mask, 16)
                return replace(operation, expect=hex(value))
            case t.Irqs():
                self._events()
                sent, self._sent = self._sent, []
                return replace(operation, expect=sent)
            case t.Msi():
                return self._msi(operation)
            case t.DmaRead() | t.DmaWrite():
                return self._dma(operation)
            case t.Comment():
                pass
            case _:
                raise QemuError(f"{t.name_of(operation)} needs a vfio-user device")
        return operation

    def _register(self, offset: int, size: int) -> int:
        return self._qemu.read_register(platform.REMAPPING_UNIT_BASE + offset, size)

    # --- interrupts

    def _msi(self, operation: t.Msi) -> t.Msi:
        address, data = int(operation.addr, 16), int(operation.data, 16)
        if data >> 16:
            raise QemuError(f"an MSI has 16 bits of data, not {data:#x}")
        if not is_interrupt(address):
            raise QemuError(f"{address:#x} is no interrupt address: record a dma_write")
        self._events()
        self._board.msi(t.bdf(operation.bdf), address, data)
        delivered = self._events().delivered
        if not delivered:
            return replace(operation, expect="dropped", delivered=None, remapped=False)
        remapped = delivered[0].remapped_index is not UNSET
        return replace(operation, expect="delivered", delivered=delivered[0], remapped=remapped)

    def _events(self) -> _Events:
        """What QEMU's log tells since the last time; the unit's own messages are kept apart."""
        events = _Events([], [], [], [])
        own = 0
        index: int | None = None
        for line in self._qemu.events():
            if match := _TRANSLATED.search(line):
                events.translated.append((int(match[1], 16), int(match[2], 16), int(match[3], 16)))
            elif match := _FAULT.search(line):
                events.faults.append((int(match[1]), int(match[2], 16), match[3] == "1"))
            elif "vtd_fault_disabled" in line:
                events.disabled.append(line)
            elif match := _SENT.search(line):
                self._sent.append(t.SentInterrupt(hex(int(match[1], 16)), hex(int(match[2], 16))))
                own += 1
            elif match := _REMAPPED.search(line):
                index = int(match[1])
            elif match := _DELIVERED.search(line):
                if own:
                    own -= 1
                    continue
                dest, mode, delivery, vector, trigger = (int(number) for number in match.groups())
                entry = UNSET if index is None else index
                events.delivered.append(t.Delivered(dest, mode, delivery, vector, trigger, entry))
                index = None
        return events

    # --- DMA

    def _dma(self, operation: t.DmaRead | t.DmaWrite) -> t.Operation:
        requester, address = t.bdf(operation.bdf), int(operation.addr, 16)
        data = bytes.fromhex(operation.data) if isinstance(operation, t.DmaWrite) else None
        length = operation.len if isinstance(operation, t.DmaRead) else len(data or b"")
        self._events()
        pending = self._register(Reg.FSTS, 4), self._register(Reg.FRCD + 8, 8)
        if data is None:
            if length > DATA_SIZE:
                raise QemuError(f"a device reads {length} bytes; edu's buffer has room for {DATA_SIZE}")
            self._board.dma_read(requester, address, DATA_SIZE, length)
        else:
            self._board.dma_write(requester, address, self._data[requester].index(data), length)
        events = self._events()
        segments = [self._segment(address, iova, count, data, events) for iova, count in pages(address, length)]
        results = {segment.result for segment in segments}
        outcome = results.pop() if len(results) == 1 else "partial"
        faults = _faults(requester, events, pending)
        if outcome == "blocked" and not faults:
            faults = [t.Fault(page=hex(address & ~0xFFF), write=data is not None, disposition=_LOST)]
        if not isinstance(operation, t.DmaRead):
            return replace(operation, expect=outcome, segments=segments, faults=faults)
        got = (
            UNSET
            if outcome != "ok"
            else "".join(self._qemu.read(int(segment.gpa or "0x0", 16), segment.len).hex() for segment in segments)
        )
        return replace(operation, expect=outcome, segments=segments, faults=faults, expect_data=got)

    def _segment(self, address: int, iova: int, count: int, data: bytes | None, events: _Events) -> t.Segment:
        if is_interrupt(iova):
            return t.Segment(hex(iova), count, "interrupt", None, UNSET if data is None else events.delivered)
        found = [at for at in events.translated if at[0] & ~at[2] == iova & ~at[2]]
        if not found:
            if events.translated or events.faults or events.disabled:
                return t.Segment(hex(iova), count, "blocked")
            gpa = iova
        else:
            _, base, mask = found[0]
            gpa = base & ~mask | iova & mask
        if VIDEO_WINDOW[0] <= gpa < VIDEO_WINDOW[1]:
            raise QemuError(f"a request to {gpa:#x}, which is a window of the board's")
        if not any(low <= gpa and gpa + count <= high for low, high in self._ram):
            return t.Segment(hex(iova), count, "unclaimed", hex(gpa))
        written = data is not None and self._qemu.read(gpa, count) == data[iova - address : iova - address + count]
        if (found and found.count(found[0]) > 1) or (data is not None and count <= _STEP and not written):
            return t.Segment(hex(iova), count, "blocked")
        return t.Segment(hex(iova), count, "ok", hex(gpa))


def _faults(requester: int, events: _Events, pending: tuple[int, int]) -> list[t.Fault]:
    """The first fault of each page, and what became of it."""
    status, record = pending
    seen: set[int] = set()
    faults = [t.Fault(disposition="fault_processing_disabled")] if events.disabled else []
    for reason, address, write in events.faults:
        page = address & ~0xFFF
        if page in seen:
            continue
        seen.add(page)
        if status & Fsts.PFO:
            what = "dropped_pfo_already_set"
        elif record & FAULT_RECORDED and record & FAULT_SOURCE == requester:
            what = "collapsed"
        elif record & FAULT_RECORDED:
            what, status = "overflow_sets_pfo", status | Fsts.PFO
        else:
            what, record = "recorded", FAULT_RECORDED | requester
        faults.append(t.Fault(reason, hex(page), write, what))
    return faults
