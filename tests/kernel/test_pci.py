"""PCI enumeration: buses, windows, BARs, payloads, ACS, groups; and functions that lie."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel.fake_machine import MIB, FakeFunction, FakeMachine, endpoint, root_port
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.pci.config_space import ConfigSpace
from viommu_actors.spec import pci
from viommu_actors.vtd.config import UnitConfig

WINDOW = range(0xC000_0000, 0xFEC0_0000)


def booted(functions: dict[int, FakeFunction], unit: UnitConfig | None = None) -> tuple[Kernel, FakeMachine]:
    machine = FakeMachine(unit=unit, functions=functions)
    kernel = Kernel(machine, drivers=())
    kernel.boot(machine.boot_params)
    return kernel, machine


def test_endpoints_of_the_root_bus_get_apart_bars_and_answer() -> None:
    kernel, _ = booted({0x20: endpoint(), 0x28: endpoint(2, {0: 4096, 2: 64}), 0x40: endpoint(3, {5: 2 * MIB})})
    blocks = sorted(
        (bar.address, bar.address + max(bar.size, 4096)) for device in kernel.pci for bar in device.bars.values()
    )
    assert len(blocks) == 4
    assert all(end <= start for (_, end), (start, _) in pairwise(blocks))
    for device in kernel.pci:
        for index, bar in device.bars.items():
            assert bar.address % max(bar.size, 4096) == 0 and bar.address in WINDOW
            device.write(index, bar.size - 8, 8, device.bdf << 4 | index)
    for device in kernel.pci:
        for index, bar in device.bars.items():
            assert device.read(index, bar.size - 8, 8) == device.bdf << 4 | index
            with pytest.raises(OSError, match="nothing at"):
                device.read(index, bar.size - 4, 8)
            with pytest.raises(OSError, match="nothing at"):
                device.write(index, -4, 4, 0)
        command = device.config_read(pci.COMMAND, 2)
        assert bool(command & pci.Command.MEMORY) == bool(device.bars)
        assert not command & pci.Command.BUS_MASTER
    device = kernel.device(0x20)
    device.set_bus_master(True)
    assert device.config_read(pci.COMMAND, 2) & pci.Command.BUS_MASTER
    device.set_bus_master(False)
    assert not device.config_read(pci.COMMAND, 2) & pci.Command.BUS_MASTER


def test_a_bus_behind_each_root_port() -> None:
    kernel, _ = booted({0x08: root_port(1, endpoint()), 0x10: root_port(2), 0x18: root_port(3, endpoint(2, {0: 4096}))})
    assert [device.bdf for device in kernel.pci] == [0, 0x08, 0x100, 0x10, 0x18, 0x300]
    for device, bus in ((kernel.device(0x08), 1), (kernel.device(0x10), 2), (kernel.device(0x18), 3)):
        assert device.config_read(pci.PRIMARY_BUS, 4) & 0xFF_FFFF == bus << 16 | bus << 8
        base = device.config_read(pci.MEMORY_BASE, 2) << 16
        limit = device.config_read(pci.MEMORY_LIMIT, 2) << 16 | 0xF_FFFF
        assert limit - base + 1 == 2 * MIB, "room for a hot-plugged device"
        assert device.config_read(pci.PREFETCH_BASE, 2) > device.config_read(pci.PREFETCH_LIMIT, 2)
        command = device.config_read(pci.COMMAND, 2)
        assert command & pci.Command.MEMORY and command & pci.Command.BUS_MASTER
        for child in kernel.bus.children(device):
            assert child.parent is device
            for bar in child.bars.values():
                assert base <= bar.address and bar.address + bar.size - 1 <= limit
            child.write(0, 0, 4, 0x1234)
            assert child.read(0, 0, 4) == 0x1234


def test_nothing_is_looked_for_beside_a_ports_device() -> None:
    port = root_port(1, endpoint())
    port.children[0x08] = endpoint()
    kernel, machine = booted({0x08: port})
    assert [device.bdf for device in kernel.pci] == [0, 0x08, 0x100]
    assert sum(line.endswith("class 0x00ff") for line in machine.lines) == 1
    assert not any("header type" in line for line in machine.lines), "what is absent leaves no trace"


def test_bridges_within_bridges() -> None:
    inner = root_port(9, endpoint(5, {0: 8 * MIB}))
    kernel, _ = booted({0x08: root_port(1, inner), 0x10: root_port(2, endpoint())})
    assert [device.bdf for device in kernel.pci] == [0, 0x08, 0x100, 0x200, 0x10, 0x300]
    assert kernel.device(0x08).config_read(pci.SUBORDINATE_BUS, 1) == 2
    deep = kernel.device(0x200)
    assert deep.bars[0].size == 8 * MIB
    deep.write(0, 4, 4, 7)
    assert deep.read(0, 4, 4) == 7


def test_64_bit_and_prefetchable_bars() -> None:
    function = endpoint(bars={})
    function.space.add_bar(0, MIB, is64=True, prefetch=True)
    function.space.add_bar(2, 4096)
    kernel, _ = booted({0x20: function})
    bars = kernel.device(0x20).bars
    assert set(bars) == {0, 2}
    assert bars[0].is64 and bars[0].prefetch and not bars[2].is64
    assert function.space.bar_address(0) == bars[0].address


@pytest.mark.parametrize(("port", "device", "code"), [(512, 256, 1), (512, 4096, 2)])
def test_payload_is_what_port_and_device_support(port: int, device: int, code: int) -> None:
    kernel, _ = booted({0x08: root_port(1, endpoint(payload=device)), 0x20: endpoint(payload=1024)})
    for bdf, expected in ((0x08, code), (0x100, code), (0x20, 3)):
        function = kernel.device(bdf)
        express = function.capability(pci.CapabilityId.PCI_EXPRESS)
        assert express is not None
        control = function.config_read(express + pci.EXP_DEVICE_CONTROL, 2)
        assert (control & pci.DEVCTL_MAX_PAYLOAD_MASK) >> pci.DEVCTL_MAX_PAYLOAD_SHIFT == expected
        if bdf != 0x08:
            assert (control & pci.DEVCTL_MAX_READ_MASK) >> pci.DEVCTL_MAX_READ_SHIFT == 5
            assert control & pci.DEVCTL_EXTENDED_TAG


def test_acs_goes_on_with_the_iommu_only() -> None:
    for unit, expected in ((UnitConfig(), 0x1F), (None, 0)):
        kernel, _ = booted({0x08: root_port(1, endpoint())}, unit)
        port = kernel.device(0x08)
        acs = port.extended_capability(pci.ExtendedCapabilityId.ACS)
        assert acs is not None and port.config_read(acs + pci.ACS_CONTROL, 2) == expected


def test_groups() -> None:
    multi = {0x40: endpoint(3), 0x41: endpoint(4)}
    multi[0x40].space.define(pci.HEADER_TYPE, 1, pci.HEADER_MULTI_FUNCTION)
    kernel, _ = booted(
        {0x08: root_port(1, endpoint()), 0x10: root_port(2, endpoint(), acs=False), 0x20: endpoint(), **multi},
        UnitConfig(),
    )
    assert kernel.iommu is not None
    named = {number: [device.bdf for device in members] for number, members in kernel.iommu.groups.items()}
    assert sorted(named.values()) == [[0], [0x08], [0x10, 0x200], [0x20], [0x40, 0x41], [0x100]]
    assert all(kernel.iommu.group_of(bdf) == number for number, bdfs in named.items() for bdf in bdfs)
    assert kernel.iommu.group_of(0xFFFF) is None


def test_configuration_access_is_checked() -> None:
    kernel, _ = booted({0x20: endpoint()})
    device = kernel.device(0x20)
    for offset, size in ((1, 2), (2, 4), (4096, 1), (-4, 4), (0, 8), (0, 3)):
        with pytest.raises(ValueError, match="no configuration access"):
            device.config_read(offset, size)
        with pytest.raises(ValueError, match="no configuration access"):
            device.config_write(offset, size, 0)


# --- functions that lie


def test_a_capability_list_in_a_circle_ends() -> None:
    function = endpoint()
    msi = function.space.capability(pci.CapabilityId.MSI)
    express = function.space.capability(pci.CapabilityId.PCI_EXPRESS)
    assert msi is not None and express is not None
    function.space.define(express + pci.CAPABILITY_NEXT, 1, msi)
    kernel, machine = booted({0x20: function})
    assert kernel.device(0x20).capability(pci.CapabilityId.MSI) == msi
    assert f"pci 0000:00:04.0: broken capability list at {msi:#x}" in machine.lines


def test_capabilities_in_the_header_or_absent() -> None:
    for pointer in (0x04, 0xFC):
        function = endpoint()
        function.space.define(pci.CAPABILITY_POINTER, 1, pointer)
        function.space.define(0xFC, 4, 0xFFFF_FFFF)
        kernel, machine = booted({0x20: function})
        assert kernel.device(0x20).capability(pci.CapabilityId.MSI) is None
        assert any("broken capability list" in line for line in machine.lines)


def test_extended_capabilities_in_a_circle_end() -> None:
    function = endpoint()
    function.space.define(0x100, 4, 0x1_0001 | 0x200 << 20)
    function.space.define(0x200, 4, 0x1_000D | 0x100 << 20)
    kernel, machine = booted({0x20: function})
    assert kernel.device(0x20).extended_capability(0x000D) == 0x200
    assert "pci 0000:00:04.0: extended capability list has no end" in machine.lines


def test_bars_that_no_size_explains() -> None:
    function = endpoint(bars={1: 4096})
    function.space.define(pci.BAR0, 4, 0, writable=0x00FF_F000)
    function.space.define(pci.BAR0 + 8, 4, pci.BAR_IO, writable=0xFF00)
    function.space.define(pci.BAR0 + 12, 4, 0, writable=0x8000_0000)
    function.space.define(pci.BAR0 + 16, 8, pci.BAR_TYPE_64, writable=0xFFFF_FFF0_0000_0000)
    kernel, machine = booted({0x20: function})
    device = kernel.device(0x20)
    assert set(device.bars) == {1}
    assert "pci 0000:00:04.0: BAR 0: invalid; can't size" in machine.lines
    assert "pci 0000:00:04.0: BAR 3: can't assign; no space for size 0x80000000" in machine.lines
    assert "pci 0000:00:04.0: BAR 4: can't assign; no space for size 0x1000000000" in machine.lines


def test_bridges_that_never_end() -> None:
    chain = endpoint()
    for _ in range(40):
        chain = root_port(1, chain)
    kernel, machine = booted({0x08: chain, 0x10: root_port(2, endpoint())})
    assert any("no bus number left behind this bridge" in line for line in machine.lines)
    assert [device for device in kernel.pci if device.device == 0x11E8], "the other port's device is still found"


def test_bus_numbers_run_out() -> None:
    ports = {slot << 3 | function: root_port(1) for slot in range(1, 32) for function in range(8)}
    ports[0x08].children = {0: root_port(1, root_port(1, root_port(1, root_port(1, root_port(1, endpoint())))))}
    ports[0x10].children = {0: root_port(1, root_port(1, root_port(1, root_port(1, endpoint()))))}
    for function in ports.values():
        function.space.define(pci.HEADER_TYPE, 1, pci.HEADER_TYPE_BRIDGE | pci.HEADER_MULTI_FUNCTION)
    kernel, machine = booted(ports)
    secondaries = [d.config_read(pci.SECONDARY_BUS, 1) for d in kernel.pci if d.is_bridge]
    assert len(secondaries) == 248 + 9
    assert sorted(bus for bus in secondaries if bus) == list(range(1, 256))
    assert sum("no bus number left" in line for line in machine.lines) == 2


def test_an_extended_capability_at_the_very_end_is_none() -> None:
    function = endpoint()
    function.space.define(0x100, 4, 0x7 | 1 << 16 | 0xFFC << 20)
    function.space.define(0xFFC, 4, pci.ExtendedCapabilityId.ACS | 1 << 16)
    kernel, _ = booted({0x20: function}, UnitConfig())
    assert kernel.device(0x20).extended_capability(pci.ExtendedCapabilityId.ACS) is None


def test_an_unknown_header_type_is_ignored() -> None:
    function = endpoint()
    function.space.define(pci.HEADER_TYPE, 1, 2)
    kernel, machine = booted({0x20: function, 0x28: endpoint()})
    assert [device.bdf for device in kernel.pci] == [0, 0x28]
    assert "pci 0000:00:04.0: unknown header type 02, ignoring device" in machine.lines


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=64, max_size=512), st.binary(min_size=64, max_size=512))
def test_any_configuration_space_is_survived(values: bytes, writable: bytes) -> None:
    space = ConfigSpace()
    for offset, value in enumerate(values):
        space.define(offset, 1, value, writable=writable[offset] if offset < len(writable) else 0)
    kernel, _ = booted({0x08: root_port(1, FakeFunction(space)), 0x20: FakeFunction(space)}, UnitConfig())
    good = [bar for device in kernel.pci for bar in device.bars.values()]
    assert all(bar.address in WINDOW and bar.address + bar.size - 1 in WINDOW for bar in good)
