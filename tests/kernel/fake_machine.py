"""A machine in one process for kernel tests: memory, a real VT-d unit, PCI functions made of config space only."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from viommu_actors.firmware.boot import MachineDescription, install, remapping_unit
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.pci import config_space
from viommu_actors.pci.config_space import ConfigSpace
from viommu_actors.spec import pci, platform
from viommu_actors.spec.vtd import Access, FaultReason
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.interrupts import Blocked
from viommu_actors.vtd.unit import RemappingUnit

MIB = 1 << 20
VENDOR = 0x1234


@dataclass
class FakeFunction:
    """A function by its configuration space; a bridge has `children` by device and function number."""

    space: ConfigSpace
    children: dict[int, FakeFunction] = field(default_factory=dict)
    registers: dict[int, int] = field(default_factory=dict)


def endpoint(
    device: int = 0x11E8,
    bars: dict[int, int] | None = None,
    payload: int = 256,
    express: bool = True,
    messages: int = 1,
    msix: int = 0,
) -> FakeFunction:
    """An endpoint with MSI, PCI Express and BARs of the given sizes (0x100000 in BAR 0 by default).

    With `msix` vectors it has a BAR 2 for them, which is memory only: it sends nothing by itself.
    """
    space = config_space.endpoint_header(VENDOR, device, pci.ClassCode.UNCLASSIFIED_OTHER)
    for index, size in (bars if bars is not None else {0: MIB}).items():
        space.add_bar(index, size)
    config_space.add_msi(space, messages)
    if msix:
        space.add_bar(2, 0x1000)
        config_space.add_msix(space, 2, msix, 0, 0x800)
    if express:
        config_space.add_express(space, pci.PortType.ENDPOINT, payload)
    return FakeFunction(space)


def root_port(number: int, child: FakeFunction | None = None, acs: bool = True) -> FakeFunction:
    """A hot-plug root port, with a device in its slot or without."""
    space = config_space.bridge_header(pci.VENDOR_REDHAT, pci.DEVICE_ROOT_PORT)
    express = config_space.add_express(space, pci.PortType.ROOT_PORT, 512)
    config_space.add_slot(space, express, number)
    if acs:
        config_space.add_acs(space, pci.Acs(0x1F), pci.Acs(0))
    return FakeFunction(space, {0: child} if child else {})


def host_bridge() -> FakeFunction:
    return FakeFunction(
        config_space.endpoint_header(pci.VENDOR_REDHAT, pci.DEVICE_HOST_BRIDGE, pci.ClassCode.HOST_BRIDGE)
    )


class FakeMachine:
    """Satisfies `kernel.machine.Machine`. What a handler would see comes in `wait_for_interrupt` only."""

    def __init__(
        self,
        command_line: str = "intel_iommu=on",
        unit: UnitConfig | None = None,
        functions: dict[int, FakeFunction] | None = None,
        ram: tuple[tuple[int, int], ...] = ((0, 16 * MIB),),
        address_width: int | None = None,
    ) -> None:
        """`functions` by address on a root bus, which bus 0 is; without a `unit` there is no DMAR table."""
        self.ram = ram
        self.memory = PhysicalMemory([Slot(f"ram{base:x}", base, memoryview(bytearray(size))) for base, size in ram])
        self.unit = None if unit is None else RemappingUnit(unit, self.memory, self._message)
        self.functions = {0: host_bridge(), **(functions or {})}
        width = address_width or (48 if unit is None else unit.aw_bits)
        dmar = None if unit is None else remapping_unit(width, unit.intremap)
        self.description = MachineDescription(ram=ram, command_line=command_line, dmar=dmar, cpus=2)
        self.boot_params = install(self.memory, self.description)
        self.lines: list[str] = []
        self.mmio = Counter[str]()
        self.vectors: deque[int] = deque()
        self._handler: Callable[[int], None] = lambda vector: None

    # --- Machine

    def mmio_read(self, address: int, size: int) -> int:
        self.mmio["reads"] += 1
        offset = address - platform.REMAPPING_UNIT_BASE
        if 0 <= offset < platform.REMAPPING_UNIT_SIZE and self.unit is not None:
            return self.unit.read(offset, size)
        ones = (1 << 8 * size) - 1
        if (function := self._configured(address)) is not None:
            return function.space.read(address & 0xFFF, size)
        if (found := self._decoded(address)) is not None:
            return found[0].registers.get(found[1], 0) & ones
        return ones

    def mmio_write(self, address: int, size: int, value: int) -> None:
        assert type(value) is int and 0 <= value < 1 << 8 * size
        self.mmio["writes"] += 1
        offset = address - platform.REMAPPING_UNIT_BASE
        if 0 <= offset < platform.REMAPPING_UNIT_SIZE and self.unit is not None:
            self.unit.write(offset, size, value)
        elif (function := self._configured(address)) is not None:
            function.space.write(address & 0xFFF, size, value)
        elif (found := self._decoded(address)) is not None:
            found[0].registers[found[1]] = value

    def wait_for_interrupt(self, timeout: float) -> bool:
        if not self.vectors:
            return False
        while self.vectors:
            self._handler(self.vectors.popleft())
        return True

    def set_interrupt_handler(self, handler: Callable[[int], None]) -> None:
        self._handler = handler

    def log(self, line: str) -> None:
        self.lines.append(line)

    # --- a device's side

    def dma_write(self, requester: int, address: int, data: bytes) -> bool:
        """One write request within a page, as a root complex carries it out; False where it faults."""
        physical = self._translate(requester, address, Access.WRITE)
        if physical is None:
            return False
        self.memory.write(physical, data)
        return True

    def dma_read(self, requester: int, address: int, length: int) -> bytes | None:
        """One read request within a page; None where it faults."""
        physical = self._translate(requester, address, Access.READ)
        return None if physical is None else self.memory.read(physical, length)

    def interrupt(self, requester: int, address: int, data: int) -> FaultReason | None:
        """One interrupt request; what blocked it, or None where its vector is on its way."""
        assert self.unit is not None
        outcome = self.unit.remap_interrupt(requester, address, data)
        if isinstance(outcome, Blocked):
            return outcome.reason
        self.vectors.append(outcome.interrupt.vector)
        return None

    def _translate(self, requester: int, address: int, access: Access) -> int | None:
        if self.unit is None:
            return address
        result = self.unit.translate(requester, address, access)
        return result.address if result.reason is None else None

    def _message(self, address: int, data: int) -> None:
        assert address == platform.LOCAL_APIC_BASE
        self.vectors.append(data)

    # --- routing

    def _configured(self, address: int) -> FakeFunction | None:
        offset = address - platform.ECAM_BASE
        if not 0 <= offset < platform.ECAM_BUSES << 20:
            return None
        return self.functions.get(offset >> 12) or find(self.functions, offset >> 12)

    def _decoded(self, address: int) -> tuple[FakeFunction, int] | None:
        for function in reachable(self.functions, address):
            for index, bar in function.space.bars.items():
                base = function.space.bar_address(index)
                enabled = function.space.read(pci.COMMAND, 2) & pci.Command.MEMORY
                if enabled and base <= address < base + bar.size:
                    return function, address - base
        return None


def find(functions: dict[int, FakeFunction], bdf: int, bus: int = 0) -> FakeFunction | None:
    """The function that a configuration request reaches, by the bridges' bus numbers."""
    if pci.bdf_bus(bdf) == bus:
        return functions.get(bdf & 0xFF)
    for function in functions.values():
        if function.space.read(pci.HEADER_TYPE, 1) & pci.HEADER_TYPE_MASK == pci.HEADER_TYPE_BRIDGE:
            secondary = function.space.read(pci.SECONDARY_BUS, 1)
            if secondary and secondary <= pci.bdf_bus(bdf) <= function.space.read(pci.SUBORDINATE_BUS, 1):
                return find(function.children, bdf, secondary)
    return None


def reachable(functions: dict[int, FakeFunction], address: int) -> Iterator[FakeFunction]:
    """Functions that a memory request may reach, by the bridges' windows."""
    for function in functions.values():
        yield function
        base = function.space.read(pci.MEMORY_BASE, 2) & pci.WINDOW_MASK
        limit = function.space.read(pci.MEMORY_LIMIT, 2) & pci.WINDOW_MASK
        if function.children and base << 16 <= address < (limit << 16) + pci.WINDOW_GRANULARITY:
            yield from reachable(function.children, address)
