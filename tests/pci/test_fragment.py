"""Fragmentation: no request breaks a rule, and together they are the range."""

from __future__ import annotations

import pytest

from viommu_actors.pci.fragment import byte_count, enabled_ranges, enables, fragments, well_formed

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
    assert all(before[1] < after[0] for before, after in zip(runs, runs[1:]))


@pytest.mark.parametrize(
    ("request_", "legal"),
    [
        ((0x1000, 1, 0b0000, 0b0000), True),  # zero-length
        ((0x1000, 1, 0b1010, 0b0000), True),  # one dword: any enables
        ((0x1000, 1, 0b1111, 0b0001), False),  # one dword has no last enables
        ((0x1000, 2, 0b1010, 0b0101), True),  # a quadword aligned pair: any but none
        ((0x1004, 2, 0b1010, 0b0101), False),
        ((0x1000, 2, 0b0000, 0b0001), False),
        ((0x1000, 2, 0b1111, 0b0000), False),
        ((0x1000, 3, 0b0111, 0b0001), False),  # a hole behind the first dword
        ((0x1000, 3, 0b1110, 0b0111), True),
        ((0x1000, 3, 0b1110, 0b1100), False),
        ((0x1002, 1, 0b1111, 0b0000), False),  # not dword aligned
        ((0x1FFC, 2, 0b1111, 0b1111), False),  # crosses 4 KiB
        ((0x1000, 1024, 0b1111, 0b1111), True),
        ((0x1000, 1025, 0b1111, 0b1111), False),
        ((0x1000, 0, 0b1111, 0b0000), False),
    ],
)
def test_byte_enable_rules(request_: tuple[int, int, int, int], legal: bool) -> None:
    assert well_formed(*request_) is legal


def test_enables_of_single_bytes() -> None:
    assert enables(0x1003, 1) == (0b1000, 0, 1)
    assert enables(0x1003, 2) == (0b1000, 0b0001, 2)
    assert enables(0x1001, 2) == (0b0110, 0, 1)


def test_zero_length_request_counts_one_byte() -> None:
    assert byte_count(1, 0, 0) == 1
    assert enabled_ranges(1, 0, 0) == []


def test_a_range_wraps_at_the_end_of_the_address_space() -> None:
    pieces = list(fragments(2**64 - 8, 16, 4096))
    assert [(piece.address, piece.length) for piece in pieces] == [(2**64 - 8, 8), (0, 8)]
