"""The shadow of a guest's tables, against a reader of those tables that shares no code with it."""

from __future__ import annotations

import struct
from bisect import bisect_left, insort
from errno import EEXIST, EINVAL, ENOSPC
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from viommu_actors.hypervisor import shadow as shadow_module
from viommu_actors.hypervisor.held import Mapping
from viommu_actors.hypervisor.shadow import Ram, Shadow, Shadows, View
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.spec.vtd import Access, Command, ContextGranularity, IotlbGranularity, Reg
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.unit import RemappingUnit

PAGE, MEGA, GIGA = 0x1000, 1 << 20, 1 << 30
R, W, RW = Access.READ, Access.WRITE, Access.BOTH
LARGE = 0x80
BDF, OTHER = 0x28, 0x30
TABLES, TABLES_SIZE = 0x10_0000, MEGA
ROOT, CONTEXTS = TABLES, TABLES + PAGE
RAM = (Ram(0, 2 * GIGA), Ram(4 * GIGA, GIGA))
RAM_RUNS = [(0, 0, 2 * GIGA, RW), (4 * GIGA, 4 * GIGA, GIGA, RW)]
GLOBAL, DOMAIN, PAGES = IotlbGranularity.GLOBAL, IotlbGranularity.DOMAIN, IotlbGranularity.PAGE
Run = tuple[int, int, int, int]


class Container:
    """A container with type1's rules: EEXIST, EINVAL for what would bisect, ENOSPC."""

    def __init__(self, limit: int = 65535) -> None:
        self.limit = limit
        self.calls: list[tuple[str, int, int]] = []
        self._starts: list[int] = []
        self._mappings: dict[int, tuple[int, int, Access]] = {}

    def map(self, iova: int, gpa: int, size: int, access: Access) -> None:
        self.calls.append(("map", iova, size))
        assert size > 0
        assert not (iova | gpa | size) % PAGE
        assert access in (R, W, RW)
        assert not (iova <= 0xFEEF_FFFF and iova + size > 0xFEE0_0000), "the interrupt range is mapped"
        if any(start < iova + size and iova < start + self._mappings[start][1] for start in self._near(iova, size)):
            raise OSError(EEXIST, "overlap")
        if len(self._starts) >= self.limit:
            raise OSError(ENOSPC, "full")
        insort(self._starts, iova)
        self._mappings[iova] = (gpa, size, access)

    def unmap(self, iova: int, size: int) -> None:
        self.calls.append(("unmap", iova, size))
        inside = self._near(iova, size)
        for start in inside:
            end = start + self._mappings[start][1]
            if start < iova < end or start < iova + size < end:
                raise OSError(EINVAL, "bisects")
        gone = [start for start in inside if iova <= start < iova + size]
        assert gone, "an unmap of nothing"
        for start in gone:
            self._starts.remove(start)
            del self._mappings[start]

    def _near(self, iova: int, size: int) -> list[int]:
        begin = bisect_left(self._starts, iova)
        return self._starts[max(begin - 1, 0) : bisect_left(self._starts, iova + size, begin)]

    @property
    def runs(self) -> list[Run]:
        return merged((iova, *self._mappings[iova]) for iova in self._starts)

    def take_calls(self) -> list[tuple[str, int, int]]:
        calls, self.calls = self.calls, []
        return calls


def merged(mappings: object) -> list[Run]:
    """Mappings as the fewest runs (iova, gpa, size, access)."""
    runs: list[Run] = []
    for iova, gpa, size, access in mappings:  # type: ignore[attr-defined]
        if runs:
            last_iova, last_gpa, last_size, last_access = runs[-1]
            if last_iova + last_size == iova and last_gpa + last_size == gpa and last_access == access:
                runs[-1] = (last_iova, last_gpa, last_size + size, access)
                continue
        runs.append((iova, gpa, size, access))
    return runs


