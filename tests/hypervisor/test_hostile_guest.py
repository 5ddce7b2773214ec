"""A guest that means harm: whatever it writes into its memory and its registers, and whenever it rewrites it.

Nothing outside its memory is mapped or read, each structure is read once for each use, and what it asks for is done in
bounded pieces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.hypervisor.shadow_guest import (
    BDF,
    GIGA,
    LARGE,
    MEGA,
    PAGE,
    RAM,
    ROOT,
    TABLES,
    TABLES_SIZE,
    Guest,
)
from tests.hypervisor.whole_guest import GUEST_RAM, LENT, WholeGuest
from viommu_actors.hypervisor import machine as machine_module
from viommu_actors.hypervisor import shadow as shadow_module
from viommu_actors.hypervisor.shadow import Shadow
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.spec import platform
from viommu_actors.spec.vtd import (
    Access,
    Command,
    Fsts,
    InvalidationWait,
    IotlbGranularity,
    IotlbInvalidate,
    Reg,
)
from viommu_actors.spec.vtd_interrupts import InterruptRequest
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.interrupts import Blocked
from viommu_actors.vtd.unit import RemappingUnit

#: Where a guest has no memory, each for a reason of its own.
NOT_RAM = {
    "hole below the registers": 3 * GIGA,
    "the vIOMMU's registers": platform.REMAPPING_UNIT_BASE,
    "configuration space": platform.ECAM_BASE,
    "the interrupt window": 0xFEE0_0000,
    "the local APIC": platform.LOCAL_APIC_BASE,
    "a host-physical address": 1 << 36,
    "the end of the address space": (1 << 39) - GIGA,
}


def _inside(guest: Guest, ram: tuple[tuple[int, int], ...]) -> bool:
    """Whether all that is held lies in these (base, size)."""
    held = [(gpa, gpa + size) for _, gpa, size, _ in guest.held]
    return all(any(base <= gpa and end <= base + size for base, size in ram) for gpa, end in held)


@pytest.mark.parametrize("place", NOT_RAM.values(), ids=NOT_RAM)
@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_leaf_that_points_out_of_guest_memory_maps_nothing(place: int, level: int) -> None:
    guest = Guest()
    guest.context(guest.top | 1)
    size = PAGE << 9 * (level - 1)
    target = place & -size
    guest.write(0, target | 3 | (LARGE if level > 1 else 0), level)
    guest.write(GIGA * 8, (RAM[0].base + 4 * MEGA) | 3)
    guest.enable()
    assert _inside(guest, tuple((ram.base, ram.size) for ram in RAM))
    assert any(iova == GIGA * 8 for iova, *_ in guest.held), "what is legal beside it is mapped"
    outside = not any(ram.base < target + size and target < ram.base + ram.size for ram in RAM)
    if outside:
        assert not any(iova < size for iova, *_ in guest.held)


class Watched:
    """Memory that tells of every read, and whose guest rewrites a word the moment it has been read."""

    def __init__(self, memory: PhysicalMemory, rewrite: Callable[[int], int] | None = None) -> None:
        self._memory = memory
        self._rewrite = rewrite
        self.reads: Counter[int] = Counter()

    def _seen(self, address: int) -> None:
        self.reads[address] += 1
        if self._rewrite is not None and self._memory.claims(address, 8):
            self._memory.write_u64(address, self._rewrite(address))

    def read(self, address: int, length: int) -> bytes:
        data = self._memory.read(address, length)
        for word in range(address & ~7, address + length, 8):
            self._seen(word)
        return data

    def read_u64(self, address: int) -> int:
        value = self._memory.read_u64(address)
        self._seen(address)
        return value

    def read_pair(self, address: int) -> tuple[int, int]:
        pair = self._memory.read_pair(address)
        self._seen(address)
        self._seen(address + 8)
        return pair

    def write(self, address: int, data: bytes) -> None:
        self._memory.write(address, data)

    def write_u64(self, address: int, value: int) -> None:
        self._memory.write_u64(address, value)


#: What a racing CPU puts in the place of what was just read: nothing, everything, a leaf at an address of the host.
REWRITES = {
    "zero": lambda address: 0,
    "ones": lambda address: (1 << 64) - 1,
    "elsewhere": lambda address: (1 << 36) | 3,
    "itself": lambda address: (address & -PAGE) | 3,
}


def _mapped_guest() -> Guest:
    guest = Guest()
    guest.context(guest.top | 1)
    for page in range(8):
        guest.write(page * PAGE, (8 * MEGA + page * PAGE) | 3)
    guest.write(2 * MEGA, (32 * MEGA) | 3 | LARGE, 2)
    return guest


def _watch(guest: Guest, rewrite: Callable[[int], int] | None) -> Watched:
    watched = Watched(guest.memory, rewrite)
    unit = RemappingUnit(UnitConfig(caching_mode=True), watched, lambda address, data: None, guest.shadows)
    guest.shadows.remove(BDF)
    guest.container.take_calls()
    guest.unit = unit
    guest.shadows.add(Shadow(unit, BDF, guest.container, watched, RAM, guest.lines.append))
    return watched


@pytest.mark.parametrize("rewrite", REWRITES.values(), ids=REWRITES)
@pytest.mark.parametrize("flush", ["enable", "page", "domain", "context"])
def test_a_shadow_is_made_of_what_was_read_once(rewrite: Callable[[int], int], flush: str) -> None:
    """The last change of the tables is made before the event: only what changes during it must not matter."""

    def event(guest: Guest, watched: Watched) -> None:
        watched.reads.clear()
        if flush == "enable":
            guest.enable()
        elif flush == "page":
            guest.flush(IotlbGranularity.PAGE, 0, 3)
        elif flush == "domain":
            guest.flush()
        else:
            guest.flush_context()

    plain, racing = _mapped_guest(), _mapped_guest()
    quiet, watched = _watch(plain, None), _watch(racing, None)
    if flush != "enable":
        for guest in (plain, racing):
            guest.enable()
            for page in range(4):
                guest.write(page * PAGE, (12 * MEGA + page * PAGE) | 3)
    watched._rewrite = rewrite
    event(plain, quiet)
    event(racing, watched)
    assert racing.held == plain.held and plain.held
    assert max(watched.reads.values()) == 1, "each word is read once"
    assert watched.reads == quiet.reads


@pytest.mark.parametrize("rewrite", REWRITES.values(), ids=REWRITES)
def test_a_translation_is_made_of_what_was_read_once(rewrite: Callable[[int], int]) -> None:
    guest = _mapped_guest()
    watched = Watched(guest.memory, rewrite)
    unit = RemappingUnit(UnitConfig(caching_mode=True), watched, lambda address, data: None)
    unit.write(Reg.RTADDR, 8, ROOT)
    unit.write(Reg.GCMD, 4, Command.SRTP)
    unit.write(Reg.GCMD, 4, Command.TE)
    assert unit.translate(BDF, 3 * PAGE + 8, Access.WRITE).address == 8 * MEGA + 3 * PAGE + 8
    assert max(watched.reads.values()) == 1


@pytest.mark.parametrize("rewrite", REWRITES.values(), ids=REWRITES)
def test_an_interrupt_is_made_of_an_entry_read_once(rewrite: Callable[[int], int]) -> None:
    data = bytearray(TABLES_SIZE)
    memory = PhysicalMemory([Slot("ram", TABLES, memoryview(data))])
    entry = TABLES + 5 * 16
    memory.write_u64(entry, 1 | 0x41 << 16)
    memory.write_u64(entry + 8, BDF | 1 << 18)
    watched = Watched(memory, rewrite)
    unit = RemappingUnit(UnitConfig(intremap=True), watched, lambda address, data: None)
    unit.write(Reg.IRTA, 8, TABLES | 7)
    unit.write(Reg.GCMD, 4, Command.SIRTP)
    unit.write(Reg.GCMD, 4, Command.IRE)
    outcome = unit.remap_interrupt(BDF, *InterruptRequest(5).encode())
    assert not isinstance(outcome, Blocked) and outcome.interrupt.vector == 0x41
    assert watched.reads == {entry: 1, entry + 8: 1}


# --- the invalidation queue

QUEUE = TABLES + MEGA // 2
STATUS = TABLES + MEGA // 4


class Queue:
    """A unit whose queue lies in the guest's memory, and descriptors in it."""

    def __init__(self, rewrite: Callable[[int], int] | None = None, base: int = QUEUE, size: int = 0) -> None:
        self.guest = Guest()
        self.memory = Watched(self.guest.memory, rewrite)
        self.unit = RemappingUnit(UnitConfig(caching_mode=True), self.memory, lambda address, data: None)
        self.unit.write(Reg.IQA, 8, base | size)
        self.unit.write(Reg.GCMD, 4, Command.QIE)
        self.memory.reads.clear()

    def submit(self, *descriptors: tuple[int, int]) -> None:
        for place, words in enumerate(descriptors):
            self.guest.put(QUEUE + 16 * place, *words)
        self.unit.write(Reg.IQT, 4, 16 * len(descriptors))

    @property
    def stopped(self) -> bool:
        return bool(self.unit.read(Reg.FSTS, 4) & Fsts.IQE)


