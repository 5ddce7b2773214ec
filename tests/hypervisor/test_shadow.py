"""The shadow of a guest's tables: what each kind of invalidation makes of the container."""

from __future__ import annotations

from errno import EINVAL

import pytest

from tests.hypervisor.shadow_guest import (
    BDF,
    DOMAIN,
    GIGA,
    GLOBAL,
    LARGE,
    MEGA,
    OTHER,
    PAGE,
    PAGES,
    RAM_RUNS,
    ROOT,
    RW,
    Guest,
    R,
    W,
)
from viommu_actors.hypervisor import shadow as shadow_module
from viommu_actors.hypervisor.held import Mapping
from viommu_actors.hypervisor.shadow import Ram, Shadow, View
from viommu_actors.spec.vtd import Access, Command, ContextGranularity, Reg


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
    """As far as the entry reaches, though one page of it is invalidated."""
    for page in (0, 3):
        guest.write(page * PAGE, 0x5000 | 3)
    guest.flush(DOMAIN)
    place = guest.entry_at(0, level)
    assert place is not None
    guest.put(place, value)
    guest.flush(PAGES, 0)
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
