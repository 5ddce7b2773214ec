"""The intel-iommu driver over a real unit: what it maps translates, what it unmaps faults at once, counts are exact."""

from __future__ import annotations

from collections import Counter
from errno import EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENOMEM, ENOSPC

import pytest

from tests.kernel.fake_machine import MIB
from tests.kernel.iommu_machine import (
    DIRECTIONS,
    EDU,
    GIB,
    LARGE_1G,
    LARGE_2M,
    OTHER,
    PAGE,
    PAGE_SELECTIVE,
    QUEUED_INVALIDATION,
    booted,
    machine_of,
    spent,
)
from viommu_actors.firmware.boot import MachineDescription, install
from viommu_actors.kernel.dma import DirectDma, Direction
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.spec import acpi, platform
from viommu_actors.spec.vtd import Access, FaultReason, Reg
from viommu_actors.vtd.config import UnitConfig

# --- the measured path


@pytest.mark.parametrize(("caching_mode", "for_map", "for_unmap"), [(True, 1, 1), (False, 0, 1)])
@pytest.mark.parametrize("aw_bits", [39, 48])
def test_counts_of_single_page_maps(caching_mode: bool, for_map: int, for_unmap: int, aw_bits: int) -> None:
    machine = machine_of(UnitConfig(caching_mode=caching_mode, aw_bits=aw_bits))
    kernel, _, device = booted(machine)
    assert machine.unit is not None
    dma = kernel.dma(device)
    keep = dma.map(kernel.pages.alloc(), PAGE, Direction.TO_DEVICE)
    for direction in (Direction.TO_DEVICE, Direction.FROM_DEVICE):
        for _ in range(150):  # more than one round of the ring
            page = kernel.pages.alloc()
            before, writes, unit = Counter(kernel.counters), machine.mmio.copy(), machine.unit.counters
            iova = dma.map(page, PAGE, direction)
            flush = {"queue_tail_writes": 1, "waits": 1, "invalidations": 1}
            assert spent(kernel, before) == {"pte_writes": 1, "dma_maps": 1, **(flush if for_map else {})}
            assert machine.mmio - writes == Counter(writes=for_map)
            before = Counter(kernel.counters)
            dma.unmap(iova, PAGE, direction)
            assert spent(kernel, before) == {"pte_writes": 1, "dma_unmaps": 1, **flush}
            assert machine.mmio - writes == Counter(writes=for_map + for_unmap)
            assert machine.unit.counters["iotlb_page"] - unit["iotlb_page"] == for_map + for_unmap
            kernel.pages.free(page)
    assert iova == keep - PAGE, "the same address each time"


@pytest.mark.parametrize("unit", [UnitConfig(caching_mode=True), UnitConfig(caching_mode=True, pass_through=False)])
def test_passthrough_costs_nothing(unit: UnitConfig) -> None:
    machine = machine_of(unit, "intel_iommu=on iommu=pt")
    kernel, iommu, device = booted(machine)
    assert "iommu: Default domain type: Passthrough" in machine.lines
    dma = kernel.dma(device)
    assert isinstance(dma, DirectDma)
    page = kernel.pages.alloc()
    machine.memory.write(page, b"payload")
    before, writes = Counter(kernel.counters), machine.mmio.copy()
    iova = dma.map(page, PAGE, Direction.TO_DEVICE)
    assert iova == page
    assert machine.dma_read(EDU, iova, 7) == b"payload"
    dma.unmap(iova, PAGE, Direction.TO_DEVICE)
    assert spent(kernel, before) == {"dma_maps": 1, "dma_unmaps": 1}
    assert machine.mmio == writes
    assert machine.dma_read(0x30, iova, 7) is None, "a bridge masters nothing and is blocked"
    if unit.pass_through:
        assert iommu.attached(device) is iommu.pass_through
    else:
        assert machine.dma_read(EDU, 0x1000, 4) is None, "identity of the kernel's memory only"