class Guest:
    """Tables in a megabyte of memory, a real unit, one shadow."""

    def __init__(self, limit: int = 65535, ram: tuple[Ram, ...] = RAM, requesters: tuple[int, ...] = (BDF,)) -> None:
        self.bytes = bytearray(TABLES_SIZE)
        self.memory = PhysicalMemory([Slot("ram", TABLES, memoryview(self.bytes))])
        self.free = CONTEXTS + PAGE
        self.shadows = Shadows()
        self.unit = RemappingUnit(UnitConfig(caching_mode=True), self.memory, lambda address, data: None, self.shadows)
        self.lines: list[str] = []
        self.containers = {requester: Container(limit) for requester in requesters}
        for requester, container in self.containers.items():
            self.shadows.add(Shadow(self.unit, requester, container, self.memory, ram, self.lines.append))
        self.container = self.containers[requesters[0]]
        self.shadow = next(iter(self.shadows))
        self.put(ROOT, CONTEXTS | 1, 0)
        self.top = self.table()

    def put(self, address: int, *words: int) -> None:
        struct.pack_into(f"<{len(words)}Q", self.bytes, address - TABLES, *words)

    def get(self, address: int) -> int:
        return int(struct.unpack_from("<Q", self.bytes, address - TABLES)[0])

    def table(self) -> int:
        self.free += PAGE
        assert self.free <= TABLES + TABLES_SIZE
        return self.free - PAGE

    def context(self, low: int, high: int = 0x702, bdf: int = BDF) -> None:
        """AW 2 and domain 7 by default."""
        self.put(CONTEXTS + bdf * 16, low, high)

    def entry_at(self, iova: int, level: int, top: int | None = None, levels: int = 4) -> int | None:
        """Address of the entry of `level` for `iova`, tables made on the way; None below a leaf."""
        table = self.top if top is None else top
        for step in range(levels, level, -1):
            place = table + (iova >> 9 * step + 3 & 511) * 8
            entry = self.get(place)
            if not entry & 3:
                entry = self.table() | 3
                self.put(place, entry)
            elif entry & LARGE or entry & ~0xFFF not in range(TABLES, TABLES + TABLES_SIZE):
                return None
            table = entry & ~0xFFF
        return table + (iova >> 9 * level + 3 & 511) * 8

    def write(self, iova: int, value: int, level: int = 1) -> None:
        place = self.entry_at(iova, level)
        assert place is not None
        self.put(place, value)

    def enable(self) -> None:
        self.latch_root(ROOT)
        self.unit.write(Reg.GCMD, 4, Command.TE)

    def latch_root(self, root: int) -> None:
        self.unit.write(Reg.RTADDR, 8, root)
        self.unit.write(Reg.GCMD, 4, Command.SRTP | self.unit.read(Reg.GSTS, 4) & Command.TE)

    def flush(self, granularity: int = DOMAIN, address: int = 0, mask: int = 0, domain: int = 7) -> None:
        self.unit.invalidate_iotlb(granularity, domain, address, mask)

    def flush_context(self, granularity: int = ContextGranularity.DEVICE, source: int = BDF, fm: int = 0) -> None:
        self.unit.invalidate_context(granularity, 0, source, fm)

    @property
    def held(self) -> list[Run]:
        return self.container.runs


@pytest.fixture
def guest() -> Guest:
    """Translating, with empty tables."""
    guest = Guest()
    guest.context(guest.top | 1)
    guest.enable()
    guest.container.take_calls()
    return guest


# --- the hot path


def test_map_and_unmap_of_a_page_are_one_call_each(guest: Guest) -> None:
    guest.write(0xFFFF_F000, 0x5000 | 3)
    assert guest.held == []
    guest.flush(PAGES, 0xFFFF_F000)
    assert guest.held == [(0xFFFF_F000, 0x5000, PAGE, RW)]
    guest.flush(PAGES, 0xFFFF_F000)
    guest.write(0xFFFF_F000, 0)
    guest.flush(PAGES, 0xFFFF_F000)
    assert guest.container.calls == [("map", 0xFFFF_F000, PAGE), ("unmap", 0xFFFF_F000, PAGE)]


def test_each_page_is_a_mapping_and_a_range_goes_in_one_unmap(guest: Guest) -> None:
    for page in range(8):
        guest.write(page * PAGE, 0x8000 + page * PAGE | 3)
    guest.flush(PAGES, 0, 3)
    assert guest.container.take_calls() == [("map", page * PAGE, PAGE) for page in range(8)]
    for page in range(8):
        guest.write(page * PAGE, 0)
    guest.flush(PAGES, 0, 3)
    assert guest.container.calls == [("unmap", 0, 8 * PAGE)]


