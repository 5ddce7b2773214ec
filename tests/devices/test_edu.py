"""edu as QEMU's docs/specs/edu.rst and hw/misc/edu.c describe it."""

from __future__ import annotations

import math

import pytest

from tests.devices.bench import VECTOR, Bench
from viommu_actors.devices.edu import Edu
from viommu_actors.spec import edu, pci
from viommu_actors.spec.edu import Interrupt, Reg

FROM_MEMORY, TO_MEMORY, INTERRUPT = 1, 3, 4


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.endpoint = Edu(bench.send, bench.lines.append)
    bench.enable()
    bench.memory[:] = bytes(it * 13 % 251 for it in range(len(bench.memory)))
    return bench


def start(bench: Bench, source: int, destination: int, count: int, command: int) -> None:
    for register, value in zip((0x80, 0x88, 0x90, 0x98), (source, destination, count, command), strict=True):
        bench.write(register, value, 8)


def test_identity(bench: Bench) -> None:
    assert bench.config_read(pci.VENDOR_ID, 4) == 0x11E8_1234
    assert bench.config_read(pci.REVISION_ID, 1) == 0x10
    assert bench.config_read(pci.CLASS_DEVICE, 2) == 0x00FF
    assert bench.endpoint.config.bars[0].size == 1 << 20
    assert bench.read(0x00) == 0x010000ED


def test_liveness_inverts(bench: Bench) -> None:
    bench.write(0x04, 0x0F0F_1234)
    assert bench.read(0x04) == 0xF0F0_EDCB


@pytest.mark.parametrize("value", [0, 1, 5, 12, 20, 33, 34, 35, 0xFFFF_FFFF])
def test_factorial_modulo_two_to_the_32(bench: Bench, value: int) -> None:
    bench.write(0x08, value)
    assert bench.read(0x20) == 0
    assert bench.read(0x08) == (math.factorial(value) % 2**32 if value < 1000 else 0)


def test_factorial_raises_an_interrupt_if_asked(bench: Bench) -> None:
    bench.write(0x08, 3)
    bench.write(0x20, 0xFF)
    assert bench.read(0x20) == 0x80
    bench.write(0x08, 4)
    bench.serve()
    assert bench.vectors == [VECTOR] and bench.read(0x24) == Interrupt.FACTORIAL


def test_interrupts_are_raised_and_acknowledged(bench: Bench) -> None:
    bench.write(0x60, 0x6)
    bench.write(0x60, 0x8)
    bench.serve()
    assert bench.vectors == [VECTOR] * 2 and bench.read(0x24) == 0xE
    bench.write(0x64, 0xA)
    assert bench.read(0x24) == 0x4
    bench.write(0x64, 0x4)
    bench.write(0x60, 0)
    assert bench.read(0x24) == 0 and bench.sent == []


@pytest.mark.parametrize(("offset", "size"), [(0x00, 8), (0x20, 8), (0x00, 2), (0x04, 1), (0x80, 2), (0x98, 1)])
def test_other_access_sizes_are_not_answered(bench: Bench, offset: int, size: int) -> None:
    assert bench.read(offset, size) is None


def test_writes_of_other_sizes_are_ignored(bench: Bench) -> None:
    bench.write(0x04, 1, 8)
    bench.write(0x80, 5, 2)
    assert bench.read(0x04) == 0 and bench.read(0x80, 8) == 0


def test_offsets_without_a_register_read_all_ones(bench: Bench) -> None:
    assert [bench.read(0x0C), bench.read(0x84), bench.read(0xA0, 8)] == [2**32 - 1, 2**32 - 1, 2**64 - 1]


def test_a_dword_write_to_a_dma_register_clears_its_upper_half(bench: Bench) -> None:
    bench.write(0x80, 0x1_0000_0002, 8)
    assert bench.read(0x80, 8) == 0x1_0000_0002 and bench.read(0x80) == 2
    bench.write(0x80, 7)
    assert bench.read(0x80, 8) == 7