@pytest.mark.parametrize("caching_mode", [False, True])
@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_mapped_translates_and_unmapped_faults_at_once(direction: Direction, queued: bool, caching_mode: bool) -> None:
    machine = machine_of(UnitConfig(caching_mode=caching_mode))
    machine.hide_extended = 0 if queued else QUEUED_INVALIDATION
    kernel, iommu, device = booted(machine)
    assert ("DMAR: dmar0: Using Register based invalidation" in machine.lines) != queued
    dma = kernel.dma(device)
    page = kernel.pages.alloc()
    machine.memory.write(page, b"secret")
    for _ in range(3):
        before = Counter(kernel.counters)
        iova = dma.map(page + 16, 100, direction)
        assert iova & 0xFFF == 16
        reads, writes = direction != Direction.FROM_DEVICE, direction != Direction.TO_DEVICE
        assert (machine.dma_read(EDU, iova - 16, 6) == b"secret") == reads
        assert machine.dma_write(EDU, iova, b"x") == writes
        assert machine.dma_read(OTHER, iova, 6) is None, "another device has another domain"
        dma.unmap(iova, 100, direction)
        assert machine.dma_read(EDU, iova, 6) is None and not machine.dma_write(EDU, iova, b"y")
        assert kernel.counters["invalidations"] - before["invalidations"] == 1 + caching_mode
        assert (kernel.counters["queue_tail_writes"] > 0) == queued
    reasons = {(fault.source, fault.reason) for fault in iommu.take_faults()[0]}
    assert reasons <= {(s, r) for s in (EDU, OTHER) for r in (FaultReason.READ_DENIED, FaultReason.WRITE_DENIED)}


def test_dma_of_many_pages_and_coherent_memory() -> None:
    machine = machine_of(UnitConfig(caching_mode=True))
    kernel, _, device = booted(machine)
    dma = kernel.dma(device)
    dma.set_mask(28)
    free = kernel.pages.free_pages
    paddr, iova = dma.alloc_coherent(3 * PAGE + 1)
    assert iova + 4 * PAGE <= 1 << 28 and not any(machine.memory.read(paddr, 4 * PAGE))
    for page in range(4):
        assert machine.dma_write(EDU, iova + page * PAGE, bytes([page + 1]) * PAGE)
        assert machine.memory.read(paddr + page * PAGE, PAGE) == bytes([page + 1]) * PAGE
    before = Counter(kernel.counters)
    dma.free_coherent(3 * PAGE + 1, paddr, iova)
    assert spent(kernel, before)["queue_tail_writes"] == 1
    assert machine.dma_read(EDU, iova + 3 * PAGE, 1) is None
    assert free - kernel.pages.free_pages <= 3, "page tables stay, memory does not"
    with pytest.raises(ValueError, match="not all mapped"):
        dma.unmap(iova, PAGE, Direction.TO_DEVICE)


def test_no_address_is_one_of_a_bar_or_of_interrupts() -> None:
    kernel, _, device = booted(machine_of(UnitConfig()))
    dma = kernel.dma(device)
    size = 4 * MIB
    seen = [dma.map(0, size, Direction.TO_DEVICE) for _ in range(12)]
    for first, end in ((0xC000_0000, 0xFEC0_0000), (0xFEE0_0000, 0xFEF0_0000)):
        assert all(iova + size <= first or end <= iova for iova in seen)
    assert max(seen) > 0xFEF0_0000 and min(seen) < 0xC000_0000


def test_dma_gives_everything_back_when_it_fails() -> None:
    machine = machine_of(UnitConfig())
    kernel, _, device = booted(machine)
    dma = kernel.dma(device)
    iova = dma.map(0x20_0000, PAGE, Direction.TO_DEVICE)
    with pytest.raises(OSError) as error:
        dma.map(1 << 60, PAGE, Direction.TO_DEVICE)
    assert error.value.errno == EFAULT
    assert dma.map(0x20_1000, PAGE, Direction.TO_DEVICE) == iova - PAGE
    with pytest.raises(OSError) as error:
        dma.alloc_coherent(GIB)
    assert error.value.errno == ENOMEM


def test_direct_dma_honours_the_mask() -> None:
    machine = machine_of(UnitConfig(), "intel_iommu=off")
    kernel = Kernel(machine, drivers=())
    kernel.boot(machine.boot_params)
    dma = kernel.dma(kernel.device(EDU))
    assert dma.map(15 * MIB, PAGE, Direction.TO_DEVICE) == 15 * MIB
    dma.set_mask(23)
    with pytest.raises(OSError, match="beyond the device's DMA mask"):
        dma.map(15 * MIB, PAGE, Direction.TO_DEVICE)
    paddr, iova = dma.alloc_coherent(PAGE)
    assert paddr == iova < 8 * MIB
    dma.free_coherent(PAGE, paddr, iova)


# --- domains, as VFIO uses them


