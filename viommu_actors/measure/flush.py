"""What an invalidation costs the hypervisor by how much is mapped: real tables, unit and shadow, in this process.

A domain-selective invalidation names no page, so everything that the domain maps is walked; a page-selective one walks
its page (Linux commit 78d5f0f500e6 avoids the first for that reason).
"""

from __future__ import annotations

import gc
import random
import statistics
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from viommu_actors.hypervisor.shadow import Ram, Shadow, ShadowPorts, Shadows
from viommu_actors.kernel.domain import Domain
from viommu_actors.kernel.invalidation import QueuedInvalidation
from viommu_actors.kernel.pages import PageAllocator
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.spec.vtd import ENTRY_SIZE, PAGE_SIZE, Access, Command, IotlbGranularity, Reg, RootEntry
from viommu_actors.vtd.config import MAX_ADDRESS_MASK, UnitConfig
from viommu_actors.vtd.unit import RemappingUnit

FEW: Final = 256
#: What a VFIO container takes (vfio_iommu_type1.dma_entry_limit).
MANY: Final = 65_535
#: Page-selective invalidations that make one sample: one alone is near the clock's noise.
_PAGES_A_SAMPLE: Final = 16
_TABLES, _TABLES_SIZE = 1 << 20, 2 << 20
_REQUESTER: Final = 0x18
_DOMAIN: Final = 2
_IOVA: Final = 1 << 30
#: Not congruent with the IOVA, so that every mapping is a page of its own.
_GPA: Final = (4 << 20) + PAGE_SIZE
_RAM: Final = Ram(0, 1 << 30)


class Flushes:
    """A guest domain with so many single-page mappings behind a caching-mode unit, and the shadow of its device."""

    def __init__(self, mappings: int) -> None:
        cpu = _Cpu()
        self.unit = cpu.unit
        pages = PageAllocator(cpu.memory, [(_TABLES, _TABLES_SIZE)])
        root, contexts = pages.alloc(), pages.alloc()
        queue = QueuedInvalidation(cpu, 0, pages, Counter(), (True, True))
        self._queue = queue
        cpu.mmio_write(Reg.IQA, 8, queue.ring)
        self._domain = Domain(
            _DOMAIN,
            cpu.unit.config.aw_bits,
            cpu.memory,
            pages,
            Counter(),
            queue,
            physical_width=cpu.unit.config.aw_bits,
            large_pages=0b11,
            max_mask=MAX_ADDRESS_MASK,
            flush_maps=True,
            flush_device=lambda source, first, shift: None,
        )
        _write_entry(cpu.memory, root, RootEntry(True, contexts).encode())
        _write_entry(cpu.memory, contexts + _REQUESTER * ENTRY_SIZE, self._domain.context_entry().encode())
        self._domain.map(_IOVA, _GPA, mappings * PAGE_SIZE, Access.BOTH)
        self._domain.devices.add(_REQUESTER)
        self._page = _IOVA + mappings // 2 * PAGE_SIZE
        self.shadow = Shadow(cpu.unit, _REQUESTER, _Container(), cpu.memory, [_RAM], lambda line: None)
        cpu.shadows.add(self.shadow)
        cpu.mmio_write(Reg.RTADDR, 8, root)
        cpu.mmio_write(Reg.GCMD, 4, Command.SRTP | Command.QIE)
        cpu.mmio_write(Reg.GCMD, 4, Command.TE | Command.QIE)

    def by_domain(self) -> None:
        """One domain-selective invalidation by the queue; the tables are as before."""
        self._queue.iotlb(IotlbGranularity.DOMAIN, _DOMAIN)

    def by_page(self) -> None:
        """One page-selective invalidation by the queue, of a page in the middle."""
        self._queue.iotlb_pages(_DOMAIN, self._page, 0)


class FlushCosts(NamedTuple):
    """Medians in microseconds of wall time, and of the per-round ratios of many mappings to few."""

    rounds: int
    few: int
    many: int
    domain_few_us: float
    domain_many_us: float
    page_few_us: float
    page_many_us: float
    domain_ratio: float
    page_ratio: float


def measure_flushes(
    rounds: int, clock: Callable[[], int], few: int = FEW, many: int = MANY, seed: int = 0
) -> FlushCosts:
    """Interleaved rounds in random order; `clock` tells nanoseconds."""
    small, large = Flushes(few), Flushes(many)
    samples: dict[str, tuple[Callable[[], None], int, list[float]]] = {
        "domain_few": (small.by_domain, 1, []),
        "domain_many": (large.by_domain, 1, []),
        "page_few": (small.by_page, _PAGES_A_SAMPLE, []),
        "page_many": (large.by_page, _PAGES_A_SAMPLE, []),
    }
    order = random.Random(seed)
    collecting = gc.isenabled()
    gc.disable()  # a collection would be charged to whoever is measured just then
    try:
        for _ in range(rounds):
            for act, times, taken in order.sample(list(samples.values()), len(samples)):
                begin = clock()
                for _ in range(times):
                    act()
                taken.append((clock() - begin) / times / 1000)
    finally:
        if collecting:
            gc.enable()
    medians = {name: statistics.median(taken) for name, (_, _, taken) in samples.items()}
    return FlushCosts(
        rounds,
        few,
        many,
        medians["domain_few"],
        medians["domain_many"],
        medians["page_few"],
        medians["page_many"],
        _ratio(samples["domain_many"][2], samples["domain_few"][2]),
        _ratio(samples["page_many"][2], samples["page_few"][2]),
    )


def _ratio(many: list[float], few: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(many, few, strict=True))


def _write_entry(memory: PhysicalMemory, place: int, words: tuple[int, int]) -> None:
    memory.write_u64(place + 8, words[1])
    memory.write_u64(place, words[0])


class _Cpu:
    """A machine that is nothing but the guest's table memory and its unit, whose registers stand at 0."""

    def __init__(self) -> None:
        self.memory = PhysicalMemory([Slot("ram", _TABLES, memoryview(bytearray(_TABLES_SIZE)))])
        self.shadows = Shadows()
        config = UnitConfig(caching_mode=True)
        self.unit = RemappingUnit(config, self.memory, lambda address, data: None, self.shadows)
        self.mmio_read = self.unit.read
        self.mmio_write = self.unit.write

    def wait_for_interrupt(self, timeout: float) -> bool:
        return False

    def set_interrupt_handler(self, handler: Callable[[int], None]) -> None:
        """There are no interrupts."""

    def log(self, line: str) -> None:
        """Nobody reads it."""


class _Container(ShadowPorts):
    """Takes all: once the shadow is built, these invalidations change nothing of it."""

    def map(self, iova: int, gpa: int, size: int, access: Access) -> None:
        pass

    def unmap(self, iova: int, size: int) -> None:
        pass
