"""A kernel's boot: parameters, command line, modes, and what it says when it cannot."""

from __future__ import annotations

import pytest

from tests.kernel.fake_machine import MIB, FakeMachine, endpoint, root_port
from viommu_actors.firmware.boot import MachineDescription, boot_params, install, memory_map
from viommu_actors.kernel.bootparams import read_boot_params
from viommu_actors.kernel.cmdline import CommandLine
from viommu_actors.kernel.dma import DirectDma, TranslatedDma
from viommu_actors.kernel.driver import IoResult
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.machine import KernelPanic
from viommu_actors.kernel.pages import HUGEPAGE
from viommu_actors.kernel.pci import PciDevice
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.spec import boot, platform
from viommu_actors.spec.vtd import Command, Reg
from viommu_actors.vtd.config import UnitConfig

EDU = 0x20
GIB = 1 << 30


def booted(machine: FakeMachine) -> Kernel:
    kernel = Kernel(machine, drivers=())
    kernel.boot(machine.boot_params)
    return kernel


def test_strict_boot_translates_and_logs_like_linux() -> None:
    machine = FakeMachine(unit=UnitConfig(), functions={EDU: endpoint()})
    kernel = booted(machine)
    assert kernel.iommu is not None
    assert machine.unit is not None and machine.unit.translation_enabled
    assert isinstance(kernel.dma(kernel.device(EDU)), TranslatedDma)
    for line in (
        "DMAR: Host address width 48",
        "DMAR: DRHD base: 0x000000fed90000 flags: 0x1",
        "DMAR: IOMMU enabled",
        "DMAR: dmar0: Using Queued invalidation",
        "iommu: Default domain type: Translated",
        "iommu: DMA domain TLB invalidation policy: strict mode",
        "PCI: MMCONFIG for domain 0000 [bus 00-ff] at [mem 0xb0000000-0xbfffffff]",
        "pci 0000:00:04.0: BAR 0: assigned [mem 0xc0000000-0xc00fffff]",
    ):
        assert line in machine.lines
    assert "DMAR: IOMMU batching disallowed due to virtualization" not in machine.lines


@pytest.mark.parametrize(
    ("command_line", "unit"),
    [("intel_iommu=off", UnitConfig()), ("", UnitConfig()), ("iommu=pt", UnitConfig()), ("intel_iommu=on", None)],
)
def test_direct_modes(command_line: str, unit: UnitConfig | None) -> None:
    machine = FakeMachine(command_line, unit, {EDU: endpoint()})
    kernel = booted(machine)
    assert kernel.iommu is None
    assert isinstance(kernel.dma(kernel.device(EDU)), DirectDma)
    assert any("devices reach all memory" in line for line in machine.lines) == bool(command_line != "" or unit)


def test_lazy_with_caching_mode_goes_strict_with_linux_message() -> None:
    machine = FakeMachine("intel_iommu=on iommu.strict=0", UnitConfig(caching_mode=True))
    booted(machine)
    assert "DMAR: IOMMU batching disallowed due to virtualization" in machine.lines
    assert "iommu: DMA domain TLB invalidation policy: strict mode" in machine.lines


def test_lazy_without_caching_mode_is_said_to_be_missing() -> None:
    machine = FakeMachine("intel_iommu=on iommu.strict=0", UnitConfig())
    booted(machine)
    assert "iommu: lazy mode (iommu.strict=0) is not implemented; strict mode is used" in machine.lines


def test_registers_that_answer_all_ones_leave_devices_direct() -> None:
    machine = FakeMachine(unit=UnitConfig(), functions={EDU: endpoint()})
    machine.unit = None
    kernel = booted(machine)
    assert kernel.iommu is None
    assert "DMAR: DMAR reported at address fed90000 returns all ones!" in machine.lines


def test_translation_left_on_is_switched_off_first() -> None:
    machine = FakeMachine(unit=UnitConfig())
    assert machine.unit is not None
    machine.unit.write(Reg.GCMD, 4, Command.TE)
    commands: list[int] = []
    real = machine.mmio_write

    def watch(address: int, size: int, value: int) -> None:
        if address == platform.REMAPPING_UNIT_BASE + Reg.GCMD:
            commands.append(value)
        real(address, size, value)

    machine.mmio_write = watch  # type: ignore[method-assign]
    booted(machine)
    assert commands[0] == 0, "off, before the tables of whoever was here before are replaced"
    assert [bool(command & Command.TE) for command in commands] == [False] * (len(commands) - 1) + [True]
    assert machine.unit.translation_enabled


