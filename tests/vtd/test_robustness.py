"""Nothing that a guest writes makes the unit raise, hang or grow."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.spec.vtd import Access, Command, InvalidationWait, Reg
from viommu_actors.vtd import RemappingUnit, UnitConfig

words = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 0xF000).map(lambda value: value & ~0xFFF | 3),
    st.builds(lambda kind, rest: kind | rest << 4, st.integers(0, 15), st.integers(0, 0xFFFFF)),
    st.sampled_from([0, 1, 3, 0xFEE00003, 2**64 - 1]),
)
ON = Command.TE | Command.QIE
registers = st.tuples(
    st.one_of(
        st.integers(-8, 0x1010),
        st.sampled_from([Reg.GCMD, Reg.RTADDR, Reg.CCMD, Reg.IQT, Reg.IQA, Reg.IOTLB, Reg.IVA, Reg.FSTS, Reg.FECTL]),
    ),
    st.sampled_from([1, 2, 4, 4, 8, 8]),
    st.one_of(words, st.sampled_from([ON, ON | Command.SRTP, 0x1000, 0x70])),
)
requests = st.tuples(
    st.integers(0, 0xFFFF),
    st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 0xFFFF)),
    st.sampled_from([Access.READ, Access.WRITE, Access.BOTH]),
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["spec", "qemu"]),
    st.lists(st.tuples(st.integers(0, 0x1FFF), words), max_size=60),
    st.lists(st.one_of(registers, requests), max_size=60),
)
def test_garbage(quirks: Any, contents: list[tuple[int, int]], steps: list[tuple[int, int, Any]]) -> None:
    view = memoryview(bytearray(0x10000))
    for index, word in contents:
        struct.pack_into("<Q", view, index * 8, word)
    config = UnitConfig(caching_mode=True, intremap=True, quirks=quirks)
    unit = RemappingUnit(config, PhysicalMemory([Slot("ram", 0, view)]), lambda address, data: None)
    for first, second, third in steps:
        if isinstance(third, Access):
            unit.translate(first, second, third)
        else:
            unit.write(first, second, int(third))
            assert 0 <= unit.read(first, second) < 1 << 8 * max(second, 4)


def test_pages_that_are_their_own_tables(rig: Any) -> None:
    """A self-map walks to the end and no further."""
    machine = rig()
    table = machine.context(0x18)
    machine.memory.write_u64(table, table | 3)
    machine.start()
    assert machine.read(0x123) == (table | 0x123, None)


@pytest.mark.parametrize("quirks", ["spec", "qemu"])
def test_waits_that_overwrite_the_queue_end(rig: Any, quirks: str) -> None:
    """A queue whose descriptors rewrite each other is carried out to the tail and stops there."""
    machine = rig(quirks=quirks)
    machine.start(queue=True)
    for index in range(256):
        target = machine.queue + (index + 1) % 256 * 16 + 4
        machine.words(machine.queue + 16 * index, InvalidationWait(status_write=True, data=9, address=target).encode())
    machine.unit.write(Reg.IQT, 8, 255 << 4)
    assert machine.unit.read(Reg.IQH, 8) == 255 << 4
    assert machine.unit.counters["waits"] == 255
