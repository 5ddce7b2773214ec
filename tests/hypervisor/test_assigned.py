"""The guest's view of an assigned device, over a parent kernel that keeps what it was told."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest

from viommu_actors.hypervisor.assigned import AssignedFunction, Edit
from viommu_actors.hypervisor.intx import Lines
from viommu_actors.hypervisor.routes import Routes
from viommu_actors.hypervisor.vectors import Delivery
from viommu_actors.kernel.vfio.calls import Region
from viommu_actors.pci import config_space
from viommu_actors.spec import pci, vfio

BAR_SIZE = 0x1000
TOKEN = b"0123456789abcdef"


class Parent:
    """One device with a 4 KiB BAR, power management, MSI and PCI Express; remembers what it was asked."""

    def __init__(self) -> None:
        config = config_space.endpoint_header(0x7676, 1, pci.ClassCode.ETHERNET, 1)
        config.add_bar(0, BAR_SIZE)
        config_space.add_power_management(config)
        config_space.add_msi(config)
        config_space.add_express(config, pci.PortType.ENDPOINT, 4096)
        self.config = config
        self.slots: dict[int, tuple[int, int]] = {}
        self.routes: list[tuple[int, int, int]] = []
        self.irqfds: dict[int, int] = {}
        self.signalled: list[tuple[int, int]] = []
        self.irqs: tuple[int, ...] = ()
        self.writes: list[tuple[int, bytes]] = []
        self.closed: list[int] = []
        self.refusals: list[str] = []
        self._fds = count(100)

    def refused(self, what: str, error: OSError) -> None:
        self.refusals.append(what)

    def region_info(self, device: int, index: int) -> Region:
        if index == 0:
            return Region(vfio.RegionFlags.READ | vfio.RegionFlags.WRITE | vfio.RegionFlags.MMAP, BAR_SIZE, 0)
        return Region(0, pci.CONFIG_SIZE if index == vfio.RegionIndex.CONFIG else 0, 0)

    def irq_count(self, device: int, index: int) -> int:
        return 1

    def region_read(self, device: int, index: int, offset: int, size: int) -> bytes:
        assert index == vfio.RegionIndex.CONFIG
        return b"".join(self.config.read(at, 1).to_bytes(1, "little") for at in range(offset, offset + size))

    def region_write(self, device: int, index: int, offset: int, data: bytes) -> None:
        self.writes.append((offset, data))

    def mmap_region(self, device: int, index: int) -> int:
        return 0x7000_0000

    def set_memory(self, vm: int, slot: int, gpa: int, size: int, vaddr: int) -> bytes:
        if not size:
            del self.slots[slot]
            return b""
        self.slots[slot] = (gpa, size)
        return TOKEN

    def eventfd(self) -> int:
        return next(self._fds)

    def close(self, handle: int) -> None:
        self.closed.append(handle)

    def set_routes(self, vm: int, routes: list[tuple[int, int, int]]) -> None:
        self.routes = routes

    def irqfd(self, vm: int, eventfd: int, gsi: int, assign: bool) -> None:
        if assign:
            self.irqfds[eventfd] = gsi
        else:
            assert self.irqfds.pop(eventfd) == gsi

    def signal_msi(self, vm: int, address: int, data: int) -> None:
        self.signalled.append((address, data))

    def set_irqs(self, device: int, index: int, start: int, eventfds: tuple[int, ...]) -> None:
        assert index == vfio.IrqIndex.MSI
        self.irqs = eventfds


@pytest.fixture
def parent() -> Parent:
    return Parent()


def _straight(requester: int, address: int, data: int, record: bool) -> tuple[int, int]:
    return address, data


def _function(parent: Parent, *edits: Edit) -> AssignedFunction:
    slots = count()
    delivery = Delivery(parent, 1, Routes(parent, 1), _straight, Counter(), parent.refused, Lines(print))  # type: ignore[arg-type]
    return AssignedFunction(delivery, 2, 0x18, list(edits), lambda: next(slots))


def _capabilities(function: AssignedFunction) -> dict[int, int]:
    found, pointer = {}, function.config_read(pci.CAPABILITY_POINTER, 1)
    while pointer:
        header = function.config_read(pointer, 2)
        found[header & 0xFF] = pointer
        pointer = header >> 8
    return found


def test_identity_is_the_devices(parent: Parent) -> None:
    function = _function(parent)
    assert function.config_read(pci.VENDOR_ID, 4) == parent.config.read(pci.VENDOR_ID, 4)
    assert function.config_read(pci.DEVICE_ID, 2) == 1
    assert function.config_read(pci.CLASS_DEVICE, 2) == pci.ClassCode.ETHERNET


def test_bar_is_sized_without_asking_the_device(parent: Parent) -> None:
    function = _function(parent)
    assert not function.config_write(pci.BAR0, 4, 0xFFFF_FFFF)
    low = function.config_read(pci.BAR0, 4)
    assert low & pci.BAR_MEMORY_MASK == 0x1_0000_0000 - BAR_SIZE
    assert function.config_read(pci.BAR0 + 8, 4) == 0
    assert not parent.writes and not parent.slots


def test_memory_decoding_makes_the_bar_a_memory_slot_and_moves_it(parent: Parent) -> None:
    function = _function(parent)
    function.config_write(pci.BAR0, 4, 0xC000_0000)
    assert function.bars.at(0xC000_0000, 4) is None
    assert function.config_write(pci.COMMAND, 2, pci.Command.MEMORY | pci.Command.BUS_MASTER)
    assert parent.writes == [(pci.COMMAND, b"\x06\x00")]
    assert list(parent.slots.values()) == [(0xC000_0000, BAR_SIZE)]
    window = function.bars.at(0xC000_0FFC, 4)
    assert window is not None and window.token == TOKEN
    assert function.bars.at(0xC000_0FFE, 4) is None
    assert function.config_write(pci.BAR0, 4, 0xD000_0000)
    assert list(parent.slots.values()) == [(0xD000_0000, BAR_SIZE)]
    assert function.bars.at(0xC000_0000, 4) is None
    assert function.config_write(pci.COMMAND, 2, 0)
    assert not parent.slots


def test_sizing_while_decoding_never_maps_the_all_ones_address(parent: Parent) -> None:
    function = _function(parent)
    function.config_write(pci.COMMAND, 2, pci.Command.MEMORY)
    function.config_write(pci.BAR0, 4, 0xFFFF_FFFF)
    assert not parent.slots


def test_msi_becomes_an_irqfd_with_a_route(parent: Parent) -> None:
    function = _function(parent)
    msi = _capabilities(function)[pci.CapabilityId.MSI]
    function.config_write(msi + pci.MSI_ADDRESS, 4, 0xFEE0_0000)
    function.config_write(msi + pci.MSI_DATA_64, 2, 0x31)
    assert not parent.routes
    control = function.config_read(msi + pci.MSI_CONTROL, 2)
    function.config_write(msi + pci.MSI_CONTROL, 2, control | pci.MSI_ENABLE)
    [(gsi, address, data)] = parent.routes
    assert (address, data) == (0xFEE0_0000, 0x31)
    assert parent.irqfds == {parent.irqs[0]: gsi}
    assert function.config_read(msi + pci.MSI_CONTROL, 2) & pci.MSI_ENABLE
    function.config_write(msi + pci.MSI_DATA_64, 2, 0x32)
    assert parent.routes == [(gsi, 0xFEE0_0000, 0x32)]
    function.config_write(msi + pci.MSI_CONTROL, 2, control & ~pci.MSI_ENABLE)
    assert parent.irqs == () and parent.routes == [] and not parent.irqfds and len(parent.closed) == 1
    assert not parent.writes, "the device's own MSI registers are the parent kernel's"


def test_it_is_an_integrated_endpoint_without_link_registers(parent: Parent) -> None:
    function = _function(parent)
    express = _capabilities(function)[pci.CapabilityId.PCI_EXPRESS]
    kind = (function.config_read(express + pci.EXP_FLAGS, 2) & pci.EXP_FLAGS_TYPE_MASK) >> pci.EXP_FLAGS_TYPE_SHIFT
    assert kind == pci.PortType.ROOT_COMPLEX_ENDPOINT
    assert function.config_read(express + pci.EXP_LINK_CAPABILITIES, 4) == 0


def test_interrupt_line_is_kept_for_the_guest_alone(parent: Parent) -> None:
    function = _function(parent)
    function.config_write(pci.INTERRUPT_LINE, 1, 0x0B)
    assert function.config_read(pci.INTERRUPT_LINE, 1) == 0x0B
    assert not parent.writes
    decided = function.decisions()
    for value in range(100):
        function.config_write(pci.INTERRUPT_LINE, 1, value)
    assert len(function.decisions()) == len(decided), "what is decided again is no further decision"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pm", pci.CapabilityId.POWER_MANAGEMENT),
        ("msi", pci.CapabilityId.MSI),
        ("pcie", pci.CapabilityId.PCI_EXPRESS),
    ],
)
def test_a_hidden_capability_is_unlinked_and_the_others_stay(parent: Parent, name: str, kind: int) -> None:
    everything = set(_capabilities(_function(parent)))
    assert set(_capabilities(_function(parent, Edit(hide=name)))) == everything - {kind}


def test_without_any_capability_status_says_so(parent: Parent) -> None:
    function = _function(parent, *(Edit(hide=name) for name in ("pm", "msi", "pcie")))
    assert not function.config_read(pci.STATUS, 2) & pci.Status.CAPABILITIES
    assert function.config_read(pci.CAPABILITY_POINTER, 1) == 0


def test_an_edit_changes_exactly_its_bits(parent: Parent) -> None:
    before = _function(parent).config_read(pci.SUBSYSTEM_VENDOR_ID, 4)
    function = _function(parent, Edit(offset=pci.SUBSYSTEM_VENDOR_ID, mask=0xFFFF, value=0x1AF4))
    assert function.config_read(pci.SUBSYSTEM_VENDOR_ID, 4) == before & 0xFFFF_0000 | 0x1AF4


def test_an_edit_has_the_last_word_even_on_registers_that_are_emulated(parent: Parent) -> None:
    msi = _capabilities(_function(parent))[pci.CapabilityId.MSI]
    function = _function(parent, Edit(offset=msi, mask=pci.MSI_64BIT << 16, value=0))
    assert not function.config_read(msi + pci.MSI_CONTROL, 2) & pci.MSI_64BIT


def test_every_difference_from_the_device_is_a_decision_with_a_reason(parent: Parent) -> None:
    function = _function(parent, Edit(hide="pm"), Edit(offset=pci.SUBSYSTEM_VENDOR_ID, mask=0xFFFF, value=0x1AF4))
    function.config_write(pci.BAR0, 4, 0xC000_0000)
    decided: dict[int, int] = {}
    for decision in function.decisions():
        assert decision.why
        decided[decision.offset] = decided.get(decision.offset, 0) | decision.mask
    for base in range(0, pci.CONVENTIONAL_SIZE, 4):
        different = function.config_read(base, 4) ^ parent.config.read(base, 4)
        assert not different & ~decided.get(base, 0), hex(base)
