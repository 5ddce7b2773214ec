"""Whatever a guest does to its tables: after each invalidation the container equals them.

They are read here entry by entry, by code that shares nothing with the product's.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hypervisor.shadow_guest import (
    BDF,
    CONTEXTS,
    DOMAIN,
    GIGA,
    GLOBAL,
    LARGE,
    PAGE,
    PAGES,
    RAM_RUNS,
    TABLES,
    TABLES_SIZE,
    Guest,
    Run,
    merged,
)
from viommu_actors.spec.vtd import Command, ContextGranularity, Reg


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
