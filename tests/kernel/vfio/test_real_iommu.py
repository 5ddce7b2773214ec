"""VFIO over the real driver and unit: what is mapped is reached, what is unmapped is not, down to a guest's tables."""

from __future__ import annotations

from errno import ENOSPC, EPERM
from itertools import pairwise

import pytest

from tests.kernel.fake_machine import MIB, FakeMachine, endpoint, root_port
from tests.kernel.users import ROOT
from viommu_actors.hypervisor.shadow import Ram, Shadow, ShadowPorts, Shadows
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.process import UserProcess
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.spec import pci
from viommu_actors.spec.vtd import Access, Command, IotlbGranularity, Reg
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.unit import RemappingUnit

PAGE = 4096
GIB = 1 << 30
#: Behind the root ports, and the memory that a hypervisor lends them.
FIRST, SECOND = 0x100, 0x200
LENT = 4 * GIB
CMDLINE = "intel_iommu=on vfio_iommu_type1.allow_unsafe_interrupts=1 vfio-pci.ids=01:00.0,02:00.0"


class Host:
    """A booted host kernel and one process with 16 MiB that has 01:00.0 in a container."""

    def __init__(self, command_line: str = CMDLINE, caching_mode: bool = False) -> None:
        functions = {0x08: root_port(1, endpoint()), 0x10: root_port(2, endpoint(2))}
        unit = UnitConfig(caching_mode=caching_mode)
        self.machine = FakeMachine(command_line, unit, functions, ((0, 16 * MIB), (LENT, 16 * MIB)))
        self.kernel = Kernel(self.machine, drivers=())
        self.kernel.boot(self.machine.boot_params)
        self.vfio = Vfio(self.kernel)
        self.process = UserProcess("hypervisor", capabilities=ROOT)
        self.vaddr = self.process.map_memory(LENT, 16 * MIB)
        self.container = self.vfio.open_container(self.process)
        self.group = self.vfio.open_group(self.process, self.vfio.group_of("0000:01:00.0"))
        self.vfio.set_container(self.process, self.group, self.container)
        self.vfio.set_iommu(self.process, self.container)

    def map(self, iova: int, size: int, offset: int = 0, flags: int = 3) -> None:
        self.vfio.map_dma(self.process, self.container, flags, self.vaddr + offset, iova, size)

    def unmap(self, iova: int, size: int) -> int:
        return self.vfio.unmap_dma(self.process, self.container, iova, size)


@pytest.fixture
def host() -> Host:
    return Host()


def test_before_a_group_is_attached_its_device_is_blocked(host: Host) -> None:
    assert not host.machine.dma_write(SECOND, LENT, b"rogue")
    assert not host.machine.dma_write(FIRST, LENT, b"rogue")


def test_eperm_without_interrupt_remapping() -> None:
    with pytest.raises(OSError) as caught:
        Host("intel_iommu=on vfio-pci.ids=01:00.0")
    assert caught.value.errno == EPERM
    assert "allow_unsafe_interrupts" in str(caught.value)


@pytest.mark.parametrize("caching_mode", [False, True])
def test_map_reaches_and_unmap_is_a_barrier(caching_mode: bool) -> None:
    host = Host(caching_mode=caching_mode)
    host.map(0x10_0000, PAGE, offset=PAGE)
    host.map(0x20_0000, PAGE, offset=2 * PAGE, flags=1)
    host.map(0x30_0000, PAGE, offset=3 * PAGE, flags=2)
    machine = host.machine
    assert machine.dma_write(FIRST, 0x10_0010, b"hello")
    assert machine.memory.read(LENT + PAGE + 0x10, 5) == b"hello"
    assert machine.dma_read(FIRST, 0x20_0000, 4) == bytes(4)
    assert not machine.dma_write(FIRST, 0x20_0000, b"rogue")
    assert machine.dma_write(FIRST, 0x30_0000, b"in")
    assert machine.dma_read(FIRST, 0x30_0000, 4) is None
    assert not machine.dma_write(SECOND, 0x10_0010, b"rogue")
    assert host.unmap(0x10_0000, PAGE) == PAGE
    assert not machine.dma_write(FIRST, 0x10_0010, b"rogue")
    assert machine.memory.read(LENT + PAGE + 0x10, 5) == b"hello"


def test_large_mapping_uses_large_pages(host: Host) -> None:
    before = host.kernel.counters["pte_writes"]
    host.map(0, 16 * MIB)
    assert host.kernel.counters["pte_writes"] - before < 16
    assert host.machine.dma_write(FIRST, 16 * MIB - 1, b"x")
    assert host.unmap(0, 16 * MIB) == 16 * MIB