def _wait(address: int, data: int = 0x600D) -> tuple[int, int]:
    return InvalidationWait(status_write=True, data=data, address=address).encode()


@pytest.mark.parametrize("rewrite", REWRITES.values(), ids=REWRITES)
def test_a_descriptor_is_carried_out_as_it_was_read_once(rewrite: Callable[[int], int]) -> None:
    queue = Queue(rewrite)
    queue.submit(IotlbInvalidate(IotlbGranularity.GLOBAL).encode(), _wait(STATUS))
    assert not queue.stopped
    assert queue.guest.get(STATUS) == 0x600D
    assert queue.memory.reads == {QUEUE + at: 1 for at in (0, 8, 16, 24)}


@pytest.mark.parametrize("place", NOT_RAM.values(), ids=NOT_RAM)
def test_a_wait_writes_nowhere_but_in_guest_memory(place: int) -> None:
    queue = Queue()
    before = bytes(queue.guest.bytes)
    queue.submit(_wait(place))
    assert queue.stopped
    assert queue.unit.read(Reg.IQH, 8) == 0
    assert before[: QUEUE - TABLES] == queue.guest.bytes[: QUEUE - TABLES]


@pytest.mark.parametrize("place", NOT_RAM.values(), ids=NOT_RAM)
def test_a_queue_outside_of_guest_memory_stops(place: int) -> None:
    queue = Queue(base=place & -PAGE)
    queue.unit.write(Reg.IQT, 4, 16)
    assert queue.stopped