def test_changed_page_is_unmapped_then_mapped(guest: Guest) -> None:
    for value in (0x5000 | 3, 0x6000 | 3, 0x6000 | 1, 0x6000 | 2):
        guest.write(0, value)
        guest.flush(PAGES, 0)
    assert guest.held == [(0, 0x6000, PAGE, W)], "write-only stays write-only"
    assert [call for call, *_ in guest.container.calls] == ["map", *["unmap", "map"] * 3]


def test_nothing_but_invalidations_changes_anything(guest: Guest) -> None:
    guest.write(0, 0x5000 | 3)
    guest.context(0)
    guest.unit.write(Reg.RTADDR, 8, 0)
    assert guest.container.calls == []


def test_other_domains_and_devices_do_not_matter(guest: Guest) -> None:
    guest.write(0, 0x5000 | 3)
    guest.flush(PAGES, 0, domain=8)
    guest.flush(DOMAIN, domain=8)
    guest.flush_context(source=OTHER)
    assert guest.container.calls == []
    guest.flush_context(source=BDF | 7, fm=3)
    assert guest.held == [(0, 0x5000, PAGE, RW)]


@pytest.mark.parametrize("address", [0, 0x3000, 0x7000])
def test_unaligned_psi_covers_its_block(guest: Guest, address: int) -> None:
    guest.write(0x2000, 0x5000 | 3)
    guest.flush(PAGES, address, 3)
    assert guest.held == [(0x2000, 0x5000, PAGE, RW)]


def test_global_flush(guest: Guest) -> None:
    guest.write(0, 0x5000 | 3)
    guest.flush(GLOBAL, domain=0)
    assert guest.held == [(0, 0x5000, PAGE, RW)]


# --- page sizes


def test_large_page_split_in_place_keeps_what_lies_outside_the_psi(guest: Guest) -> None:
    guest.write(2 * MEGA, 32 * MEGA | LARGE | 3, level=2)
    guest.flush(PAGES, 2 * MEGA, 9)
    small = guest.table()
    for page in range(512):
        guest.put(small + page * 8, 32 * MEGA + page * PAGE | 3 if page != 5 else 0)
    guest.write(2 * MEGA, small | 3, level=2)
    guest.container.take_calls()
    guest.flush(PAGES, 2 * MEGA + 5 * PAGE)
    calls = guest.container.take_calls()
    assert calls[0] == ("unmap", 2 * MEGA, 2 * MEGA)
    assert len(calls) == 512
    assert guest.held == [
        (2 * MEGA, 32 * MEGA, 5 * PAGE, RW),
        (2 * MEGA + 6 * PAGE, 32 * MEGA + 6 * PAGE, 506 * PAGE, RW),
    ]


def test_small_pages_joined_in_place(guest: Guest) -> None:
    for page in (0, 1, 511):
        guest.write(2 * MEGA + page * PAGE, 0x5000 | 3)
    guest.flush(DOMAIN)
    guest.write(2 * MEGA, 32 * MEGA | LARGE | 1, level=2)
    guest.container.take_calls()
    guest.flush(PAGES, 2 * MEGA + 7 * PAGE)
    assert guest.container.calls == [("unmap", 2 * MEGA, 2 * MEGA), ("map", 2 * MEGA, 2 * MEGA)]
    assert guest.held == [(2 * MEGA, 32 * MEGA, 2 * MEGA, R)]


def test_leaf_sizes_are_kept(guest: Guest) -> None:
    guest.write(4 * GIGA, GIGA | LARGE | 3, level=3)
    guest.write(0, 2 * MEGA | LARGE | 3, level=2)
    guest.flush(DOMAIN)
    assert guest.container.calls == [("map", 0, 2 * MEGA), ("map", 4 * GIGA, GIGA)]


# --- holes of every kind