def test_release_takes_everything_back(host: Host) -> None:
    device = host.vfio.get_device(host.process, host.group, "0000:01:00.0")
    host.map(0, 16 * MIB)
    host.vfio.region_write(
        host.process, device, 7, pci.COMMAND, bytes((pci.Command.MEMORY | pci.Command.BUS_MASTER, 0))
    )
    host.vfio.mmap_region(host.process, device, 0)
    pages = host.kernel.pages.free_pages
    host.vfio.release(host.process)
    assert not host.machine.dma_write(FIRST, 0, b"rogue")
    assert not host.kernel.device(FIRST).config_read(pci.COMMAND, 2) & pci.Command.BUS_MASTER
    assert host.kernel.pages.free_pages > pages
    other = UserProcess("other", capabilities=ROOT)
    host.vfio.open_group(other, host.vfio.group_of("0000:01:00.0"))


def test_bars_through_vfio(host: Host) -> None:
    device = host.vfio.get_device(host.process, host.group, "0000:01:00.0")
    host.vfio.region_write(host.process, device, 0, 8, (1234).to_bytes(4, "little"))
    assert host.vfio.region_read(host.process, device, 0, 8, 4) == (1234).to_bytes(4, "little")


def test_interrupts_through_vfio(host: Host) -> None:
    device = host.vfio.get_device(host.process, host.group, "0000:01:00.0")
    event = host.vfio.eventfd(host.process)
    host.vfio.set_irqs(host.process, device, 1, 0, (event,))
    function = host.kernel.device(FIRST)
    msi = function.capability(pci.CapabilityId.MSI)
    assert msi is not None
    host.machine.vectors.append(function.config_read(msi + pci.MSI_DATA_64, 2))
    assert host.machine.wait_for_interrupt(0)
    assert host.process.files[event].count == 1  # type: ignore[attr-defined]


def test_65535_mappings_at_full_size_then_enospc(host: Host) -> None:
    for index in range(65535):
        host.map(index * PAGE, PAGE, offset=index % 4096 * PAGE)
    with pytest.raises(OSError) as caught:
        host.map(1 << 40, PAGE)
    assert caught.value.errno == ENOSPC
    assert host.unmap(0, 65535 * PAGE) == 65535 * PAGE


def test_a_guests_tables_reach_the_hosts_unit(host: Host) -> None:
    """Guest tables, vIOMMU, shadow, VFIO, host tables, host unit: device addresses are the guest's IOVAs."""
    machine = host.machine
    guest_memory = _Window(machine, LENT)
    shadows = Shadows()
    viommu = RemappingUnit(UnitConfig(caching_mode=True), guest_memory, lambda address, data: None, shadows)

    class Ports(ShadowPorts):
        def map(self, iova: int, gpa: int, size: int, access: Access) -> None:
            host.map(iova, size, offset=gpa, flags=int(access))

        def unmap(self, iova: int, size: int) -> None:
            host.unmap(iova, size)

    shadows.add(Shadow(viommu, 0x20, Ports(), guest_memory, [Ram(0, 16 * MIB)], host.machine.log))
    assert machine.dma_write(FIRST, 0x20_0000, b"all guest memory")
    root, contexts, *tables = range(0x10_0000, 0x10_6000, PAGE)
    guest_memory.write_u64(root, contexts | 1)
    guest_memory.write_u64(contexts + 0x20 * 16 + 8, 0x502)
    guest_memory.write_u64(contexts + 0x20 * 16, tables[0] | 1)
    for upper, lower in pairwise(tables):
        guest_memory.write_u64(upper, lower | 3)
    viommu.write(Reg.RTADDR, 8, root)
    viommu.write(Reg.GCMD, 4, Command.SRTP)
    viommu.write(Reg.GCMD, 4, Command.TE)
    assert not machine.dma_write(FIRST, 0x20_0000, b"rogue")
    guest_memory.write_u64(tables[3] + 7 * 8, 0x40_0000 | 3)
    viommu.invalidate_iotlb(IotlbGranularity.PAGE, 5, 0x7000, 0)
    assert machine.dma_write(FIRST, 0x7004, b"only this page")
    assert guest_memory.read(0x40_0004, 14) == b"only this page"
    guest_memory.write_u64(tables[3] + 7 * 8, 0)
    viommu.invalidate_iotlb(IotlbGranularity.PAGE, 5, 0x7000, 0)
    assert not machine.dma_write(FIRST, 0x7004, b"rogue")
    assert guest_memory.read(0x20_0000, 5) == b"all g"


class _Window:
    """Guest memory: the lent slot, at guest-physical 0."""

    def __init__(self, machine: FakeMachine, base: int) -> None:
        self._memory, self._base = machine.memory, base

    def read(self, address: int, length: int) -> bytes:
        return self._memory.read(self._base + address, length)

    def write(self, address: int, data: bytes) -> None:
        self._memory.write(self._base + address, data)

    def read_u64(self, address: int) -> int:
        return self._memory.read_u64(self._base + address)

    def write_u64(self, address: int, value: int) -> None:
        self._memory.write_u64(self._base + address, value)

    def read_pair(self, address: int) -> tuple[int, int]:
        return self._memory.read_pair(self._base + address)