def test_devices_for_vfio_stay_blocked_and_undriven() -> None:
    machine = FakeMachine(
        "intel_iommu=on vfio-pci.ids=01:00.0", UnitConfig(), {EDU: endpoint(), 0x30: root_port(6, endpoint())}
    )
    kernel = Kernel(machine, drivers=[_Driver])
    kernel.boot(machine.boot_params)
    assert kernel.iommu is not None
    assert set(kernel.drivers) == {EDU}
    assert kernel.iommu.attached(kernel.device(0x100)) is None
    assert kernel.iommu.attached(kernel.device(EDU)) is not None
    assert machine.dma_read(0x100, 0x1000, 4) is None


def test_a_probe_that_fails_is_logged() -> None:
    machine = FakeMachine(functions={EDU: endpoint()})
    kernel = Kernel(machine, drivers=[_Broken])
    kernel.boot(machine.boot_params)
    assert kernel.drivers == {}
    assert "broken 0000:00:04.0: probe failed: no luck" in machine.lines


def test_hotplug_binds_and_unplug_gives_all_back() -> None:
    port = root_port(6)
    machine = FakeMachine(unit=UnitConfig(), functions={0x30: port})
    kernel = Kernel(machine, drivers=[_Driver])
    kernel.boot(machine.boot_params)
    assert kernel.iommu is not None
    free = kernel.pages.free_pages
    for _ in range(3):
        port.children[0] = endpoint()
        assert [device.bdf for device in kernel.rescan()] == [0x100]
        assert kernel.rescan() == []
        device = kernel.device(0x100)
        assert device.bars[0].address == 0xC000_0000
        iova = kernel.dma(device).map(0x20_0000, 4096, 0)  # type: ignore[arg-type]
        assert machine.dma_write(0x100, iova, b"legal")
        kernel.dma(device).unmap(iova, 4096, 0)  # type: ignore[arg-type]
        kernel.remove(0x100)
        del port.children[0]
        assert not machine.dma_write(0x100, iova, b"rogue")
    # The context table of bus 1 stays.
    assert kernel.pages.free_pages == free - 1
    with pytest.raises(OSError, match="no PCI function"):
        kernel.device(0x100)


def test_memory_map_leaves_only_the_bar_window() -> None:
    for ram in ((0, 16 * MIB),), ((0, 2 * GIB), (4 * GIB, GIB)), ((0, MIB), (64 * GIB, GIB)):
        memory = PhysicalMemory([Slot("low", 0, memoryview(bytearray(MIB)))])
        address = install(memory, MachineDescription(ram=ram))
        params = read_boot_params(memory, address)
        assert params.pci_gap == (platform.MMIO_FIRST, platform.MMIO_LAST + 1)
        assert sum(size for _, size in params.ram) == sum(size for _, size in ram) - MIB


def test_firmware_refuses_a_machine_it_cannot_describe() -> None:
    memory = PhysicalMemory([Slot("low", 0, memoryview(bytearray(MIB)))])
    with pytest.raises(ValueError, match="first MiB"):
        install(memory, MachineDescription(ram=((4 * GIB, GIB),)))
    with pytest.raises(ValueError, match="command line"):
        install(memory, MachineDescription(ram=((0, MIB),), command_line="x" * 2048))
    many = tuple((base * 16 * GIB, GIB) for base in range(1, 130))
    with pytest.raises(ValueError, match="memory map"):
        install(memory, MachineDescription(ram=((0, MIB), *many)))


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (boot.HEADER_MAGIC, b"oops", "no Linux boot parameters"),
        (boot.BOOT_FLAG, b"\0\0", "no Linux boot parameters"),
        (boot.E820_ENTRIES, b"\0", "memory map of 0 ranges"),
        (boot.E820_ENTRIES, b"\xff", "memory map of 255 ranges"),
        (boot.E820_TABLE, b"\xff" * 8, "overlaps another or wraps"),
        (boot.COMMAND_LINE_POINTER, b"\xff\xff\xff\x7f", "outside memory"),
    ],
)
def test_bad_boot_params_panic(offset: int, value: bytes, reason: str) -> None:
    machine = FakeMachine()
    machine.memory.write(machine.boot_params + offset, value)
    with pytest.raises(KernelPanic, match=reason):
        booted(machine)


