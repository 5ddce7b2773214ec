"""Random transcripts: tables, registers, invalidations, DMA and interrupts, from a seed.

Much is as software would do it and some is not: reserved bits, invalidations that are owed, faults that stay pending,
descriptors that do not exist. What QEMU answers with an assertion is left out.
"""

from __future__ import annotations

from random import Random
from typing import Final

from viommu_actors.replay import transcript as t
from viommu_actors.spec.vtd import (
    PAGE_SIZE,
    TABLE_ENTRIES,
    Ccmd,
    Command,
    ContextCacheInvalidate,
    ContextEntry,
    DeviceTlbInvalidate,
    InterruptEntryInvalidate,
    InvalidationWait,
    IotlbInvalidate,
    IotlbRegister,
    Reg,
    RootEntry,
    TranslationType,
    Words,
    level_shift,
    pte,
)
from viommu_actors.spec.vtd_interrupts import InterruptEntry, InterruptRequest

#: 1 GiB, so that the largest page fits.
RAM_END: Final = 0x4000_0000
_ROOT: Final = 0x20_0000
_QUEUE: Final = 0x21_0000
_STATUS: Final = 0x22_0000
_INTERRUPTS: Final = 0x23_0000
_TABLES: Final = 0x30_0000
_TARGETS: Final = 0x100_0000
_DEVICES: Final = ("00:03.0", "00:03.1", "00:03.5", "00:04.0", "00:1e.0", "01:00.0", "05:00.0")
_MESSAGE: Final = 0xFEE0_0000
#: Bits of GSTS that a command writes back.
_LEVELS: Final = Command.TE | Command.QIE | Command.IRE


def generate(seed: int, steps: int = 60) -> tuple[t.Header, list[t.Operation]]:
    """The same for the same arguments. What is expected in it is made up."""
    return _Generator(Random(seed), seed).run(steps)


