"""Walks and leaves against a second reading of the specification's tables, written another way."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.spec.vtd import Access
from viommu_actors.vtd import Context, TableFault, UnitConfig, leaves, walk
from viommu_actors.vtd.tables import leaf_at

TABLES = [0x1000 * number for number in range(1, 7)]
TOP = TABLES[0]
INDEXES = (0, 1, 511)


# --- the reference: VT-d 9.8, bit by bit -----------------------------------------------------------------------------


def ones(*spans: tuple[int, int]) -> set[int]:
    return {bit for low, high in spans for bit in range(low, high + 1)}


def reserved_bits(kind: str, haw: int, snoop: bool, device_tlb: bool) -> set[int]:
    """Kinds: PML4E, PDPE, PDE (to a table), PTE, 2M, 1G (leaves)."""
    bits = ones((haw, 51)) | {62}
    if kind in ("PML4E", "PDPE", "PDE") or not snoop:
        bits |= {11}
    if kind in ("PTE", "2M", "1G") and device_tlb:
        bits -= {62}
    bits |= {"PML4E": {7}, "2M": ones((12, 20)), "1G": ones((12, 29))}.get(kind, set())
    return bits


def reference(words: dict[int, int], levels: int, address: int, wants: str, config: UnitConfig) -> Any:
    """("ok", physical, bytes, rights) or a reason code, by the specification's order of levels."""
    if address >= 2 ** (48 if levels == 4 else 39) or address >= 2**config.aw_bits:
        return 4
    fields = [address // 2**39 % 512, address // 2**30 % 512, address // 2**21 % 512, address // 2**12 % 512]
    kinds = [("PML4E", 2**39), ("PDPE", 2**30), ("PDE", 2**21), ("PTE", 2**12)]
    rights = {"R", "W"}
    base = TOP
    for step, (index, (kind, size)) in enumerate(zip(fields[4 - levels :], kinds[4 - levels :], strict=True)):
        word = words.get(base + 8 * index) if base in TABLES else None
        if word is None:
            return 3 if step == 0 else 7
        text = f"{word:064b}"[::-1]
        granted = {name for bit, name in ((0, "R"), (1, "W")) if text[bit] == "1"}
        for name, code in (("W", 5), ("R", 6)):
            if name in wants and name not in granted:
                return code
        rights &= granted
        if kind in ("PDPE", "PDE") and text[7] == "1":
            kind = {"PDPE": "1G", "PDE": "2M"}[kind]
        bad = reserved_bits(kind, config.aw_bits, config.snoop_control, config.device_iotlb)
        if any(text[bit] == "1" for bit in bad):
            return 0xC
        base = int(text[12 : config.aw_bits][::-1], 2) * 4096
        if kind in ("PTE", "2M", "1G"):
            if any(base <= page < base + size for page in range(0xFEE00000, 0xFEF00000, 4096)):
                return 0xE
            return ("ok", base + address % size, size, rights)
    raise AssertionError


# --- random tables ---------------------------------------------------------------------------------------------------

frames = st.one_of(
    st.sampled_from(TABLES),
    st.sampled_from([0, 0x200000, 0x40000000, 0x80000000, 0xFEE00000, 0xFEC00000, 0xC0000000, 0xFEF00000]),
)
entries = st.builds(
    lambda frame, rights, large, extra: frame | rights | large << 7 | (1 << extra if extra is not None else 0),
    frames,
    st.sampled_from([3, 3, 3, 3, 1, 2, 0]),
    st.booleans(),
    st.one_of(st.none(), st.none(), st.none(), st.integers(2, 63)),
)
tables = st.lists(entries, min_size=len(TABLES) * len(INDEXES), max_size=len(TABLES) * len(INDEXES))
configs = st.builds(
    UnitConfig,
    aw_bits=st.sampled_from([39, 48]),
    device_iotlb=st.booleans(),
    snoop_control=st.booleans(),
)
WANTED = (Access.READ, Access.WRITE, Access.BOTH)
parts = st.sampled_from(INDEXES)
addresses = st.builds(
    lambda a, b, c, d, offset: a << 39 | b << 30 | c << 21 | d << 12 | offset,
    st.sampled_from([0, 0, 0, 1, 511, 512]),
    parts,
    parts,
    parts,
    st.integers(0, 4095),
)


def memory_of(words: dict[int, int]) -> PhysicalMemory:
    view = memoryview(bytearray(0x7000))
    for address, word in words.items():
        struct.pack_into("<Q", view, address, word)
    return PhysicalMemory([Slot("tables", 0x1000, view[0x1000:])])


def words_of(values: list[int]) -> dict[int, int]:
    words = {table + 8 * index: 0 for table in TABLES for index in range(512)}
    slots = [table + 8 * index for table in TABLES for index in INDEXES]
    return words | dict(zip(slots, values, strict=True))


def context_of(levels: int, config: UnitConfig) -> Context:
    width = min(48 if levels == 4 else 39, config.aw_bits)
    return Context(0x18, 1, False, False, True, TOP, levels, width)


@settings(max_examples=300, deadline=None)
@given(tables, configs, st.lists(addresses, min_size=1, max_size=8), st.sampled_from(WANTED))
def test_walk_is_the_reference(values: list[int], config: UnitConfig, probes: list[int], access: Access) -> None:
    words = words_of(values)
    memory = memory_of(words)
    levels = 3 if config.aw_bits == 39 else 4
    wants = ("R" if access & Access.READ else "") + ("W" if access & Access.WRITE else "")
    for address in probes:
        expected = reference(words, levels, address, wants, config)
        try:
            leaf = walk(memory, context_of(levels, config), address, access, config)
        except TableFault as fault:
            assert fault.reason == expected
            assert fault.fault_disable
            continue
        rights = {name for bit, name in ((Access.READ, "R"), (Access.WRITE, "W")) if leaf.access & bit}
        assert expected == ("ok", leaf.address + address - leaf.iova, leaf.size, rights)


@settings(max_examples=200, deadline=None)
@given(tables, configs, st.lists(addresses, min_size=1, max_size=6))
def test_leaves_say_what_walks_find(values: list[int], config: UnitConfig, probes: list[int]) -> None:
    words = words_of(values)
    memory = memory_of(words)
    levels = 3 if config.aw_bits == 39 else 4
    context = context_of(levels, config)
    for address in probes:
        found = list(leaves(memory, context, address, address, config))
        assert [leaf_at(memory, context, address, config)] == (found or [None])
        if address >> context.width:
            assert found == []
            continue
        (leaf,) = found
        assert leaf.iova <= address < leaf.iova + leaf.size
        for access, wants in ((Access.READ, "R"), (Access.WRITE, "W")):
            expected = reference(words, levels, address, wants, config)
            if leaf.access & access:
                assert expected[:3] == ("ok", leaf.address + address - leaf.iova, leaf.size)
            else:
                assert isinstance(expected, int)


@settings(max_examples=50, deadline=None)
@given(tables, configs, st.integers(0, 1 << 30), st.integers(0, 1 << 24))
def test_leaves_leave_no_gap(values: list[int], config: UnitConfig, first: int, length: int) -> None:
    words = words_of(values)
    context = context_of(3, config)
    expected = None
    last = first + length
    for leaf in leaves(memory_of(words), context, first, last, config):
        if expected is None:
            assert leaf.iova <= first < leaf.iova + leaf.size
        else:
            assert leaf.iova == expected
        assert leaf.iova <= last
        expected = leaf.iova + leaf.size
    assert expected is not None and expected > last


@pytest.mark.parametrize("level", [1, 2, 3])
def test_leaves_tell_pages_holes_and_bad_entries_apart(level: int) -> None:
    values = [0] * 18
    chain = [TABLES[1] | 3, TABLES[2] | 3, TABLES[3] | 3]
    for step in range(4 - level):
        values[3 * step] = chain[step]
    large = 0x80 if level > 1 else 0
    at = 3 * (4 - level)
    values[at : at + 3] = [0x40000000 | 1 | large, 0x80000000 | 3 | large | 1 << 62, 0xC0000000 | 2 | large]
    config = UnitConfig()
    size = 1 << 12 + 9 * (level - 1)
    found = list(leaves(memory_of(words_of(values)), context_of(4, config), 0, 512 * size - 1, config))
    assert len(found) == 512
    assert (found[0].address, found[0].access, found[0].reason) == (0x40000000, Access.READ, None)
    assert (found[1].access, found[1].reason) == (Access.NONE, 0xC)
    assert (found[2].access, found[2].reason) == (Access.NONE, None)
    last = found[511]
    assert (last.access, last.reason) == ((Access.NONE, 0xE) if level == 3 else (Access.WRITE, None))