@pytest.mark.parametrize(
    ("hidden", "writes"), [(0, 1), (LARGE_1G, 512), (LARGE_1G | LARGE_2M, 512 * 512)], ids=["1G", "2M", "4K"]
)
def test_largest_pages_that_the_unit_has(hidden: int, writes: int) -> None:
    machine = machine_of(UnitConfig(caching_mode=True))
    machine.hide_capability = hidden
    kernel, iommu, device = booted(machine)
    domain = iommu.new_domain()
    iommu.attach(device, domain)
    before, tables = Counter(kernel.counters), len(domain.tables)
    domain.map(GIB, 5 * GIB, GIB, Access.BOTH)
    assert len(domain.tables) - tables == {1: 1, 512: 2, 512 * 512: 514}[writes]
    assert spent(kernel, before)["pte_writes"] == writes + len(domain.tables) - tables
    assert spent(kernel, before)["queue_tail_writes"] == 1
    assert machine.unit is not None
    for offset in (0, 0x1234, 2 * MIB, GIB - 1):
        assert machine.unit.translate(EDU, GIB + offset, Access.WRITE).address == 5 * GIB + offset
    free = kernel.pages.free_pages
    assert domain.unmap(GIB, GIB) == GIB
    assert machine.unit.translate(EDU, GIB, Access.READ).reason == FaultReason.READ_DENIED
    assert kernel.pages.free_pages - free == {1: 0, 512: 1, 512 * 512: 513}[writes], "empty tables are freed"


def test_a_mix_of_page_sizes_by_alignment() -> None:
    machine = machine_of(UnitConfig())
    kernel, iommu, device = booted(machine)
    domain = iommu.new_domain()
    iommu.attach(device, domain)
    before = Counter(kernel.counters)
    first, size = GIB - 2 * MIB - PAGE, GIB + 4 * MIB + 2 * PAGE
    domain.map(first, first + 4 * GIB, size, Access.READ)
    leaves = 1 + 1 + 1 + 1 + 1  # 4K, 2M, 1G, 2M, 4K
    assert spent(kernel, before)["pte_writes"] == leaves + len(domain.tables) - 1
    assert machine.unit is not None
    for address in (first, GIB - 1, GIB, 2 * GIB - 1, 2 * GIB + 2 * MIB, first + size - 1):
        assert machine.unit.translate(EDU, address, Access.READ).address == address + 4 * GIB
    assert machine.unit.translate(EDU, first - 1, Access.READ).reason is not None
    assert machine.unit.translate(EDU, first + size, Access.READ).reason is not None
    assert domain.unmap(0, 4 * GIB) == size
    assert domain.unmap(0, 4 * GIB) == 0


def test_an_existing_leaf_is_refused_and_nothing_changes() -> None:
    machine = machine_of(UnitConfig())
    _, iommu, device = booted(machine)
    domain = iommu.new_domain()
    iommu.attach(device, domain)
    domain.map(0x5000, 0x20_0000, PAGE, Access.READ)
    domain.map(GIB, GIB, GIB, Access.READ)
    domain.map(4 * MIB, 4 * MIB, 2 * MIB, Access.READ)
    for iova, size in ((0x5000, PAGE), (0x4000, 2 * PAGE), (GIB + 2 * MIB, PAGE), (GIB, GIB), (0, 6 * MIB)):
        with pytest.raises(OSError) as error:
            domain.map(iova, GIB, size, Access.BOTH)
        assert error.value.errno == EEXIST
    assert machine.unit is not None
    assert machine.unit.translate(EDU, 0x4000, Access.READ).reason is not None
    assert machine.unit.translate(EDU, 0x5000, Access.READ).address == 0x20_0000
    assert machine.unit.translate(EDU, 2 * MIB, Access.READ).reason is not None
    assert domain.unmap(0, 1 << 48) == PAGE + GIB + 2 * MIB


def test_small_pages_go_where_a_table_stands_already() -> None:
    machine = machine_of(UnitConfig())
    _, iommu, device = booted(machine)
    domain = iommu.new_domain()
    iommu.attach(device, domain)
    domain.map(0x5000, 0, PAGE, Access.READ)
    domain.unmap(0x5000, PAGE)
    domain.map(0, 2 * MIB, 2 * MIB, Access.READ)
    assert machine.unit is not None
    assert machine.unit.translate(EDU, 2 * MIB - 1, Access.READ).address == 4 * MIB - 1
    assert domain.unmap(PAGE, PAGE) == PAGE
    assert machine.unit.translate(EDU, PAGE, Access.READ).reason is not None
    assert machine.unit.translate(EDU, 0, Access.READ).reason is None