def test_boot_params_outside_memory_and_endless_command_line_panic() -> None:
    machine = FakeMachine()
    with pytest.raises(KernelPanic, match="outside memory"):
        Kernel(machine).boot(1 << 40)
    machine.memory.write(platform.COMMAND_LINE, b"x" * boot.COMMAND_LINE_LIMIT)
    with pytest.raises(KernelPanic, match="has no end"):
        booted(machine)


def test_no_room_for_bars_panics() -> None:
    machine = FakeMachine()
    page = bytearray(boot_params(machine.description, platform.ACPI_TABLES, 0))
    full = [*memory_map(machine.ram), boot.E820Entry(platform.MMIO_FIRST, 0x3EC0_0000, boot.E820Type.RESERVED)]
    page[boot.E820_ENTRIES] = len(full)
    for index, entry in enumerate(full):
        boot.E820_ENTRY.pack_into(page, boot.E820_TABLE + index * boot.E820_ENTRY.size, *entry)
    machine.memory.write(machine.boot_params, bytes(page))
    with pytest.raises(KernelPanic, match="no room for PCI devices"):
        booted(machine)


def test_a_bad_device_name_on_the_command_line_panics() -> None:
    with pytest.raises(KernelPanic, match=r"vfio-pci.ids: 'nonsense' is no PCI address"):
        booted(FakeMachine("vfio-pci.ids=nonsense"))


def test_command_line() -> None:
    line = CommandLine(" a=1 quiet nic.static=00:04.0,,00:05.0 a=2 vfio-pci.ids=x on=off flag=maybe ")
    assert line.get("a") == "2" and line.get("b") == "" and line.get("b", "c") == "c"
    assert line.values("nic.static") == ["00:04.0", "00:05.0"] and line.values("none") == []
    assert line.values("vfio_pci.ids") == ["x"]
    assert line.flags == {"quiet"}
    assert line.enabled("quiet") and not line.enabled("on") and not line.enabled("flag")
    assert line.enabled("flag", default=True) and not line.enabled("none")


class _Driver:
    name = "driver"
    ids = ((0x1234, 0x11E8),)

    @classmethod
    def probe(cls, kernel: Kernel, device: PciDevice) -> _Driver:
        return cls()

    def remove(self) -> None:
        pass

    def run_io(self, operations: int) -> IoResult:
        return IoResult(operations, 0, True, "dynamic")


class _Broken(_Driver):
    name = "broken"

    @classmethod
    def probe(cls, kernel: Kernel, device: PciDevice) -> _Driver:
        raise OSError(5, "no luck")


def test_hugepages_are_the_highest_and_nobody_elses() -> None:
    machine = FakeMachine("hugepages=2")
    kernel = booted(machine)
    base, size = kernel.hugepages
    assert (base % HUGEPAGE, size) == (0, 2 * HUGEPAGE)
    assert all(not base <= kernel.pages.alloc() < base + size for _ in range(64))
    assert "HugeTLB: registered 2.00 MiB page size, pre-allocated 2 pages" in machine.lines


@pytest.mark.parametrize("wanted", ["many", "-1", "1000000"])
def test_hugepages_that_cannot_be(wanted: str) -> None:
    with pytest.raises(KernelPanic, match=f"hugepages={wanted}"):
        booted(FakeMachine(f"hugepages={wanted}"))


def test_root_buses_of_other_host_bridges_are_found_where_the_command_line_says() -> None:
    functions = {EDU: endpoint(), 0x100 | EDU: endpoint(), 0x300 | EDU: endpoint()}
    for words, buses in (("", [0]), ("pci=lastbus=1", [0, 1]), ("pci=noats,lastbus=3", [0, 1, 3])):
        kernel = booted(FakeMachine(words, functions=functions))
        found = [device for device in kernel.pci if device.bdf & 0xFF == EDU]
        assert [device.bus for device in found] == buses and not any(device.parent for device in found)
        # One window for BARs between them all.
        assert len({device.bars[0].address for device in found}) == len(buses)


def test_a_last_bus_that_cannot_be() -> None:
    with pytest.raises(KernelPanic, match="pci=lastbus=x is no number"):
        booted(FakeMachine("pci=lastbus=x"))
