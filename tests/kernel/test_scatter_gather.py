"""Scattered buffers: one range of addresses and one invalidation, whatever the number of segments."""

from __future__ import annotations

from collections import Counter
from errno import EINVAL, EIO

import pytest

from tests.kernel.fake_machine import FakeMachine, endpoint
from viommu_actors.kernel.dma import Direction
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.vtd.config import UnitConfig

EDU, PAGE = 0x20, 4096


def booted(command_line: str = "intel_iommu=on", caching_mode: bool = True) -> tuple[FakeMachine, Kernel]:
    machine = FakeMachine(command_line, UnitConfig(caching_mode=caching_mode), {EDU: endpoint()})
    kernel = Kernel(machine, drivers=())
    kernel.boot(machine.boot_params)
    return machine, kernel


def scattered(kernel: Kernel, count: int) -> list[tuple[int, int]]:
    """Segments that do not lie beside each other; the first begins within its page."""
    pages = [kernel.pages.alloc() for _ in range(2 * count)][::2]
    return [(page + 100 if not index else page, PAGE - 100 if not index else PAGE) for index, page in enumerate(pages)]


@pytest.mark.parametrize("caching_mode", [True, False])
@pytest.mark.parametrize("count", [1, 2, 16])
def test_one_invalidation_for_all_segments(count: int, caching_mode: bool) -> None:
    machine, kernel = booted(caching_mode=caching_mode)
    dma, segments = kernel.dma(kernel.device(EDU)), scattered(kernel, count)
    for number, (paddr, _) in enumerate(segments):
        machine.memory.write(paddr, bytes([number]) * 8)
    before = Counter(kernel.counters)
    iovas = dma.map_sg(segments, Direction.TO_DEVICE)
    assert kernel.counters["invalidations"] - before["invalidations"] == caching_mode
    for number, iova in enumerate(iovas):
        assert machine.dma_read(EDU, iova, 8) == bytes([number]) * 8
    assert [iova - iovas[0] for iova in iovas[1:]] == [number * PAGE - 100 for number in range(1, count)]
    before = Counter(kernel.counters)
    dma.unmap_sg(iovas, [size for _, size in segments], Direction.TO_DEVICE)
    assert kernel.counters["invalidations"] - before["invalidations"] == 1
    assert not any(machine.dma_read(EDU, iova, 8) for iova in iovas)
    assert dma.map_sg(segments, Direction.TO_DEVICE) == iovas, "the same addresses again"


def test_what_fails_leaves_nothing_mapped() -> None:
    machine, kernel = booted()
    dma = kernel.dma(kernel.device(EDU))
    good, beyond = kernel.pages.alloc(), 1 << 60
    with pytest.raises(OSError):
        dma.map_sg([(good, PAGE), (beyond, PAGE)], Direction.TO_DEVICE)
    iova = dma.map(good, 2 * PAGE, Direction.TO_DEVICE)
    dma.unmap(iova, 2 * PAGE, Direction.TO_DEVICE)
    assert machine.dma_read(EDU, iova, 8) is None
    with pytest.raises(OSError) as raised:
        dma.map_sg([], Direction.TO_DEVICE)
    assert raised.value.errno == EINVAL


def test_without_translation_segments_stay_where_they_are() -> None:
    machine, kernel = booted("intel_iommu=on iommu=pt")
    dma, segments = kernel.dma(kernel.device(EDU)), scattered(kernel, 4)
    writes = machine.mmio["writes"]
    iovas = dma.map_sg(segments, Direction.BIDIRECTIONAL)
    assert iovas == [paddr for paddr, _ in segments]
    dma.unmap_sg(iovas, [size for _, size in segments], Direction.BIDIRECTIONAL)
    assert machine.mmio["writes"] == writes
    dma.set_mask(12)
    with pytest.raises(OSError) as raised:
        dma.map_sg(segments, Direction.TO_DEVICE)
    assert raised.value.errno == EIO
