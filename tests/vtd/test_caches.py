"""Caches serve what they hold until it is invalidated, by each kind of invalidation and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viommu_actors.spec.vtd import (
    Access,
    Command,
    ContextCacheInvalidate,
    ContextGranularity,
    FaultReason,
    IotlbGranularity,
    IotlbInvalidate,
    IotlbRegister,
    Reg,
    TranslationType,
)
from viommu_actors.vtd.caches import CAPACITY, ContextCache, Iotlb
from viommu_actors.vtd.tables import Context, Leaf

DEVICE = 0x0018
OLD, NEW = 0x300000, 0x400000


def warm(rig: Any, level: int = 1) -> Any:
    """A cached page of domain 1 whose entry then changes behind the unit's back."""
    machine = rig()
    size = 1 << 12 + 9 * (level - 1)
    slot = machine.map(machine.context(DEVICE), 4 * size, 8 * size, level=level)
    machine.start(queue=True)
    assert machine.read(4 * size) == (8 * size, None)
    machine.memory.write_u64(slot, machine.memory.read_u64(slot) + 8 * size)
    assert machine.read(4 * size) == (8 * size, None)
    return machine


GLOBAL, DOMAIN, PAGE = IotlbGranularity.GLOBAL, IotlbGranularity.DOMAIN, IotlbGranularity.PAGE


@pytest.mark.parametrize(
    ("descriptor", "stale"),
    [
        (IotlbInvalidate(GLOBAL), False),
        (IotlbInvalidate(DOMAIN, 1), False),
        (IotlbInvalidate(DOMAIN, 2), True),
        (IotlbInvalidate(PAGE, 1, 0x4000), False),
        (IotlbInvalidate(PAGE, 2, 0x4000), True),
        (IotlbInvalidate(PAGE, 1, 0x5000), True),
        (IotlbInvalidate(PAGE, 1, 0x3000), True),
        (IotlbInvalidate(PAGE, 1, 0x4000 + (256 << 12)), True),
        (IotlbInvalidate(PAGE, 1, 0x0, 3), False),
        (IotlbInvalidate(PAGE, 1, 0x0, 2), True),
        (IotlbInvalidate(PAGE, 1, 0x7000, 2), False),
        (IotlbInvalidate(PAGE, 1, 0x0, 18), False),
        (IotlbInvalidate(PAGE, 1, 1 << 30, 18), True),
        (IotlbInvalidate(PAGE, 1, 0x4000, leaf_only=True), False),
        (IotlbInvalidate(GLOBAL, drain_reads=True, drain_writes=True), False),
        (ContextCacheInvalidate(ContextGranularity.GLOBAL), True),
        (ContextCacheInvalidate(ContextGranularity.DOMAIN, 1), True),
        (ContextCacheInvalidate(ContextGranularity.DEVICE, 1, DEVICE), True),
    ],
)
def test_stale_until_invalidated(rig: Any, descriptor: Any, stale: bool) -> None:
    machine = warm(rig)
    machine.submit_and_wait(descriptor.encode())
    assert machine.read(0x4000) == (0x8000 if stale else 0x10000, None)


@pytest.mark.parametrize("level", [2, 3])
def test_page_selective_invalidation_inside_a_superpage_removes_all_of_it(rig: Any, level: int) -> None:
    machine = warm(rig, level)
    size = 1 << 12 + 9 * (level - 1)
    machine.submit_and_wait(IotlbInvalidate(PAGE, 1, 5 * size).encode())
    assert machine.read(4 * size + 0x1000) == (8 * size + 0x1000, None)
    machine.submit_and_wait(IotlbInvalidate(PAGE, 1, 5 * size - 0x1000).encode())
    assert machine.read(4 * size) == (16 * size, None)


@pytest.mark.parametrize("quirks", ["spec", "qemu"])
@pytest.mark.parametrize(
    "granularity", [IotlbGranularity.GLOBAL, IotlbGranularity.DOMAIN, IotlbGranularity.PAGE], ids=lambda g: g.name
)
def test_iotlb_register(rig: Any, quirks: str, granularity: IotlbGranularity) -> None:
    """OpenVMM's `iotlb_reg`: the register shows the granularity that was carried out."""
    machine = rig(quirks=quirks)
    slot = machine.map(machine.context(DEVICE), 0x5000, OLD)
    machine.start()
    machine.read(0x5000)
    machine.memory.write_u64(slot, NEW | 3)
    assert machine.read(0x5000) == (OLD, None)
    machine.unit.write(Reg.IVA, 8, 0x5000)
    machine.unit.write(Reg.IOTLB, 8, IotlbRegister.IVT | granularity << 60 | 1 << 32)
    value = machine.unit.read(Reg.IOTLB, 8)
    assert not value & IotlbRegister.IVT
    assert value >> IotlbRegister.IAIG_SHIFT & 3 == granularity
    assert machine.read(0x5000) == (NEW, None)