class _Generator:
    def __init__(self, random: Random, seed: int) -> None:
        self._random = random
        self._operations: list[t.Operation] = []
        self._platform = t.Platform(
            aw_bits=random.choice((39, 48)),
            caching_mode=random.random() < 0.5,
            intremap=random.random() < 0.7,
            pt=random.random() < 0.8,
            device_iotlb=random.random() < 0.3,
            snoop_control=random.random() < 0.2,
            dma_drain=random.random() < 0.8,
        )
        self._header = t.Header(
            format=t.FORMAT,
            scenario=f"fuzz/{seed}",
            class_="qemu",
            platform=self._platform,
            ram=[("0x0", hex(RAM_END))],
            devices=sorted(random.sample(_DEVICES, random.randint(1, 4))),
            description=f"seed {seed}",
        )
        self._free = _TABLES
        self._command = 0
        self._tail = 0
        self._waits = 0
        self._contexts: dict[str, ContextEntry] = {}
        self._bus_tables: dict[int, int] = {}
        #: What was written into tables, to know where a change can be made.
        self._words: dict[int, int] = {}
        #: Addresses that entries were made for.
        self._iovas: list[int] = []
        # A device's data are drawn from a stock, for its buffer is small.
        self._stock = [random.randbytes(random.choice((8, 12, 16, 24, 32))) for _ in range(12)]

    def run(self, steps: int) -> tuple[t.Header, list[t.Operation]]:
        self._tables()
        self._start()
        moves = (
            (self._dma, 10),
            (self._change_entry, 6),
            (self._submit, 6),
            (self._clear_faults, 3),
            (self._change_context, 2),
            (self._interrupt, 5 if self._platform.intremap else 1),
            (self._change_interrupt_entry, 2),
            (self._register, 3),
            (self._toggle, 1),
        )
        for _ in range(steps):
            self._random.choices([move for move, _ in moves], [weight for _, weight in moves])[0]()
        self._look()
        return self._header, self._operations

    # --- elementary operations

    def _write(self, address: int, words: list[int]) -> None:
        data = b"".join(word.to_bytes(8, "little") for word in words)
        for index, word in enumerate(words):
            self._words[address + 8 * index] = word
        self._operations.append(t.MemWrite(hex(address), data.hex()))

    def _set(self, offset: int, value: int, size: int = 4) -> None:
        self._operations.append(t.RegWrite(hex(offset), size, hex(value)))  # type: ignore[arg-type]

    def _get(self, offset: int, size: int = 4, mask: int = (1 << 64) - 1) -> None:
        self._operations.append(t.RegRead(hex(offset), size, "0x0", hex(mask)))  # type: ignore[arg-type]

    def _page(self) -> int:
        self._free += PAGE_SIZE
        return self._free - PAGE_SIZE

    def _command_write(self, bits: int) -> None:
        self._command = bits & _LEVELS
        self._set(Reg.GCMD, bits)
        self._get(Reg.GSTS)

    def _faults(self) -> None:
        self._get(Reg.FSTS)
        self._get(Reg.FRCD, 8)
        self._get(Reg.FRCD + 8, 8, 0xF000_00FF_FFFF_FFFF)

    def _look(self) -> None:
        for offset in (Reg.GSTS, Reg.FECTL, Reg.ICS, Reg.IECTL):
            self._get(offset)
        for offset in (Reg.RTADDR, Reg.CCMD, Reg.IQH, Reg.IQT, Reg.IQA, Reg.IRTA, Reg.IOTLB):
            self._get(offset, 8)
        self._faults()
        self._operations.append(t.Irqs([]))

    # --- tables

    def _tables(self) -> None:
        random = self._random
        for device in self._header.devices:
            bus = t.bdf(device) >> 8
            if bus not in self._bus_tables:
                self._bus_tables[bus] = self._page()
                low, high = RootEntry(True, self._bus_tables[bus]).encode()
                self._write(_ROOT + 16 * bus, [self._spoiled(low, 0.03), high])
            tables = [entry.table for entry in self._contexts.values()]
            self._context(device, random.choice(tables) if tables and random.random() < 0.4 else self._page())
        for _ in range(random.randint(4, 12)):
            self._map()
        for index in range(8):
            self._interrupt_entry(index)

    def _context(self, device: str, table: int) -> None:
        random = self._random
        widths = (8, 24, 1, 1) if self._platform.aw_bits == 48 else (40, 1, 1, 1)
        entry = ContextEntry(
            present=random.random() < 0.97,
            fault_disable=random.random() < 0.15,
            translation_type=random.choices(list(TranslationType), (14, 2, 3, 1))[0],
            table=table,
            width_code=random.choices((1, 2, 0, 3), widths)[0],
            domain=random.choice((1, 2, 3, 0x104)),
        )
        self._contexts[device] = entry
        low, high = entry.encode()
        address = self._bus_tables[t.bdf(device) >> 8] + (t.bdf(device) & 0xFF) * 16
        self._write(address, [self._spoiled(low, 0.03), self._spoiled(high, 0.03)])

    def _change_context(self) -> None:
        device = self._random.choice(self._header.devices)
        table = self._random.choice([entry.table for entry in self._contexts.values()])
        self._context(device, table)
        if self._random.random() < 0.7:
            self._submit()

    def _map(self) -> None:
        """A page somewhere for one of the devices, with what tables it takes."""
        random = self._random
        context = self._contexts[random.choice(self._header.devices)]
        levels = {1: 3, 2: 4}.get(context.width_code, 3)
        leaf = random.choices((1, 2, 3), (8, 3, 1))[0]
        iova = random.choice((0, 0x1000 * random.randrange(64), random.randrange(1 << 12 + 9 * levels)))
        iova &= -PAGE_SIZE
        if random.random() < 0.1:
            iova = 0xFEC0_0000 + PAGE_SIZE * random.randrange(0x400)
        self._iovas.append(iova)
        table = context.table
        for level in range(levels, leaf, -1):
            slot = table + (iova >> level_shift(level)) % TABLE_ENTRIES * 8
            entry = self._words.get(slot, 0)
            if not entry & 3 or (entry & 0x80 and level <= 3):
                entry = pte(self._page(), random.choices((3, 1, 2), (12, 1, 1))[0])
                self._write(slot, [self._spoiled_entry(entry)])
            table = entry & RAM_END - PAGE_SIZE
        slot = table + (iova >> level_shift(leaf)) % TABLE_ENTRIES * 8
        target = random.randrange(_TARGETS, RAM_END) & -(1 << level_shift(leaf))
        entry = pte(target, random.choices((3, 1, 2, 0), (10, 2, 2, 1))[0], large=leaf > 1)
        self._write(slot, [self._spoiled_entry(entry)])

    def _change_entry(self) -> None:
        random = self._random
        slots = [address for address in self._words if address >= _TABLES]
        if random.random() < 0.5 or not slots:
            self._map()
        else:
            slot = random.choice(slots)
            change = random.choice((0, self._words[slot] ^ 1, self._words[slot] ^ 2, self._words[slot] | 3))
            self._write(slot, [change])
        if random.random() < 0.7:
            self._submit()

    def _spoiled(self, word: int, chance: float) -> int:
        """Now and then with a bit flipped."""
        return word ^ 1 << self._random.randrange(64) if self._random.random() < chance else word

    def _spoiled_entry(self, word: int) -> int:
        """The same, but for bits that lead out of RAM: a refusal looks like no memory there."""
        if self._random.random() >= 0.03:
            return word
        bit: int = self._random.choice([*range(12), *range(self._platform.aw_bits, 64)])
        return word ^ 1 << bit

    # --- set-up

    def _start(self) -> None:
        random = self._random
        self._set(Reg.RTADDR, _ROOT, 8)
        self._command_write(Command.SRTP)
        if random.random() < 0.85:
            self._set(Reg.IQA, _QUEUE, 8)
            self._set(Reg.IQT, 0, 8)
            self._command_write(self._command | Command.QIE)
        if self._platform.intremap:
            self._set(Reg.IRTA, _INTERRUPTS | random.choice((1, 2, 7)), 8)
            self._command_write(self._command | Command.SIRTP)
            if random.random() < 0.85:
                self._command_write(self._command | Command.IRE)
        for control in (Reg.FECTL, Reg.IECTL):
            self._set(control + 4, random.randrange(0x20, 0xF0))
            self._set(control + 8, _MESSAGE | random.randrange(4) << 12)
            if random.random() < 0.6:
                self._set(control, 0)
        self._command_write(self._command | Command.TE)

    def _toggle(self) -> None:
        bit = self._random.choice((Command.TE, Command.QIE, Command.IRE, Command.SRTP, Command.SIRTP, Command.CFI))
        self._command_write(self._command ^ bit)
        if not self._command & Command.TE and self._random.random() < 0.9:
            self._command_write(self._command | Command.TE)

    def _register(self) -> None:
        random = self._random
        choice = random.randrange(6)
        if choice == 0:
            value = Ccmd.ICC | random.randrange(4) << Ccmd.CIRG_SHIFT | self._source() << Ccmd.SID_SHIFT
            self._set(Reg.CCMD, value | random.choice((1, 2, 3)), 8)
            self._get(Reg.CCMD, 8)
        elif choice == 1:
            self._set(Reg.IVA, self._address() & -PAGE_SIZE | random.choice((0, 0, 1, 9, 18, 19)), 8)
            value = IotlbRegister.IVT | random.randrange(4) << IotlbRegister.IIRG_SHIFT
            self._set(Reg.IOTLB, value | random.choice((1, 2, 3)) << IotlbRegister.DID_SHIFT, 8)
            self._get(Reg.IOTLB, 8)
        elif choice == 2:
            control = random.choice((Reg.FECTL, Reg.IECTL))
            self._set(control, random.choice((0, 1 << 31)))
            self._get(control)
        elif choice == 3:
            self._set(Reg.ICS, 1)
            self._get(Reg.IECTL)
        elif choice == 4:
            register = random.choice((Reg.RTADDR, Reg.IRTA, Reg.IQA))
            self._set(register, random.choice((_ROOT, _INTERRUPTS | 2, _QUEUE)), 8)
        self._look()

    # --- invalidation

    def _submit(self) -> None:
        """One to three descriptors and a wait."""
        random = self._random
        for _ in range(random.randint(1, 3)):
            self._queue(self._descriptor())
        self._waits += 1
        interrupt = random.random() < 0.2
        wait = InvalidationWait(interrupt, not interrupt, data=self._waits, address=_STATUS)
        self._queue(wait.encode())
        self._set(Reg.IQT, self._tail << 4, 8)
        self._get(Reg.IQH, 8)
        self._get(Reg.FSTS)
        self._operations.append(t.MemRead(hex(_STATUS), 4, "00000000"))
        if random.random() < 0.5:
            self._operations.append(t.Irqs([]))

    def _queue(self, words: Words) -> None:
        low, high = (self._spoiled(word, 0.01) for word in words)
        if low & 0x3F == 0x35:
            low ^= 0x10  # a wait with status and interrupt ends QEMU with an assertion
        self._write(_QUEUE + 16 * self._tail, [low, high])
        self._tail = (self._tail + 1) % 256

    def _descriptor(self) -> Words:
        random = self._random
        domain = random.choice((1, 2, 3, 0x104))
        choice = random.choices(range(6), (4, 10, 1, 2, 1, 1))[0]
        if choice == 0:
            return ContextCacheInvalidate(
                random.choice((1, 1, 2, 3, 3)), domain, self._source(), random.choice((0, 0, 0, 1, 2, 3))
            ).encode()
        if choice == 1:
            granularity = random.choices((1, 2, 3, 0), (4, 6, 10, 1))[0]
            mask = random.choice((0, 0, 0, 1, 3, 8, 9, 18))
            return IotlbInvalidate(granularity, domain, self._address(), mask, random.random() < 0.3).encode()
        if choice == 2:
            return DeviceTlbInvalidate(self._source(), self._address() & -PAGE_SIZE).encode()
        if choice == 3:
            return InterruptEntryInvalidate(random.random() < 0.5, random.randrange(8), random.randrange(3)).encode()
        if choice == 4:
            return random.choice((6, 7)), 0
        return InvalidationWait(status_write=True, data=7, address=_STATUS + 8).encode()

    def _clear_faults(self) -> None:
        random = self._random
        self._faults()
        if random.random() < 0.85:
            self._set(Reg.FRCD + 12, 1 << 31)
        if random.random() < 0.85:
            self._set(Reg.FSTS, random.choice((0x11, 0x11, 0x1, 0x10)))
        self._faults()
        self._operations.append(t.Irqs([]))

    # --- requests

    def _source(self) -> int:
        return t.bdf(self._random.choice(self._header.devices))

    def _address(self) -> int:
        """Near something that was mapped, mostly."""
        random = self._random
        if not self._iovas or random.random() < 0.15:
            return random.randrange(1 << random.choice((21, 30, 39, 48)))
        base = random.choice(self._iovas)
        if random.random() < 0.2:
            base += PAGE_SIZE * random.choice((-1, 1, 2, 256, 512))
        return max(0, base + random.randrange(PAGE_SIZE))

    def _dma(self) -> None:
        random = self._random
        device, address = random.choice(self._header.devices), self._address()
        if address + 64 >= 0xFED0_0000 and address < 0xFF00_0000 and random.random() < 0.8:
            address = 0x1000
        if random.random() < 0.5:
            data = random.choice(self._stock)
            self._operations.append(t.DmaWrite(device, hex(address), data.hex(), "ok"))
        else:
            self._operations.append(t.DmaRead(device, hex(address), random.choice((8, 16, 40)), "ok"))
        self._faults()

    def _interrupt(self) -> None:
        random = self._random
        device = random.choice(self._header.devices)
        if random.random() < 0.15:
            address, data = _MESSAGE | random.randrange(4) << 12 | random.choice((0, 4)), random.randrange(0x20, 0xF0)
        else:
            valid = random.random() < 0.3
            address, data = InterruptRequest(random.randrange(20), random.randrange(3), valid).encode()
        self._operations.append(t.Msi(device, hex(address), hex(data), "dropped"))
        self._faults()

    def _change_interrupt_entry(self) -> None:
        self._interrupt_entry(self._random.randrange(8))
        if self._random.random() < 0.7:
            self._submit()

    def _interrupt_entry(self, index: int) -> None:
        random = self._random
        entry = InterruptEntry(
            present=random.random() < 0.85,
            fault_disable=random.random() < 0.1,
            logical=random.random() < 0.3,
            level=random.random() < 0.2,
            delivery_mode=random.choice((0, 0, 0, 1)),
            vector=random.randrange(0x20, 0xF0),
            destination=random.randrange(256) << 8,
            source=random.choice((self._source(), 0x0105, 0x0501)),
            qualifier=random.randrange(4),
            validation=random.choices(range(4), (4, 8, 2, 1))[0],
        )
        low, high = entry.encode()
        self._write(_INTERRUPTS + 16 * index, [self._spoiled(low, 0.04), self._spoiled(high, 0.04)])