def test_a_large_page_is_not_split() -> None:
    _, iommu, _ = booted(machine_of(UnitConfig()))
    domain = iommu.new_domain()
    domain.map(GIB, GIB, GIB, Access.READ)
    for iova, size in ((GIB, PAGE), (GIB + 2 * MIB, 2 * MIB), (0, GIB + PAGE), (2 * GIB - PAGE, GIB)):
        with pytest.raises(OSError) as error:
            domain.unmap(iova, size)
        assert error.value.errno == EINVAL
    assert domain.unmap(0, 3 * GIB) == GIB


@pytest.mark.parametrize(
    ("iova", "paddr", "size", "prot", "errno"),
    [
        (1, 0, PAGE, 3, EINVAL),
        (0, 1, PAGE, 3, EINVAL),
        (0, 0, 1, 3, EINVAL),
        (0, 0, 0, 3, EINVAL),
        (0, 0, -PAGE, 3, EINVAL),
        (0, 0, PAGE, 0, EINVAL),
        (0, 0, PAGE, 4, EINVAL),
        (1 << 39, 0, PAGE, 3, EFAULT),
        ((1 << 39) - PAGE, 0, 2 * PAGE, 3, EFAULT),
        (0, 1 << 39, PAGE, 3, EFAULT),
    ],
)
def test_refused_mappings(iova: int, paddr: int, size: int, prot: int, errno: int) -> None:
    _, iommu, _ = booted(machine_of(UnitConfig(aw_bits=39)))
    with pytest.raises(OSError) as error:
        iommu.new_domain().map(iova, paddr, size, prot)
    assert error.value.errno == errno


def test_refused_unmappings() -> None:
    _, iommu, _ = booted(machine_of(UnitConfig(aw_bits=39)))
    domain = iommu.new_domain()
    for iova, size in ((1, PAGE), (0, 1), (0, 0), (1 << 39, PAGE)):
        with pytest.raises(OSError) as error:
            domain.unmap(iova, size)
        assert error.value.errno == EINVAL


def test_no_memory_for_tables_leaves_nothing_mapped() -> None:
    machine = machine_of(UnitConfig())
    machine.hide_capability = LARGE_1G | LARGE_2M
    kernel, iommu, device = booted(machine)
    domain = iommu.new_domain()
    iommu.attach(device, domain)
    with pytest.raises(OSError) as error:
        domain.map(0, 0, 64 * GIB, Access.BOTH)
    assert error.value.errno == ENOMEM
    assert domain.unmap(0, 64 * GIB) == 0
    assert machine.dma_read(EDU, 0x20_0000, 4) is None
    assert kernel.pages.alloc()


def test_invalidations_by_range_and_by_domain() -> None:
    machine = machine_of(UnitConfig(caching_mode=True))
    _, iommu, device = booted(machine)
    domain = iommu.new_domain()
    iommu.attach(device, domain)
    assert machine.unit is not None

    def kinds(before: Counter[str]) -> dict[str, int]:
        assert machine.unit is not None
        now = machine.unit.counters
        return {name: now[name] - before[name] for name in ("iotlb_page", "iotlb_domain") if now[name] != before[name]}

    before = machine.unit.counters
    domain.map(0x3000, 0, 2 * PAGE, Access.READ)  # crosses an alignment: one invalidation of eight pages
    assert kinds(before) == {"iotlb_page": 1}
    before = machine.unit.counters
    domain.map(GIB, GIB, 2 * GIB, Access.READ)  # beyond the largest mask
    assert kinds(before) == {"iotlb_domain": 1}
    machine.hide_capability = PAGE_SELECTIVE
    _, iommu, device = booted(machine)
    domain = iommu.new_domain()
    iommu.attach(device, domain)
    before = machine.unit.counters
    domain.map(0x3000, 0, PAGE, Access.READ)
    domain.unmap(0x3000, PAGE)
    assert kinds(before) == {"iotlb_domain": 2}


def test_a_freed_table_is_used_again_only_after_the_invalidation() -> None:
    machine = machine_of(UnitConfig())
    kernel, iommu, device = booted(machine)
    domain = iommu.new_domain()
    iommu.attach(device, domain)
    for page in range(512):
        domain.map(4 * MIB + page * PAGE, 8 * MIB + page * PAGE, PAGE, Access.READ)
    free = kernel.pages.free_pages
    seen: list[int] = []
    tail = platform.REMAPPING_UNIT_BASE + Reg.IQT
    real = machine.mmio_write

    def watch(address: int, size: int, value: int) -> None:
        if address == tail:
            seen.append(kernel.pages.free_pages)
        real(address, size, value)

    machine.mmio_write = watch  # type: ignore[method-assign]
    assert domain.unmap(4 * MIB, 2 * MIB) == 2 * MIB
    assert seen == [free], "not freed yet when the invalidation runs"
    assert kernel.pages.free_pages == free + 1


