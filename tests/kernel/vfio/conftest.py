"""A small kernel for VFIO: real PCI functions over their configuration spaces, a recording IOMMU, real interrupts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from errno import EEXIST, ENODEV

import pytest

from tests.kernel.users import ROOT
from viommu_actors.kernel.cmdline import CommandLine
from viommu_actors.kernel.irq import Interrupts
from viommu_actors.kernel.lines import LineInterrupts
from viommu_actors.kernel.pci import Bar, PciDevice
from viommu_actors.kernel.process import UserProcess
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.pci.config_space import ConfigSpace, add_express, add_msi, add_power_management, endpoint_header
from viommu_actors.spec import pci
from viommu_actors.spec.acpi import Ecam
from viommu_actors.spec.vtd import Access

ECAM = Ecam(0xB000_0000, 0, 0, 255)
BAR_ADDRESS = 0xC000_0000
BAR_SIZE = 1 << 20
EDU, NIC, MATE = 0x100, 0x200, 0x201
RAM = 0x10_0000_0000


class Machine:
    """Configuration spaces behind ECAM, and one register file of bytes for each BAR."""

    def __init__(self) -> None:
        self.spaces: dict[int, ConfigSpace] = {}
        self.bar = bytearray(BAR_SIZE)
        self.lines: list[str] = []
        self.events: list[str] = []
        self.deaf = False

    def mmio_read(self, address: int, size: int) -> int:
        if address < ECAM.base:
            raise AssertionError("no memory here")
        if address >= BAR_ADDRESS:
            start = address - BAR_ADDRESS
            return int.from_bytes(self.bar[start : start + size], "little")
        function, offset = divmod(address - ECAM.base, 4096)
        space = self.spaces.get(function)
        return (1 << 8 * size) - 1 if space is None or self.deaf else space.read(offset, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        if address >= BAR_ADDRESS:
            start = address - BAR_ADDRESS
            self.bar[start : start + size] = value.to_bytes(size, "little")
            return
        function, offset = divmod(address - ECAM.base, 4096)
        space = self.spaces[function]
        express = space.capability(pci.CapabilityId.PCI_EXPRESS)
        if express is not None and offset == express + pci.EXP_DEVICE_CONTROL and value & pci.DEVCTL_FLR:
            self.events.append(f"flr {pci.format_bdf(function)} command {space.read(pci.COMMAND, 2):#x}")
            space.reset()
            return
        space.write(offset, size, value)

    def log(self, line: str) -> None:
        self.lines.append(line)


class Domain:
    """Pages of one domain; refuses to map twice, and counts."""

    width = 48
    reserved = ((0xFEE0_0000, 0xFEEF_FFFF),)

    def __init__(self) -> None:
        self.pages: dict[int, tuple[int, Access]] = {}
        self.maps: list[tuple[int, int, int]] = []
        self.unmaps: list[tuple[int, int]] = []

    def map(self, iova: int, paddr: int, size: int, prot: int) -> None:
        self.maps.append((iova, paddr, size))
        for offset in range(0, min(size, 1 << 24), 4096):
            if iova + offset in self.pages:
                raise OSError(EEXIST, "mapped")
            self.pages[iova + offset] = (paddr + offset, Access(prot))

    def unmap(self, iova: int, size: int) -> int:
        self.unmaps.append((iova, size))
        gone = [self.pages.pop(iova + offset, None) for offset in range(0, min(size, 1 << 24), 4096)]
        return 4096 * sum(page is not None for page in gone)


class Iommu:
    def __init__(self, machine: Machine, groups: dict[int, list[PciDevice]]) -> None:
        self.groups = groups
        self.interrupt_remapping = True
        self.domains: list[Domain] = []
        self.attached: dict[int, Domain] = {}
        self.resets: list[int] = []
        self._machine = machine

    def group_of(self, bdf: int) -> int | None:
        return next((n for n, devices in self.groups.items() if any(d.bdf == bdf for d in devices)), None)

    def new_domain(self) -> Domain:
        self.domains.append(Domain())
        return self.domains[-1]

    def free_domain(self, domain: Domain) -> None:
        assert domain not in self.attached.values()
        assert not domain.pages
        self.domains.remove(domain)

    def attach(self, device: PciDevice, domain: Domain) -> None:
        self.attached[device.bdf] = domain

    def was_reset(self, device: PciDevice) -> None:
        self.resets.append(device.bdf)

    def detach(self, device: PciDevice) -> None:
        self._machine.events.append(f"detach {pci.format_bdf(device.bdf)}")
        self.attached.pop(device.bdf, None)


class Kernel:
    """Three functions: 01:00.0 alone in group 1; 02:00.0 and 02:00.1 together in group 2."""

    def __init__(self, cmdline: str) -> None:
        self.machine = Machine()
        self.cmdline = CommandLine(cmdline)
        self.counters: Counter[str] = Counter()
        self.drivers: dict[int, object] = {}
        self.user_groups: set[int] = set()
        self.uio_devices: set[int] = set()
        self.holders: list[Callable[[PciDevice], bool]] = []
        self.taints: set[str] = set()
        self.irq = Interrupts(self.counters, self.machine.log)
        # No I/O APIC, so that no function is offered with INTx.
        self.lines = LineInterrupts(self.machine, self.irq, None, self.machine.log)  # type: ignore[arg-type]
        self.pci = [self._function(bdf, flr) for bdf, flr in ((EDU, True), (NIC, True), (MATE, False))]
        self.pci[0].bars[0] = Bar(BAR_ADDRESS, BAR_SIZE, is64=False, prefetch=False)
        self.pci[0].config_write(pci.BAR0, 4, BAR_ADDRESS)
        self.pci[0].config_write(pci.COMMAND, 2, pci.Command.MEMORY)
        self.iommu = Iommu(self.machine, {1: self.pci[:1], 2: self.pci[1:]})

    def taint(self, letter: str, why: str) -> None:
        self.taints.add(letter)
        self.machine.log(why)

    def claim(self, device: PciDevice) -> None:
        """No kernel driver here, and no default domain."""

    def device(self, bdf: int) -> PciDevice:
        for device in self.pci:
            if device.bdf == bdf:
                return device
        raise OSError(ENODEV, "no PCI function")

    def _function(self, bdf: int, flr: bool) -> PciDevice:
        space = endpoint_header(0x1234, 0x11E8, pci.ClassCode.UNCLASSIFIED_OTHER)
        if bdf == EDU:
            space.add_bar(0, BAR_SIZE)
            add_power_management(space)
        add_msi(space)
        if flr:
            add_express(space, pci.PortType.ENDPOINT, 256)
        self.machine.spaces[bdf] = space
        return PciDevice(self.machine, ECAM, bdf, None)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel("intel_iommu=on vfio-pci.ids=01:00.0,02:00.0,02:00.1")


@pytest.fixture
def boot() -> Callable[[str], Kernel]:
    return Kernel


class User:
    """A process with 4 GiB of RAM that has 01:00.0 in a container."""

    def __init__(self, kernel: Kernel) -> None:
        self.vfio = Vfio(kernel)
        self.process = UserProcess("user", capabilities=ROOT)
        self.vaddr = self.process.map_memory(RAM, 4 << 30)
        self.container = self.vfio.open_container(self.process)
        self.group = self.vfio.open_group(self.process, 1)
        self.vfio.set_container(self.process, self.group, self.container)
        self.vfio.set_iommu(self.process, self.container)

    def map(self, iova: int, size: int, vaddr: int | None = None, flags: int = 3) -> None:
        self.vfio.map_dma(self.process, self.container, flags, self.vaddr if vaddr is None else vaddr, iova, size)

    def unmap(self, iova: int, size: int) -> int:
        return self.vfio.unmap_dma(self.process, self.container, iova, size)

    def open(self) -> int:
        return self.vfio.get_device(self.process, self.group, "0000:01:00.0")


@pytest.fixture
def user(kernel: Kernel) -> User:
    return User(kernel)