def test_iotlb_register_refuses_a_mask_beyond_mamv(rig: Any) -> None:
    machine = rig()
    machine.unit.write(Reg.IVA, 8, 19)
    machine.unit.write(Reg.IOTLB, 8, IotlbRegister.IVT | 3 << 60)
    assert machine.unit.read(Reg.IOTLB, 8) == 3 << 60
    assert machine.listener.calls == []


def other_table(machine: Any) -> None:
    """Points the context of DEVICE to other tables and another domain, without an invalidation."""
    table = machine.page()
    machine.map(table, 0x5000, NEW)
    machine.context(DEVICE, table=table, domain=9)


@pytest.mark.parametrize(
    ("descriptor", "stale"),
    [
        (ContextCacheInvalidate(ContextGranularity.GLOBAL), False),
        (ContextCacheInvalidate(ContextGranularity.DOMAIN, 1), False),
        (ContextCacheInvalidate(ContextGranularity.DOMAIN, 9), True),
        (ContextCacheInvalidate(ContextGranularity.DEVICE, 1, DEVICE), False),
        (ContextCacheInvalidate(ContextGranularity.DEVICE, 1, 0x20), True),
        (ContextCacheInvalidate(ContextGranularity.DEVICE, 1, DEVICE | 4, 1), False),
        (ContextCacheInvalidate(ContextGranularity.DEVICE, 1, DEVICE | 4, 0), True),
        (ContextCacheInvalidate(ContextGranularity.DEVICE, 1, DEVICE | 2, 1), True),
        (ContextCacheInvalidate(ContextGranularity.DEVICE, 1, DEVICE | 6, 2), False),
        (ContextCacheInvalidate(ContextGranularity.DEVICE, 1, DEVICE | 7, 3), False),
        (ContextCacheInvalidate(ContextGranularity.DEVICE, 1, 0x100 | DEVICE, 3), True),
        (IotlbInvalidate(GLOBAL), True),
    ],
)
def test_context_stale_until_invalidated(rig: Any, descriptor: Any, stale: bool) -> None:
    machine = rig()
    machine.map(machine.context(DEVICE), 0x5000, OLD)
    machine.start(queue=True)
    machine.read(0x5000)
    other_table(machine)
    assert machine.read(0x5000) == (OLD, None)
    machine.submit_and_wait(descriptor.encode())
    assert machine.read(0x5000) == (OLD if stale else NEW, None)


@pytest.mark.parametrize(("quirks", "done"), [("spec", (1, 2, 3)), ("qemu", (1, 1, 3))])
def test_ccmd_invalidation(rig: Any, quirks: str, done: tuple[int, ...]) -> None:
    """QEMU carries out a domain-selective request as a global one and says so."""
    machine = rig(quirks=quirks)
    machine.context(DEVICE, tt=TranslationType.PASS_THROUGH)
    machine.start()
    assert tuple(machine.context_command(granularity, 1, DEVICE) for granularity in (1, 2, 3)) == done
    assert machine.context_command(0) == 0
    assert [call[1] for call in machine.listener.calls if call[0] == "context"] == list(done)


@pytest.mark.parametrize(
    "act",
    [
        lambda machine: machine.command(Command.SRTP),
        lambda machine: (machine.command(Command.TE, False), machine.command(Command.TE)),
    ],
    ids=["SRTP", "TE"],
)
def test_new_root_and_switch_of_translation_empty_the_caches(rig: Any, act: Callable[[Any], Any]) -> None:
    machine = rig()
    machine.map(machine.context(DEVICE), 0x5000, OLD)
    machine.start()
    machine.read(0x5000)
    other_table(machine)
    act(machine)
    assert machine.read(0x5000) == (NEW, None)


def test_nothing_absent_is_cached(rig: Any) -> None:
    """With caching mode it could be; as in QEMU it is not."""
    machine = rig(caching_mode=True)
    machine.start()
    assert machine.read(0x5000).reason is not None
    table = machine.context(DEVICE)
    assert machine.read(0x5000).reason is not None
    machine.map(table, 0x5000, OLD)
    assert machine.read(0x5000) == (OLD, None)