@pytest.mark.parametrize(
    ("level", "value"),
    [
        (1, 0),
        (1, 0x5000 | 1 << 11 | 3),
        (1, 1 << 50 | 3),
        (2, 0),
        (2, 0x5000 | LARGE | 3),
        (2, 0xDEAD_0000_0000 | 3),
        (3, 1 << 62 | 3),
        (4, 0),
        (4, LARGE | 3),
    ],
)
def test_what_can_no_longer_be_walked_is_unmapped(guest: Guest, level: int, value: int) -> None:
    for page in (0, 3):
        guest.write(page * PAGE, 0x5000 | 3)
    guest.flush(DOMAIN)
    place = guest.entry_at(0, level)
    assert place is not None
    guest.put(place, value)
    guest.flush(PAGES, 0)
    guest.flush(PAGES, 3 * PAGE)
    assert guest.held == ([(3 * PAGE, 0x5000, PAGE, RW)] if level == 1 else [])


def test_permissions_are_those_of_the_path(guest: Guest) -> None:
    guest.write(0, 0x5000 | 3)
    place = guest.entry_at(0, 2)
    assert place is not None
    guest.put(place, guest.get(place) & ~2)
    guest.flush(DOMAIN)
    assert guest.held == [(0, 0x5000, PAGE, R)]


# --- what is never mapped


def test_pages_outside_guest_ram_are_refused_and_counted(guest: Guest) -> None:
    for page, gpa in enumerate((2 * GIGA, 0xFED9_0000, 5 * GIGA, 1 << 40, 2 * GIGA - PAGE)):
        guest.write(page * PAGE, gpa | 3)
    guest.write(2 * MEGA, 0xC000_0000 | LARGE | 3, level=2)
    guest.flush(DOMAIN)
    assert guest.held == [(4 * PAGE, 2 * GIGA - PAGE, PAGE, RW)]
    assert guest.shadow.counters["outside_ram"] == 5


def test_large_page_partly_outside_ram() -> None:
    guest = Guest(ram=(Ram(0, MEGA), Ram(MEGA + PAGE, MEGA)))
    guest.context(guest.top | 1)
    guest.write(6 * MEGA, LARGE | 3, level=2)
    guest.enable()
    assert guest.held == [(6 * MEGA, 0, MEGA, RW), (7 * MEGA + PAGE, MEGA + PAGE, MEGA - PAGE, RW)]


def test_rom_is_read_only() -> None:
    guest = Guest(ram=(Ram(0, MEGA), Ram(MEGA, MEGA, R)))
    assert guest.held == [(0, 0, MEGA, RW), (MEGA, MEGA, MEGA, R)]
    guest.context(guest.top | 1)
    guest.write(0, MEGA | 3)
    guest.write(PAGE, MEGA | 2)
    guest.enable()
    assert guest.held == [(0, MEGA, PAGE, R)]


def test_interrupt_range_is_cropped_with_the_right_address(guest: Guest) -> None:
    guest.write(0xFEE0_0000, 0x2000_0000 | LARGE | 3, level=2)
    guest.flush(DOMAIN)
    assert guest.held == [(0xFEF0_0000, 0x2010_0000, MEGA, RW)]
    guest.write(0xC000_0000, 0x4000_0000 | LARGE | 3, level=3)
    guest.flush(DOMAIN)
    assert guest.held == [
        (0xC000_0000, 0x4000_0000, 0x3EE0_0000, RW),
        (0xFEF0_0000, 0x7EF0_0000, 0x0110_0000, RW),
    ]
    guest.write(0xFEE0_0000, 0, level=3)
    guest.flush(DOMAIN)
    guest.write(0xFEEF_F000, 0x5000 | 3)
    guest.flush(PAGES, 0xFEEF_F000)
    assert guest.held == []
    assert guest.shadow.counters["outside_ram"] == 0


# --- contexts, switches, root


def test_ram_is_mapped_once_while_translation_is_off() -> None:
    guest = Guest()
    assert guest.held == RAM_RUNS
    guest.flush(GLOBAL)
    guest.flush_context(ContextGranularity.GLOBAL)
    guest.latch_root(ROOT)
    assert guest.container.calls == [("map", 0, 2 * GIGA), ("map", 4 * GIGA, GIGA)]
    assert guest.shadow.view is View.DIRECT


def test_ram_across_the_interrupt_range_is_cropped() -> None:
    guest = Guest(ram=(Ram(0, 5 * GIGA),))
    assert guest.held == [(0, 0, 0xFEE0_0000, RW), (0xFEF0_0000, 0xFEF0_0000, 5 * GIGA - 0xFEF0_0000, RW)]