def test_attach_detach_and_free() -> None:
    machine = machine_of(UnitConfig(caching_mode=True))
    kernel, iommu, device = booted(machine)
    default = iommu.attached(device)
    free = kernel.pages.free_pages
    domain = iommu.new_domain()
    domain.map(0, 0x20_0000, PAGE, Access.BOTH)
    before = Counter(kernel.counters)
    iommu.attach(device, domain)
    assert spent(kernel, before) == {
        "context_invalidations": 2,
        "invalidations": 2,
        "waits": 4,
        "queue_tail_writes": 4,
    }, "out of the default domain, into the new one"
    before = Counter(kernel.counters)
    iommu.attach(device, domain)
    assert spent(kernel, before) == {}
    assert machine.dma_write(EDU, 0, b"here")
    with pytest.raises(OSError) as error:
        iommu.free_domain(domain)
    assert error.value.errno == EBUSY
    iommu.detach(device)
    assert not machine.dma_write(EDU, 0, b"gone")
    faults, _ = iommu.take_faults()
    assert faults[-1].reason == FaultReason.CONTEXT_NOT_PRESENT
    context = machine.memory.read_u64(iommu.structure_pages()[0]) & ~0xFFF
    assert machine.memory.read(context + EDU * 16, 16) == bytes(16)
    before = Counter(kernel.counters)
    iommu.detach(device)
    domain.map(PAGE, 0, PAGE, Access.READ)
    domain.unmap(PAGE, PAGE)
    assert spent(kernel, before) == {"pte_writes": 2}, "without devices there is nothing to invalidate"
    iommu.free_domain(domain)
    assert kernel.pages.free_pages == free
    again = iommu.new_domain()
    assert again.id == domain.id
    assert default is not None
    iommu.attach(device, default)
    assert machine.dma_read(EDU, 0, 4) is None


def test_domain_ids() -> None:
    machine = machine_of(UnitConfig(caching_mode=True))
    machine.hide_capability = 7  # ND = 0: four bits
    _, iommu, _ = booted(machine)
    domains = []
    with pytest.raises(OSError) as error:
        while True:
            domains.append(iommu.new_domain())
    assert error.value.errno == ENOSPC
    ids = [domain.id for domain in domains]
    assert 0 not in ids and len(set(ids)) == len(ids) and max(ids) == 15
    iommu.free_domain(domains[3])
    assert iommu.new_domain().id == ids[3]


def test_a_device_outside_the_units_scope_is_direct() -> None:
    scopes = (
        acpi.DeviceScope(acpi.ScopeType.ENDPOINT, 0, 0, ((4, 0),)),
        acpi.DeviceScope(acpi.ScopeType.BRIDGE, 0, 0, ((6, 0),)),
    )
    machine = machine_of(UnitConfig())
    unit = acpi.Drhd(0, 0, platform.REMAPPING_UNIT_BASE, scopes)
    install(machine.memory, MachineDescription(machine.ram, "intel_iommu=on", acpi.Dmar(48, 0, (unit, unit)), cpus=1))
    kernel, iommu, device = booted(machine)
    covered = {d.bdf for d in kernel.pci if iommu.covers(d)}
    assert covered == {EDU, 0x30, 0x100}
    other = kernel.device(OTHER)
    assert isinstance(kernel.dma(other), DirectDma) and not isinstance(kernel.dma(device), DirectDma)
    assert iommu.group_of(OTHER) is None
    with pytest.raises(OSError) as error:
        iommu.attach(other, iommu.new_domain())
    assert error.value.errno == ENODEV
    assert any("only the first of 2 units" in line for line in machine.lines)


def test_what_a_rogue_is_after() -> None:
    machine = machine_of(UnitConfig())
    kernel, iommu, device = booted(machine)
    tables, structures = set(iommu.table_pages()), set(iommu.structure_pages())
    assert len(structures) == 1 + 2 + 2 and not tables & structures
    kernel.dma(device).map(kernel.pages.alloc(), PAGE, Direction.TO_DEVICE)
    assert len(set(iommu.table_pages()) - tables) == 3
    assert all(page & 0xFFF == 0 for page in iommu.table_pages() + iommu.structure_pages())
