"""Byte enables and the rules for requests, by example."""

from __future__ import annotations

import pytest

from viommu_actors.pci.fragment import byte_count, enabled_ranges, enables, fragments, well_formed


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