def test_switching_translation_unmaps_everything_first() -> None:
    guest = Guest()
    guest.context(guest.top | 1)
    guest.write(0x1000, 0x1000 | 3)
    guest.container.take_calls()
    guest.enable()
    assert guest.container.take_calls() == [("unmap", 0, 5 * GIGA), ("map", 0x1000, PAGE)]
    guest.unit.write(Reg.GCMD, 4, 0)
    assert guest.container.calls == [("unmap", 0x1000, PAGE), ("map", 0, 2 * GIGA), ("map", 4 * GIGA, GIGA)]
    assert guest.held == RAM_RUNS


def test_reset_goes_back_to_ram(guest: Guest) -> None:
    guest.write(0, 0x5000 | 3)
    guest.flush(DOMAIN)
    guest.unit.reset()
    assert guest.held == RAM_RUNS


def test_pass_through_has_all_ram_and_is_left_alone(guest: Guest) -> None:
    guest.context(2 << 2 | 1)
    guest.flush_context()
    assert guest.held == RAM_RUNS
    guest.container.take_calls()
    guest.flush(GLOBAL)
    guest.unit.write(Reg.GCMD, 4, 0)
    guest.unit.write(Reg.GCMD, 4, Command.TE)
    assert guest.container.calls == []
    guest.context(guest.top | 1)
    guest.flush_context(ContextGranularity.GLOBAL)
    assert guest.held == []


@pytest.mark.parametrize("context", [(0, 0), (0xFF1, 0x702), (3 << 2 | 1, 0x702), (1, 0x705), (1 << 60 | 1, 0x702)])
@pytest.mark.parametrize("kind", ["device", "domain", "global", "iotlb domain", "iotlb global", "psi"])
def test_context_absent_or_invalid_unmaps_everything(guest: Guest, context: tuple[int, int], kind: str) -> None:
    guest.write(0, 0x5000 | 3)
    guest.write(6 * GIGA, 0x5000 | 3)
    guest.flush(DOMAIN)
    assert len(guest.held) == 2
    guest.context(*context)
    {
        "device": guest.flush_context,
        "domain": lambda: guest.flush_context(ContextGranularity.DOMAIN),
        "global": lambda: guest.flush_context(ContextGranularity.GLOBAL),
        "iotlb domain": guest.flush,
        "iotlb global": lambda: guest.flush(GLOBAL),
        "psi": lambda: guest.flush(PAGES, 0x7000),
    }[kind]()
    assert guest.held == []
    assert guest.shadow.view is View.BLOCKED
    guest.context(guest.top | 1)
    guest.flush_context()
    assert len(guest.held) == 2


def test_new_tables_are_a_difference(guest: Guest) -> None:
    guest.write(0, 0x5000 | 3)
    guest.write(PAGE, 0x6000 | 3)
    guest.flush(DOMAIN)
    second = guest.table()
    for iova, value in ((0, 0x5000 | 3), (PAGE, 0x7000 | 3)):
        place = guest.entry_at(iova, 1, top=second)
        assert place is not None
        guest.put(place, value)
    guest.context(second | 1, 0x902)
    guest.container.take_calls()
    guest.flush_context()
    assert guest.container.calls == [("unmap", PAGE, PAGE), ("map", PAGE, PAGE)]
    guest.write(0, 0)
    guest.flush(DOMAIN, domain=7)
    assert len(guest.container.calls) == 2, "domain 7 is no longer this device's"


def test_narrower_context_loses_what_lies_above(guest: Guest) -> None:
    guest.write(600 * GIGA, 0x5000 | 3)
    guest.write(GIGA, 0x6000 | 3)
    guest.flush(DOMAIN)
    level3 = guest.entry_at(0, 3)
    assert level3 is not None
    guest.context(level3 & ~0xFFF | 1, 0x701)
    guest.flush_context()
    assert guest.held == [(GIGA, 0x6000, PAGE, RW)]


def test_new_root_pointer_rebuilds(guest: Guest) -> None:
    guest.write(0, 0x5000 | 3)
    guest.flush(DOMAIN)
    empty = guest.table()
    guest.latch_root(empty)
    assert guest.held == []
    guest.latch_root(ROOT)
    assert guest.held == [(0, 0x5000, PAGE, RW)]
    guest.latch_root(1 << 40)
    assert guest.held == []


