"""Zones and buffers: inside hugepages, apart from each other, with both addresses in step."""

from __future__ import annotations

from errno import ENOMEM
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viommu_actors.app.application import buffers_for, hugepages_for
from viommu_actors.app.mempool import Heap, Hugepage, Mempool, Zone
from viommu_actors.app.pmd_nic import RING_SIZE
from viommu_actors.app.system import HUGEPAGE

#: Not in the same order by either address, as physical memory comes.
PAGES = (Hugepage(0x10_0000_0000, 0x4000_0000), Hugepage(0x10_0020_0000, 0x1000_0000))


@given(st.lists(st.tuples(st.integers(1, HUGEPAGE), st.sampled_from((1, 64, 4096, HUGEPAGE))), max_size=20))
def test_zones_lie_in_one_hugepage_each_and_apart(wishes: list[tuple[int, int]]) -> None:
    heap = Heap(PAGES)
    zones: list[Zone] = []
    for size, align in wishes:
        try:
            zone = heap.reserve(size, align)
        except OSError as error:
            assert error.errno == ENOMEM
            continue
        zones.append(zone)
        [page] = [page for page in PAGES if page.vaddr <= zone.vaddr and zone.vaddr + size <= page.vaddr + HUGEPAGE]
        assert zone.size == size
        assert zone.iova - page.iova == zone.vaddr - page.vaddr
        assert zone.vaddr % align == 0
    ordered = sorted(zones, key=lambda zone: zone.vaddr)
    assert all(a.vaddr + a.size <= b.vaddr for a, b in pairwise(ordered))


def test_enomem_when_no_hugepage_has_room() -> None:
    heap = Heap(PAGES[:1])
    heap.reserve(HUGEPAGE - 4096, 4096)
    with pytest.raises(OSError) as caught:
        heap.reserve(8192, 4096)
    assert caught.value.errno == ENOMEM
    assert heap.reserve(4096, 4096).vaddr == PAGES[0].vaddr + HUGEPAGE - 4096


@pytest.mark.parametrize("ports", range(1, 17))
def test_the_least_of_hugepages_holds_all_that_an_application_reserves(ports: int) -> None:
    size = hugepages_for(ports)
    heap = Heap([Hugepage(PAGES[0].vaddr + at, PAGES[0].iova + at) for at in range(0, size, HUGEPAGE)])
    Mempool(heap, buffers_for(ports), 4096)
    for _ in range(2 * ports):
        heap.reserve(RING_SIZE * 16, 4096)
    heap.reserve(4096, 4096)


def test_a_pool_gives_each_buffer_once() -> None:
    pool = Mempool(Heap(PAGES), 3, 4096)
    taken = [pool.get(), pool.get(), pool.get()]
    assert pool.get() is None
    assert len({mbuf.vaddr for mbuf in taken if mbuf is not None}) == 3
    for mbuf in taken:
        assert mbuf is not None
        mbuf.free()
    assert pool.available == 3