def test_a_tail_beyond_the_queue_stops_it() -> None:
    queue = Queue()
    queue.unit.write(Reg.IQT, 4, 16 * 256)
    assert queue.stopped and not queue.memory.reads


@pytest.mark.parametrize("place", NOT_RAM.values(), ids=NOT_RAM)
def test_an_interrupt_table_outside_of_guest_memory_blocks(place: int) -> None:
    guest = Guest()
    unit = RemappingUnit(UnitConfig(intremap=True), guest.memory, lambda address, data: None)
    unit.write(Reg.IRTA, 8, place & -PAGE | 7)
    unit.write(Reg.GCMD, 4, Command.SIRTP)
    unit.write(Reg.GCMD, 4, Command.IRE)
    assert isinstance(unit.remap_interrupt(BDF, *InterruptRequest(5).encode()), Blocked)


# --- the whole machine

FOREIGN = 0x40_0000
ROUND_TABLES, TOP_TABLE, RING = 0x10_0000, 0x10_2000, 0x18_0000
DEVICE, HOST_DEVICE = 0x18, 0x100


def _write_words(guest: WholeGuest, address: int, *words: int) -> None:
    for at, word in enumerate(words):
        guest.ram[address + 8 * at : address + 8 * at + 8] = word.to_bytes(8, "little")