def test_listener_hears_in_order_after_the_caches_and_before_the_wait(rig: Any) -> None:
    machine = warm(rig)
    heard = []
    original = machine.listener.iotlb_invalidated

    def check(*args: int) -> None:
        heard.append((machine.memory.read(machine.status, 4), machine.read(0x4000)))
        original(*args)

    machine.listener.iotlb_invalidated = check
    machine.listener.calls.clear()
    machine.submit_and_wait(
        ContextCacheInvalidate(2, 5).encode(),
        IotlbInvalidate(PAGE, 1, 0x4000, 1).encode(),
        IotlbInvalidate(DOMAIN, 1).encode(),
    )
    assert heard == [(bytes(4), (0x10000, None))] * 2
    assert machine.listener.calls == [("context", 2, 5, 0, 0), ("iotlb", 3, 1, 0x4000, 1), ("iotlb", 2, 1, 0, 0)]


def test_caches_are_bounded() -> None:
    tlb = Iotlb()
    for number in range(3 * CAPACITY):
        tlb.insert(number % 7, Leaf(number << 12, 12, 0, Access.BOTH))
        tlb.insert(number % 7, Leaf(number << 21, 21, 0, Access.BOTH))
        assert len(tlb) <= CAPACITY
    contexts = ContextCache()
    for source in range(3 * CAPACITY):
        contexts.insert(Context(source, 1, False, False, False, 0, 4, 48))
        assert len(contexts.entries) <= CAPACITY


spaces = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([12, 12, 21, 30]), st.integers(0, 40)), min_size=1, max_size=60
)


@settings(max_examples=200, deadline=None)
@given(spaces, st.integers(0, 2), st.integers(0, 1 << 32), st.integers(0, 18))
def test_page_selective_drop_is_overlap(pages: list[tuple[int, int, int]], domain: int, address: int, am: int) -> None:
    """Against plain intervals: gone is every page of the domain that overlaps, and nothing else."""
    tlb = Iotlb()
    held = {}
    for owner, shift, number in pages:
        iova = number << shift if shift > 12 else address + (number - 20 << 12) & ~0xFFF
        if iova >= 0:
            tlb.insert(owner, Leaf(iova, shift, iova, Access.BOTH))
            held[owner, shift, iova >> shift << shift] = iova
    tlb.drop_pages(domain, address & ~0xFFF, am)
    low = address >> 12 + am << 12 + am
    high = low + (1 << 12 + am)
    left = {
        (owner, shift, start)
        for owner, shift, start in held
        if owner != domain or start + (1 << shift) <= low or start >= high
    }
    assert len(tlb) == len(left)
    for owner, shift, start in held:
        if (owner, shift, start) in left and not 0xFEE00000 <= start <= 0xFEEFFFFF:
            assert tlb.find(owner, start) is not None


@pytest.mark.parametrize(
    "descriptor",
    [
        IotlbInvalidate(GLOBAL),
        IotlbInvalidate(DOMAIN, 1),
        IotlbInvalidate(PAGE, 1, 0x4000),
        IotlbInvalidate(PAGE, 1, 0, 9),
    ],
)
def test_what_was_hit_often_goes_too(rig: Any, descriptor: IotlbInvalidate) -> None:
    machine = rig()
    slot = machine.map(machine.context(DEVICE), 0x4000, 0x9000)
    machine.start(queue=True)
    assert [machine.read(0x4000).address for _ in range(4)] == [0x9000] * 4
    assert machine.unit.counters["iotlb_hits"] == 3
    machine.memory.write_u64(slot, 0)
    assert machine.read(0x4000).address == 0x9000
    machine.submit_and_wait(descriptor.encode())
    assert machine.read(0x4000).reason == FaultReason.READ_DENIED


def test_what_was_hit_often_goes_with_its_context(rig: Any) -> None:
    machine = rig()
    machine.map(machine.context(DEVICE), 0x4000, 0x9000)
    machine.start(queue=True)
    assert [machine.read(0x4000).address for _ in range(4)] == [0x9000] * 4
    machine.context(DEVICE, domain=2)
    machine.submit_and_wait(ContextCacheInvalidate(3, 1, DEVICE).encode())
    assert machine.read(0x4000).reason == FaultReason.READ_DENIED
