"""A unit over a little memory, with the tables and the queue that software would have built."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.spec.vtd import (
    Access,
    Ccmd,
    Command,
    ContextEntry,
    FaultRecord,
    InvalidationWait,
    Reg,
    RootEntry,
    TranslationType,
    Words,
    level_shift,
    levels_of,
    pte,
    width_code,
)
from viommu_actors.vtd import RemappingUnit, UnitConfig

DEVICE = 0x0018
OTHER = 0x0100
RAM = 32 << 20


class Recorder:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def translation_changed(self, enabled: bool) -> None:
        self.calls.append(("translation", enabled))

    def root_changed(self) -> None:
        self.calls.append(("root",))

    def context_invalidated(self, granularity: int, domain: int, source: int, function_mask: int) -> None:
        self.calls.append(("context", granularity, domain, source, function_mask))

    def iotlb_invalidated(self, granularity: int, domain: int, address: int, mask: int) -> None:
        self.calls.append(("iotlb", granularity, domain, address, mask))

    def unit_reset(self) -> None:
        self.calls.append(("reset",))


class Rig:
    """32 MiB of RAM, a unit, and a driver's elementary moves."""

    root = 0x1000
    queue = 0x10000
    status = 0x20000

    def __init__(self, *, devices: bool = False, **options: Any) -> None:
        """`devices`: invalidations of device-TLBs are asked of devices, which the test answers for."""
        self.asked: list[tuple[int, int, int, int]] = []
        self.memory = PhysicalMemory([Slot("ram", 0, memoryview(bytearray(RAM)))])
        self.interrupts: list[tuple[int, int]] = []
        self.listener = Recorder()
        self.config = UnitConfig(**options)
        ask = (lambda *request: self.asked.append(request)) if devices else None
        self.unit = RemappingUnit(self.config, self.memory, self._interrupt, self.listener, invalidate_device=ask)
        self._free = 0x100000
        self.tail = 0
        self.waits = 0

    def _interrupt(self, address: int, data: int) -> None:
        self.interrupts.append((address, data))

    def page(self) -> int:
        self._free += 0x1000
        return self._free

    def words(self, address: int, words: Words) -> None:
        self.memory.write(address, struct.pack("<QQ", *words))

    def context(self, source: int, **fields: Any) -> int:
        """Installs a context entry and gives the address of its top-level table."""
        entry = ContextEntry(
            fields.get("present", True),
            fields.get("fpd", False),
            fields.get("tt", TranslationType.MULTI_LEVEL),
            fields.get("table") or self.page(),
            width_code(fields.get("width", self.config.aw_bits)),
            fields.get("domain", 1),
        )
        at = self.root + (source >> 8) * 16
        low = self.memory.read_u64(at)
        if not low:
            self.words(at, RootEntry(True, self.page()).encode())
        self.words(self.context_at(source), entry.encode())
        return entry.table

    def context_at(self, source: int) -> int:
        table = RootEntry.decode(self.memory.read_u64(self.root + (source >> 8) * 16), 0).context_table
        return table + (source & 0xFF) * 16

    def map(
        self, table: int, iova: int, target: int, access: Access = Access.BOTH, level: int = 1, width: int = 0
    ) -> int:
        """Maps a page of `level`; gives the address of its entry."""
        top = levels_of(width_code(width or self.config.aw_bits))
        for at_level in range(top, level, -1):
            slot = table + (iova >> level_shift(at_level)) % 512 * 8
            if not self.memory.read_u64(slot):
                self.memory.write_u64(slot, pte(self.page(), Access.BOTH))
            table = self.memory.read_u64(slot) & ~0xFFF
        slot = table + (iova >> level_shift(level)) % 512 * 8
        self.memory.write_u64(slot, pte(target, access, large=level > 1))
        return slot

    def command(self, bit: int, on: bool = True) -> int:
        """Sets or clears one bit as a driver does; GSTS after it."""
        status = self.unit.read(Reg.GSTS, 4) & 0x96FFFFFF
        self.unit.write(Reg.GCMD, 4, status | bit if on else status & ~bit)
        return self.unit.read(Reg.GSTS, 4)

    def start(self, queue: bool = False) -> None:
        self.unit.write(Reg.RTADDR, 8, self.root)
        self.command(Command.SRTP)
        if queue:
            self.unit.write(Reg.IQA, 8, self.queue)
            self.command(Command.QIE)
        self.command(Command.TE)

    def submit(self, *descriptors: Words) -> None:
        """Queues descriptors and rings the tail."""
        for descriptor in descriptors:
            self.words(self.queue + self.tail * 16, descriptor)
            self.tail = (self.tail + 1) % 256
        self.unit.write(Reg.IQT, 8, self.tail << 4)

    def submit_and_wait(self, *descriptors: Words) -> None:
        """As above with a wait behind them, which must complete."""
        self.waits += 1
        self.submit(*descriptors, InvalidationWait(status_write=True, data=self.waits, address=self.status).encode())
        assert self.memory.read(self.status, 4) == self.waits.to_bytes(4, "little")

    def read(self, address: int, source: int = DEVICE) -> Any:
        return self.unit.translate(source, address, Access.READ)

    def write(self, address: int, source: int = DEVICE) -> Any:
        return self.unit.translate(source, address, Access.WRITE)

    def record(self) -> FaultRecord | None:
        """The pending fault record."""
        high = self.unit.read(Reg.FRCD + 8, 8)
        return FaultRecord.decode(self.unit.read(Reg.FRCD, 8), high) if high >> 63 else None

    def clear_faults(self) -> None:
        self.unit.write(Reg.FRCD + 12, 4, 1 << 31)
        self.unit.write(Reg.FSTS, 4, 0x11)

    def context_command(self, granularity: int, domain: int = 0, source: int = 0) -> int:
        value = Ccmd.ICC | granularity << Ccmd.CIRG_SHIFT | source << Ccmd.SID_SHIFT | domain
        self.unit.write(Reg.CCMD, 8, value)
        return self.unit.read(Reg.CCMD, 8) >> Ccmd.CAIG_SHIFT & 3


@pytest.fixture
def rig() -> Callable[..., Rig]:
    """Makes a rig from the options of UnitConfig."""
    return Rig