def test_a_transfer_there_and_back(bench: Bench) -> None:
    """The example of the specification."""
    start(bench, 0x1000, edu.BUFFER, 100, FROM_MEMORY)
    assert bench.read(0x98) == FROM_MEMORY
    bench.serve()
    assert bench.read(0x98) == 0
    start(bench, edu.BUFFER, 0x1000 + 100, 100, TO_MEMORY)
    bench.serve()
    assert bench.memory[0x1064:0x10C8] == bench.memory[0x1000:0x1064]
    assert bench.read(0x98) == 2 and bench.vectors == []


def test_a_transfer_raises_an_interrupt_if_asked(bench: Bench) -> None:
    start(bench, 0x1000, edu.BUFFER, 4096, FROM_MEMORY | INTERRUPT)
    assert bench.read(0x24) == 0
    bench.serve()
    assert bench.vectors == [VECTOR] and bench.read(0x24) == Interrupt.DMA


def test_the_registers_of_a_running_transfer_stay(bench: Bench) -> None:
    start(bench, 0x1000, edu.BUFFER, 4, FROM_MEMORY)
    start(bench, 1, 2, 3, TO_MEMORY)
    assert [bench.read(it, 8) for it in (0x80, 0x88, 0x90, 0x98)] == [0x1000, edu.BUFFER, 4, FROM_MEMORY]


def test_a_command_without_start_is_ignored(bench: Bench) -> None:
    bench.write(0x98, 6, 8)
    assert bench.read(0x98) == 0


@pytest.mark.parametrize(
    ("start_", "count"),
    [(edu.BUFFER, 4097), (edu.BUFFER + 1, 4096), (edu.BUFFER - 1, 2), (0, 4), (edu.BUFFER, 2**64 - 1), (2**64 - 1, 2)],
)
@pytest.mark.parametrize("command", [FROM_MEMORY, TO_MEMORY])
def test_a_transfer_out_of_the_buffer_is_refused(bench: Bench, start_: int, count: int, command: int) -> None:
    before = bytes(bench.memory)
    ends = (start_, 0x1000) if command == TO_MEMORY else (0x1000, start_)
    start(bench, *ends, count, command | INTERRUPT)
    bench.serve()
    assert bench.memory == before and bench.lines and bench.endpoint.counters["out of bounds"] == 1
    assert not bench.read(0x98) & 1 and bench.read(0x24) == Interrupt.DMA


def test_a_read_that_fails_leaves_zeros(bench: Bench) -> None:
    start(bench, 0x1000, edu.BUFFER, 8192 // 2, FROM_MEMORY)
    bench.serve()
    bench.refused.add(2)
    start(bench, 0x2000, edu.BUFFER, 4096, FROM_MEMORY)
    bench.serve()
    start(bench, edu.BUFFER, 0x3000, 4096, TO_MEMORY)
    bench.serve()
    assert bench.memory[0x3000:0x4000] == bytes(4096)


@pytest.mark.parametrize(("bits", "reached"), [(28, 0x1000), (40, 0x80_0000_1000)])
def test_the_mask_clamps_addresses(bits: int, reached: int) -> None:
    bench = Bench()
    bench.endpoint = Edu(bench.send, bench.lines.append, dma_bits=bits)
    bench.enable()
    start(bench, edu.BUFFER, 0x80_0000_1000, 4, TO_MEMORY)
    [write] = bench.take()
    assert write.address == reached
    assert bool(bench.lines) == (bits == 28)


def test_complaints_in_the_log_are_bounded(bench: Bench) -> None:
    for _ in range(100):
        start(bench, 0, 0, 1, FROM_MEMORY)
    assert len(bench.lines) == 10 and bench.endpoint.counters["out of bounds"] == 100


def test_reset_clears_the_registers(bench: Bench) -> None:
    bench.write(0x04, 1)
    bench.write(0x60, 1)
    express = bench.endpoint.config.capability(pci.CapabilityId.PCI_EXPRESS)
    assert express is not None
    bench.configure(express + pci.EXP_DEVICE_CONTROL, 2, pci.DEVCTL_FLR)
    bench.take()
    bench.enable()
    assert bench.read(Reg.LIVENESS) == 0 and bench.read(Reg.INTERRUPT_STATUS) == 0
