"""Fragmentation: no request breaks a rule, and together they are the range."""

from __future__ import annotations

from itertools import pairwise

import pytest

from viommu_actors.pci.fragment import byte_count, enabled_ranges, fragments, well_formed

hypothesis = pytest.importorskip("hypothesis", reason="property tests need hypothesis")
given, st = hypothesis.given, hypothesis.strategies

ranges = given(
    address=st.integers(0, 2**64 - 1),
    length=st.integers(0, 20000),
    limit=st.sampled_from([128, 256, 512, 1024, 2048, 4096]),
)


@ranges
def test_fragments_keep_the_rules(address: int, length: int, limit: int) -> None:
    for piece in fragments(address, length, limit):
        assert well_formed(piece.address, piece.dwords, piece.first_be, piece.last_be)
        assert piece.dwords * 4 <= limit
        assert piece.address // 4096 == (piece.address + piece.dwords * 4 - 1) // 4096
        assert byte_count(piece.dwords, piece.first_be, piece.last_be) == piece.length


@ranges
def test_fragments_together_are_the_range(address: int, length: int, limit: int) -> None:
    covered = 0
    for piece in fragments(address, length, limit):
        assert piece.offset == covered
        [(start, stop)] = enabled_ranges(piece.dwords, piece.first_be, piece.last_be)
        assert (piece.address + start) % 2**64 == (address + covered) % 2**64
        assert stop - start == piece.length
        covered += piece.length
    assert covered == length


@given(dwords=st.integers(1, 6), first=st.integers(0, 15), last=st.integers(0, 15))
def test_enabled_ranges_are_the_enabled_bytes(dwords: int, first: int, last: int) -> None:
    expected = {byte for byte in range(4) if first >> byte & 1}
    if dwords > 1:
        expected |= set(range(4, (dwords - 1) * 4))
        expected |= {(dwords - 1) * 4 + byte for byte in range(4) if last >> byte & 1}
    runs = enabled_ranges(dwords, first, last)
    assert {byte for start, stop in runs for byte in range(start, stop)} == expected
    assert all(before[1] < after[0] for before, after in pairwise(runs))