def _tables(guest: WholeGuest, *leaves: int) -> None:
    """A context for the device, four levels of tables, and these last entries."""
    root, contexts = ROUND_TABLES, ROUND_TABLES + PAGE
    _write_words(guest, root, contexts | 1, 0)
    _write_words(guest, contexts + DEVICE * 16, TOP_TABLE | 1, 0x702)
    for level in range(3):
        _write_words(guest, TOP_TABLE + level * PAGE, (TOP_TABLE + (level + 1) * PAGE) | 3)
    _write_words(guest, TOP_TABLE + 3 * PAGE, *leaves)


def _register(guest: WholeGuest, register: int, size: int, value: int) -> None:
    guest.machine.write(platform.REMAPPING_UNIT_BASE + register, size, value)


def _translate(guest: WholeGuest) -> None:
    _register(guest, Reg.RTADDR, 8, ROUND_TABLES)
    _register(guest, Reg.GCMD, 4, Command.SRTP)
    _register(guest, Reg.GCMD, 4, Command.TE)


@pytest.mark.parametrize("place", [FOREIGN, 1 << 21, LENT, LENT + GUEST_RAM, 0xFED9_0000])
def test_a_guest_that_maps_an_address_of_the_host_gets_nothing(place: int) -> None:
    """A33: where the tables name host memory, even its own by the host's address, there is nothing for the device."""
    guest = WholeGuest(UnitConfig(caching_mode=True))
    canary = bytes(range(64))
    guest.host.memory.write(FOREIGN, canary)
    _tables(guest, place | 3, 0x8000 | 3)
    _translate(guest)
    assert not guest.host.dma_write(HOST_DEVICE, 0, b"rogue")
    assert guest.host.dma_read(HOST_DEVICE, 0, 8) is None
    assert guest.host.dma_write(HOST_DEVICE, PAGE, b"legal"), "what lies in its memory works"
    assert guest.ram[0x8000:0x8005] == b"legal"
    assert guest.host.memory.read(FOREIGN, len(canary)) == canary
    assert guest.machine.shadows[0].counters["outside_ram"] == 1


def test_tables_that_never_end_are_worked_off_in_pieces_and_the_queue_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_SLICE", 1_000)
    monkeypatch.setattr(shadow_module, "WALK_LIMIT", 2_000)
    guest = WholeGuest(UnitConfig(caching_mode=True))
    # A table all of whose entries lead to itself, on every level.
    _tables(guest)
    _write_words(guest, TOP_TABLE, *[TOP_TABLE | 3] * 512)
    _translate(guest)
    shadow = guest.machine.shadows[0]
    assert shadow.counters["walks_cut_short"] == 1
    flush = IotlbInvalidate(IotlbGranularity.DOMAIN, domain=7).encode()
    for number in range(20):
        _write_words(guest, RING + 16 * number, *flush)
    _write_words(guest, RING + 16 * 20, *_wait(0x8000))
    _register(guest, Reg.IQA, 8, RING)
    _register(guest, Reg.GCMD, 4, Command.TE | Command.QIE)
    walks = shadow.counters["walks"]
    _register(guest, Reg.IQT, 4, 16 * 21)
    assert shadow.counters["walks"] == walks + 1, "one trap, one walk of that size"
    assert guest.machine.behind
    pieces = 0
    while guest.machine.behind:
        guest.machine.go_on()
        pieces += 1
    assert pieces == 20, "a walk each, and the wait"
    assert int.from_bytes(guest.ram[0x8000:0x8004], "little") == 0x600D
    assert len([line for line in guest.lines if "gave up" in line]) == 10
    assert len(guest.machine.shadows[0].mappings()) <= 65_535