def test_two_devices() -> None:
    guest = Guest(requesters=(BDF, OTHER))
    guest.context(guest.top | 1)
    guest.context(guest.table() | 1, 0x802, bdf=OTHER)
    guest.enable()
    guest.write(0, 0x5000 | 3)
    guest.flush(DOMAIN)
    assert guest.containers[BDF].runs == [(0, 0x5000, PAGE, RW)]
    assert guest.containers[OTHER].runs == []
    guest.context(guest.top | 1, bdf=OTHER)
    guest.flush_context(source=OTHER)
    assert guest.containers[OTHER].runs == [(0, 0x5000, PAGE, RW)]
    guest.shadows.remove(OTHER)
    assert guest.containers[OTHER].runs == []
    assert [shadow.requester for shadow in guest.shadows] == [BDF]


# --- refusals and hostile tables


def test_full_container_is_tried_again_at_the_next_invalidation() -> None:
    guest = Guest(limit=4)
    guest.context(guest.top | 1)
    guest.enable()
    for page in range(8):
        guest.write(page * PAGE, 0x8000 + page * PAGE | 3)
    guest.container.take_calls()
    guest.flush(DOMAIN)
    assert guest.held == [(0, 0x8000, 4 * PAGE, RW)]
    assert len(guest.container.take_calls()) == 5, "after ENOSPC no more is tried"
    assert len(guest.lines) == 1
    guest.write(0, 0)
    guest.flush(PAGES, 0)
    guest.flush(PAGES, 7 * PAGE)
    assert guest.held == [(PAGE, 0x9000, 3 * PAGE, RW), (7 * PAGE, 0xF000, PAGE, RW)]
    assert guest.shadow.counters["map_errors"] == 1


def test_room_made_later_in_the_same_walk_is_used() -> None:
    guest = Guest(limit=4)
    guest.context(guest.top | 1)
    guest.enable()
    for page in range(4):
        guest.write(GIGA + page * PAGE, 0x8000 + page * PAGE | 3)
    guest.flush(DOMAIN)
    for page in range(4):
        guest.write(GIGA + page * PAGE, 0)
        guest.write(page * PAGE, 0x8000 + page * PAGE | 3)
    guest.flush(DOMAIN)
    assert guest.held == [(0, 0x8000, 4 * PAGE, RW)]


def test_other_refusals_leave_a_hole_only_there(guest: Guest) -> None:
    refuse = guest.container.map

    def map_but_one(iova: int, gpa: int, size: int, access: Access) -> None:
        if iova == PAGE:
            raise OSError(EINVAL, "not this one")
        refuse(iova, gpa, size, access)

    guest.container.map = map_but_one  # type: ignore[method-assign]
    for page in range(3):
        guest.write(page * PAGE, 0x8000 + page * PAGE | 3)
    guest.flush(DOMAIN)
    guest.flush(DOMAIN)
    assert guest.held == [(0, 0x8000, PAGE, RW), (2 * PAGE, 0xA000, PAGE, RW)]
    assert guest.shadow.counters["map_errors"] == 2
    assert len(guest.lines) == 1


def test_tables_that_lead_back_into_themselves_end_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_module, "WALK_LIMIT", 2000)
    guest = Guest()
    guest.context(guest.top | 1)
    for index in range(512):
        guest.put(guest.top + index * 8, guest.top | 3)
    guest.enable()
    assert guest.shadow.counters["walks_cut_short"] == 1
    assert len(guest.lines) == 1
    held = guest.held
    for index in range(512):
        guest.put(guest.top + index * 8, 0)
    guest.flush(DOMAIN)
    assert held
    assert guest.held == []


def test_guest_ram_is_whole_pages(guest: Guest) -> None:
    with pytest.raises(ValueError):
        Shadow(guest.unit, BDF, guest.container, guest.memory, [Ram(0, 100)], print)


def test_held_mappings_are_told(guest: Guest) -> None:
    guest.write(0, 0x5000 | 1)
    guest.flush(DOMAIN)
    assert guest.shadow.mappings() == [Mapping(0, 0x5000, PAGE, R)]


# --- against an independent reader


