"""What counts as growth, and that the books of every level balance while things come and go."""

from __future__ import annotations

from typing import Any

from tests.kernel.fake_machine import FakeMachine, endpoint
from viommu_actors.actors.books import kernel_books
from viommu_actors.kernel.dma import Direction
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.measure.soak import GROWTH_KIB, growth
from viommu_actors.vtd.config import UnitConfig

EDU, PAGE = 0x20, 4096


def samples(series: list[int]) -> list[dict[str, Any]]:
    return [{"memory_kib": {"host": kib, "guest": 20_000}} for kib in series]


def test_growth_is_what_goes_on_after_the_first_third() -> None:
    assert growth(samples([10_000, 15_000, 20_000] + [20_000] * 6)) == {}
    assert growth(samples([20_000 + 100 * number for number in range(9)])) == {}, "less than what counts"
    leaking = growth(samples([20_000 + 2 * GROWTH_KIB * number for number in range(9)]))
    assert leaking == {"host": 6 * GROWTH_KIB}
    assert growth(samples([1, 10**6, 10**9])) == {}, "too few to tell"


def test_books_balance_at_every_step_and_tell_a_mapping_that_nobody_counted() -> None:
    machine = FakeMachine(unit=UnitConfig(caching_mode=True), functions={EDU: endpoint()})
    kernel = Kernel(machine, drivers=())
    kernel.boot(machine.boot_params)
    dma, paddr = kernel.dma(kernel.device(EDU)), kernel.pages.alloc(16)

    def balance() -> dict[str, int]:
        books = kernel_books(kernel, None)
        assert all(book["mapped"] - book["unmapped"] == book["live"] for book in books)
        return {book["level"]: book["live"] for book in books}

    empty = balance()
    one = dma.map(paddr, PAGE, Direction.TO_DEVICE)
    many = dma.map(paddr, 16 * PAGE, Direction.TO_DEVICE)
    scattered = dma.map_sg([(paddr, PAGE), (paddr + 2 * PAGE, PAGE)], Direction.TO_DEVICE)
    full = balance()
    assert full["DMA API, buffers"] == empty["DMA API, buffers"] + 3
    assert full["page tables, bytes"] == empty["page tables, bytes"] + 19 * PAGE
    dma.unmap(one, PAGE, Direction.TO_DEVICE)
    balance()
    dma.unmap(many, 16 * PAGE, Direction.TO_DEVICE)
    dma.unmap_sg(scattered, [PAGE, PAGE], Direction.TO_DEVICE)
    assert balance() == empty
    assert kernel.iommu is not None
    domain = kernel.iommu.domains[0]
    domain._table.map(0x10_0000, paddr, PAGE, 1)
    assert domain.live != domain.mapped - domain.unmapped
