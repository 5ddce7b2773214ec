"""Which port an address is behind, and what a back end may access: against plain models."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from viommu_actors.spec.vhost import Access
from viommu_actors.vswitch.chain import runs
from viommu_actors.vswitch.device_iotlb import DeviceIotlb
from viommu_actors.vswitch.mac_table import MacTable

SPACE = 64


def test_an_address_is_forgotten_when_it_was_not_seen_for_long() -> None:
    table: MacTable[str] = MacTable(idle=300)
    table.learn(b"first", "a", 0)
    assert table.find(b"first", 300) == "a"
    table.learn(b"first", "b", 300)
    assert table.find(b"first", 600) == "b"
    assert table.find(b"first", 600.5) is None
    assert len(table) == 0


def test_who_makes_up_addresses_has_his_own_forgotten() -> None:
    table: MacTable[str] = MacTable(capacity=100)
    table.learn(b"honest", "a", 0)
    for number in range(1000):
        table.learn(number.to_bytes(6, "big"), "rogue", number)
    assert len(table) == 100
    assert table.find(b"honest", 10) == "a"
    assert table.find((999).to_bytes(6, "big"), 999) == "rogue"
    assert table.find((900).to_bytes(6, "big"), 999) is None


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, SPACE - 1), st.integers(1, SPACE), st.sampled_from(list(Access))),
        max_size=30,
    ),
    st.integers(0, SPACE - 1),
    st.integers(1, 8),
    st.sampled_from([Access.READ, Access.WRITE, Access.BOTH]),
)
def test_the_device_iotlb_gives_no_leave_that_was_not_given(
    steps: list[tuple[bool, int, int, Access]], start: int, size: int, wanted: Access
) -> None:
    iotlb = DeviceIotlb()
    ranges: list[tuple[int, int, Access]] = []
    for told, first, length, leave in steps:
        ranges = [each for each in ranges if each[1] <= first or first + length <= each[0]]
        if told:
            ranges.append((first, first + length, leave))
            iotlb.update(first, length, leave)
        else:
            iotlb.invalidate(first, length)
    leaves = {at: leave for first, end, leave in ranges for at in range(first, end)}
    places = range(start, start + size)
    assert iotlb.allows(start, size, wanted) == all(not wanted & ~leaves.get(at, Access(0)) for at in places)
    assert iotlb.missing(start, size) == next((at for at in places if at not in leaves), None)
    assert len(iotlb) == len(ranges)


def test_the_device_iotlb_is_bounded_and_forgets_what_it_was_told_first() -> None:
    iotlb = DeviceIotlb(capacity=4)
    for page in range(6):
        iotlb.update(page * 4096, 4096, Access.BOTH)
    assert len(iotlb) == 4
    assert [iotlb.allows(page * 4096, 1, Access.READ) for page in range(6)] == [False, False, True, True, True, True]


@given(st.lists(st.integers(0, 1023), max_size=40))
def test_few_reads_bring_all_descriptors_in(indices: list[int]) -> None:
    found = list(runs(indices))
    read = {index for first, count in found for index in range(first, first + count)}
    assert read.issuperset(indices)
    assert all(count * 16 <= 4096 for _, count in found)
    assert len(found) <= len(indices)