def oracle(guest: Guest) -> list[Run]:
    """What the device may reach according to the tables, read entry by entry without the product's code."""

    def words(address: int, count: int) -> tuple[int, ...]:
        inside = TABLES <= address < TABLES + TABLES_SIZE
        return struct.unpack_from(f"<{count}Q", guest.bytes, address - TABLES) if inside else ()

    def table(address: int, level: int, base: int, allowed: int) -> list[Run]:
        found: list[Run] = []
        size = 1 << 3 + 9 * level
        for index, entry in enumerate(words(address, 512)):
            access = allowed & entry & 3
            if not access:
                continue
            large = bool(entry & 0x80) and level > 1
            if large and level == 4:
                continue
            if entry & (1 << 11 | 1 << 62 | 0xF << 48):
                continue
            target = entry & 0xFFFF_FFFF_F000
            if level > 1 and not large:
                found += table(target, level - 1, base + index * size, access)
            elif target % size == 0 and not (target < 0xFEF0_0000 and target + size > 0xFEE0_0000):
                found.append((base + index * size, target, size, access))
        return found

    low, high = words(CONTEXTS + BDF * 16, 2)
    kind, width = low >> 2 & 3, high & 7
    if not low & 1 or low & 0xFF0 or low >> 48 or high >> 24 or high & 0x80 or width not in (1, 2):
        return []
    if kind == 2:
        return RAM_RUNS
    if kind != 0:
        return []
    visible: list[Run] = []
    for iova, gpa, size, access in table(low & ~0xFFF, 2 + width, 0, 3):
        # Cut at the borders of RAM and of the interrupt range, then keep the pieces that may be there.
        borders = {iova, iova + size, 0xFEE0_0000, 0xFEF0_0000}
        borders |= {edge - gpa + iova for base, _, length, _ in RAM_RUNS for edge in (base, base + length)}
        cuts = sorted(border for border in borders if iova <= border <= iova + size)
        for start, end in pairwise(cuts):
            at = gpa + start - iova
            in_ram = any(base <= at < base + length for base, _, length, _ in RAM_RUNS)
            if in_ram and not 0xFEE0_0000 <= start < 0xFEF0_0000:
                visible.append((start, at, end - start, access))
    return merged(visible)


IOVAS = st.builds(
    lambda i4, i3, i2, i1: i4 << 39 | i3 << 30 | i2 << 21 | i1 << 12,
    st.sampled_from((0, 0, 0, 1, 511)),
    st.sampled_from((0, 3, 3, 511)),
    st.sampled_from((0, 1, 502, 503, 504, 511)),
    st.sampled_from((0, 1, 2, 255, 256, 511)),
)
ADDRESSES = st.sampled_from(
    (0, PAGE, 0x1234_5000, 0x7FFF_F000, 0x8000_0000, 0x7FE0_0000, 0xFEE0_0000, 0xFEF0_0000, 4 * GIGA, 5 * GIGA - PAGE)
)
FLAGS = st.sampled_from((1, 2, 3, 3, 3, 3, 3, 3 | 1 << 11, 3 | 1 << 62, 3 | 1 << 49, 3 | 1 << 5, 3 | 1 << 63))
LEVELS = st.sampled_from((1, 1, 1, 1, 2, 2, 3))
CHANGES = st.one_of(
    st.tuples(st.just("leaf"), IOVAS, LEVELS, ADDRESSES, FLAGS),
    st.tuples(st.just("clear"), IOVAS, st.sampled_from((1, 1, 2, 3, 4)), st.just(0), st.just(0)),
    st.tuples(st.just("table"), IOVAS, st.sampled_from((2, 3)), st.just(0), st.sampled_from((1, 2, 3))),
    st.tuples(st.just("split"), IOVAS, st.just(2), st.just(0), st.just(3)),
    st.tuples(st.just("elsewhere"), IOVAS, st.sampled_from((2, 3)), st.just(0), st.just(3)),
)
CONTEXTS_TO_BE = st.sampled_from(("tables", "tables", "3 levels", "domain 9", "absent", "reserved", "type 3", "direct"))
STEPS = st.one_of(
    st.tuples(
        st.just("tables"), st.lists(CHANGES, min_size=1, max_size=5), st.sampled_from(("psi", "domain", "global"))
    ),
    st.tuples(st.just("context"), CONTEXTS_TO_BE, st.sampled_from(("device", "domain", "global"))),
)


class Player:
    """Plays steps on a guest; says what has to be invalidated for them."""

    def __init__(self) -> None:
        self.guest = guest = Guest()
        guest.context(guest.top | 1)
        guest.enable()
        self.domain = 7
        self.levels = 4
        self.spare = [guest.table() for _ in range(200)]

    def change(self, kind: str, iova: int, level: int, address: int, flags: int) -> tuple[int, int] | None:
        """Returns the range (iova, level) to invalidate; None where nothing was changed."""
        guest = self.guest
        guest.free = min(self.spare, default=0)
        guest.table = self.take  # type: ignore[method-assign]
        if len(self.spare) < 8:
            return None
        place = guest.entry_at(iova, level)
        if place is None:
            return None
        size = 1 << 3 + 9 * level
        if kind == "split":
            return self.split(place, iova)
        value = {
            "leaf": address // size * size | flags | (LARGE if level > 1 else 0),
            "clear": 0,
            "table": self.filled() | flags if kind == "table" else 0,
            "elsewhere": 0x6_6600_0000 | flags,
        }[kind]
        guest.put(place, value)
        return iova // size * size, level

    def split(self, place: int, iova: int) -> tuple[int, int]:
        """Small pages for a large one; only that of `iova` changes, and only it has to be invalidated."""
        entry = self.guest.get(place)
        if not entry & LARGE:
            entry = 0x2000_0000 | LARGE | 3
            self.guest.put(place, entry)
            self.guest.flush(DOMAIN, domain=self.domain)
        table = self.take()
        for index in range(512):
            self.guest.put(table + index * 8, (entry & ~LARGE) + index * PAGE)
        self.guest.put(table + (iova >> 12 & 511) * 8, 0)
        self.guest.put(place, table | 3)
        return iova, 1

    def take(self) -> int:
        return self.spare.pop()

    def filled(self) -> int:
        """A table with pages at both ends, if it is taken as one of level 1."""
        table = self.take()
        self.guest.put(table, 0x40_0000 | 3)
        self.guest.put(table + 511 * 8, 0x40_1000 | 3)
        return table

    def invalidate(self, ranges: list[tuple[int, int]], how: str) -> None:
        if how == "psi" and self.levels == 4 and all(level < 4 for _, level in ranges):
            for iova, level in ranges:
                self.guest.flush(PAGES, iova, 9 * (level - 1), self.domain)
        elif how == "global":
            self.guest.flush(GLOBAL)
        else:
            self.guest.flush(DOMAIN, domain=self.domain)

    def set_context(self, kind: str, how: str) -> None:
        guest = self.guest
        old, self.domain = self.domain, 9 if kind == "domain 9" else 7
        # The same tables, read from another level, say something about other addresses than they were written for.
        self.levels = 3 if kind == "3 levels" else 4
        guest.context(
            *{
                "tables": (guest.top | 1, 0x702),
                "3 levels": (guest.top | 1, 0x701),
                "domain 9": (guest.top | 1, 0x902),
                "absent": (0, 0),
                "reserved": (guest.top | 0x101, 0x702),
                "type 3": (guest.top | 3 << 2 | 1, 0x702),
                "direct": (2 << 2 | 1, 0x702),
            }[kind]
        )
        granularity = {
            "device": ContextGranularity.DEVICE,
            "domain": ContextGranularity.DOMAIN,
            "global": ContextGranularity.GLOBAL,
        }[how]
        guest.flush_context(granularity)
        guest.flush(DOMAIN, domain=old)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(STEPS, min_size=1, max_size=14))
def test_container_equals_the_tables_after_every_invalidation(steps: list[tuple[str, object, str]]) -> None:
    player = Player()
    for kind, what, how in steps:
        if kind == "context":
            player.set_context(str(what), how)
        else:
            ranges = [player.change(*change) for change in what]  # type: ignore[attr-defined]
            player.invalidate([changed for changed in ranges if changed is not None], how)
        assert player.guest.held == oracle(player.guest)
    player.guest.unit.write(Reg.GCMD, 4, 0)
    assert player.guest.held == RAM_RUNS
    player.guest.unit.write(Reg.GCMD, 4, Command.TE)
    assert player.guest.held == oracle(player.guest)
