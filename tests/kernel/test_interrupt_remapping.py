"""Interrupt remapping over a real unit: a device raises what it was given, and nothing else."""

from __future__ import annotations

import gzip
import json
import random
from errno import EBUSY, EINVAL, ENOSPC, ENOTSUP
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.fake_machine import FakeMachine, endpoint
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.pci import PciDevice
from viommu_actors.spec import pci, platform
from viommu_actors.spec.vtd import Command, FaultReason, InterruptEntryInvalidate, Reg, Status
from viommu_actors.spec.vtd_interrupts import InterruptEntry, InterruptRequest
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.interrupts import Blocked

FIRST, SECOND, MANY = 0x20, 0x28, 0x30
RECORDED = Path(__file__).parents[1] / "transcripts" / "linux" / "boot_sequence.jsonl.gz"
ENABLED = Status.IRES | Status.IRTPS


class Machine(FakeMachine):
    """A machine with interrupt remapping, whose unit may hide it or its queue."""

    hide_extended = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: Writes of the unit's registers: (offset, value).
        self.written: list[tuple[int, int]] = []

    def mmio_write(self, address: int, size: int, value: int) -> None:
        offset = address - platform.REMAPPING_UNIT_BASE
        if 0 <= offset < platform.REMAPPING_UNIT_SIZE:
            self.written.append((offset, value))
        super().mmio_write(address, size, value)

    def mmio_read(self, address: int, size: int) -> int:
        value = super().mmio_read(address, size)
        return value & ~self.hide_extended if address == platform.REMAPPING_UNIT_BASE + Reg.ECAP else value


class Host:
    """A booted kernel: 00:04.0 with MSI-X, 00:05.0 with MSI, 00:06.0 with 8 MSI messages."""

    def __init__(self, options: str = "", *, eim: bool = False, intremap: bool = True, hide_extended: int = 0) -> None:
        functions = {FIRST: endpoint(msix=3), SECOND: endpoint(2), MANY: endpoint(3, messages=8)}
        unit = UnitConfig(intremap=intremap, eim=eim)
        self.machine = Machine(f"intel_iommu=on {options}", unit, functions)
        self.machine.hide_extended = hide_extended
        self.kernel = Kernel(self.machine, drivers=())
        self.kernel.boot(self.machine.boot_params)
        assert self.kernel.iommu is not None
        self.iommu = self.kernel.iommu
        self.irq = self.kernel.irq
        self.came: list[str] = []

    @property
    def status(self) -> int:
        assert self.machine.unit is not None
        return self.machine.unit.read(Reg.GSTS, 4)

    def device(self, bdf: int) -> PciDevice:
        return self.kernel.device(bdf)

    def msi(self, bdf: int) -> tuple[int, int]:
        """(address, data) that the device's MSI holds."""
        device = self.device(bdf)
        offset = device.capability(pci.CapabilityId.MSI)
        assert offset is not None
        high = device.config_read(offset + pci.MSI_ADDRESS_UPPER, 4)
        address = high << 32 | device.config_read(offset + pci.MSI_ADDRESS, 4)
        return address, device.config_read(offset + pci.MSI_DATA_64, 2)

    def msix(self, index: int) -> tuple[int, int]:
        """(address, data) of an entry of the first device's table."""
        low, high, data, _ = self.entry(index)
        return high << 32 | low, data

    def entry(self, index: int) -> tuple[int, ...]:
        device = self.device(FIRST)
        return tuple(device.read(2, 16 * index + at, 4) for at in (0, 4, 8, 12))

    def send(self, requester: int, message: tuple[int, int]) -> FaultReason | None:
        """One interrupt request, and what follows of it."""
        reason = self.machine.interrupt(requester, *message)
        self.machine.wait_for_interrupt(0)
        return reason

    def table_entry(self, index: int) -> int:
        """Where the remapping entry stands."""
        assert self.irq.remapping is not None
        return self.irq.remapping.table + 16 * index

    def last_line(self) -> str:
        return self.machine.lines[-1]


def remappable(index: int) -> tuple[int, int]:
    return InterruptRequest(index, 0, subhandle_valid=True).encode()


@pytest.fixture
def host() -> Host:
    return Host()


# --- setting it up


def test_it_is_on_before_translation_and_blocks_the_compatibility_format(host: Host) -> None:
    assert host.iommu.interrupt_remapping
    assert host.status & (ENABLED | Status.CFIS) == ENABLED
    lines = host.machine.lines
    enabled = lines.index("DMAR-IR: Enabled IRQ remapping in xapic mode")
    assert enabled < lines.index("DMAR: Intel(R) Virtualization Technology for Directed I/O")
    assert host.irq.remapping is not None
    assert host.irq.remapping.table in host.iommu.structure_pages()


@pytest.mark.parametrize(
    ("options", "eim", "mode", "extended"),
    [("", True, "xapic", False), ("x2apic", True, "x2apic", True), ("x2apic", False, "xapic", False)],
)
def test_modes(options: str, eim: bool, mode: str, extended: bool) -> None:
    host = Host(options, eim=eim)
    assert f"DMAR-IR: Enabled IRQ remapping in {mode} mode" in host.machine.lines
    assert ("DMAR-IR: dmar0 does not support EIM" in host.machine.lines) == ("x2apic" in options and not eim)
    assert host.machine.unit is not None
    assert bool(host.machine.unit.read(Reg.IRTA, 8) & 1 << 11) == extended
    host.irq.request_msi(host.device(SECOND), lambda: host.came.append("came"))
    assert host.send(SECOND, host.msi(SECOND)) is None and host.came == ["came"]


@pytest.mark.parametrize(
    ("options", "intremap", "hide"), [("intremap=off", True, 0), ("", False, 0), ("", True, 1 << 3)]
)
def test_it_stays_off(options: str, intremap: bool, hide: int) -> None:
    host = Host(options, intremap=intremap, hide_extended=hide)
    assert not host.iommu.interrupt_remapping and not host.status & Status.IRES
    assert not any("DMAR-IR" in line for line in host.machine.lines)
    vector = host.irq.request_msi(host.device(SECOND), lambda: host.came.append("came"))
    assert host.msi(SECOND) == (0xFEE0_0000, vector)
    assert host.send(SECOND, host.msi(SECOND)) is None and host.came == ["came"]


def test_without_a_queue_it_is_refused_in_linux_words() -> None:
    host = Host(hide_extended=1 << 1)
    assert not host.iommu.interrupt_remapping and not host.status & Status.IRES
    start = host.machine.lines.index("DMAR-IR: Failed to enable queued invalidation")
    assert host.machine.lines[start + 1 : start + 3] == [
        "DMAR-IR: Failed to setup irq remapping for dmar0",
        "DMAR-IR: Failed to enable irq remapping. You are vulnerable to irq-injection attacks.",
    ]
    host.irq.request_msi(host.device(SECOND), lambda: host.came.append("came"))
    assert host.send(SECOND, host.msi(SECOND)) is None and host.came == ["came"]


def test_the_order_is_that_of_a_recorded_linux() -> None:
    """Table, SIRTP, all entries invalidated, IRE; as a Linux guest did it on QEMU."""
    with gzip.open(RECORDED, "rt") as lines:
        linux = [json.loads(line) for line in lines]
    writes = [(int(op["offset"], 16), int(op["value"], 16)) for op in linux if op["op"] == "reg_write"]
    assert steps(writes) == ["IRTA", "SIRTP", "invalidation", "IRE"]
    host = Host()
    assert steps(host.machine.written) == ["IRTA", "SIRTP", "invalidation", "IRE"]
    first = next(op for op in linux if op.get("type") == "iec")
    assert InterruptEntryInvalidate(indexed=False).encode() == (int(first["lo"], 16), int(first["hi"], 16))


def steps(writes: list[tuple[int, int]]) -> list[str]:
    """What was done to turn interrupt remapping on, the queue's tail written between its bits."""
    found: list[str] = []
    for offset, value in writes:
        if offset == Reg.IRTA:
            found.append("IRTA")
        elif offset == Reg.GCMD and value & Command.SIRTP:
            found.append("SIRTP")
        elif offset == Reg.IQT and found == ["IRTA", "SIRTP"]:
            found.append("invalidation")
        elif offset == Reg.GCMD and value & Command.IRE:
            return [*found, "IRE"]
    return found


# --- honest interrupts


def test_msi(host: Host) -> None:
    vector = host.irq.request_msi(host.device(SECOND), lambda: host.came.append("came"))
    address, data = host.msi(SECOND)
    assert (address, data) == remappable(0), "the message names an entry, not a vector"
    assert host.send(SECOND, (address, data)) is None
    assert host.came == ["came"] and host.kernel.counters["interrupts"] == 1
    low, high = (host.machine.memory.read_u64(host.table_entry(0) + at) for at in (0, 8))
    expected = InterruptEntry(True, vector=vector, source=SECOND, validation=1)
    assert InterruptEntry.decode(low, high) == expected


def test_several_msi_messages_share_a_block_of_entries(host: Host) -> None:
    host.irq.request_msi(host.device(SECOND), lambda: None)
    names = ["a", "b", "c", "d", "e"]
    vectors = host.irq.request_messages(host.device(MANY), [lambda name=name: host.came.append(name) for name in names])
    address, data = host.msi(MANY)
    assert InterruptRequest.decode(address, data) == (8, 0, True, 0), "naturally aligned"
    for number in range(5):
        assert host.send(MANY, (address, data | number)) is None
    assert host.came == names
    assert host.send(MANY, (address, data | 5)) == FaultReason.IR_NOT_PRESENT
    for vector in vectors:
        host.irq.free(vector)
    assert host.send(MANY, (address, data)) == FaultReason.IR_NOT_PRESENT
    host.irq.request_messages(host.device(MANY), [lambda: None] * 8)
    assert InterruptRequest.decode(*host.msi(MANY)).handle == 8, "the block came back"


def test_several_msi_messages_need_remapping_and_a_device_that_has_them() -> None:
    with pytest.raises(OSError) as error:
        Host("intremap=off").irq.request_messages(Host("intremap=off").device(MANY), [lambda: None] * 2)
    assert error.value.errno == ENOSPC
    host = Host()
    with pytest.raises(OSError) as error:
        host.irq.request_messages(host.device(SECOND), [lambda: None] * 2)
    assert error.value.errno == ENOSPC


@pytest.mark.parametrize("options", ["", "intremap=off"])
def test_msix(options: str) -> None:
    host = Host(options)
    device = host.device(FIRST)
    names = ["receive", "transmit", "error"]
    vectors = host.irq.request_vectors(device, [lambda name=name: host.came.append(name) for name in names])
    messages = [host.msix(index) for index in range(3)]
    if options:
        assert messages == [(0xFEE0_0000, vector) for vector in vectors]
    else:
        assert messages == [remappable(index) for index in range(3)]
    for index in (2, 0, 1):
        assert host.send(FIRST, messages[index]) is None
    assert host.came == ["error", "receive", "transmit"]
    offset = device.capability(pci.CapabilityId.MSIX)
    assert offset is not None
    assert device.config_read(offset + pci.MSIX_CONTROL, 2) == pci.MSIX_ENABLE | 2
    host.irq.free(vectors[1])
    assert host.entry(1)[3] == 1
    host.irq.free_device(device)
    assert device.config_read(offset + pci.MSIX_CONTROL, 2) == 2
    if not options:
        assert {host.send(FIRST, message) for message in messages} == {FaultReason.IR_NOT_PRESENT}


def test_request_vectors_falls_back_to_one_msi_for_all(host: Host) -> None:
    for device, count in ((host.device(SECOND), 3), (host.device(FIRST), 4)):
        host.came.clear()
        handlers = [lambda number=number: host.came.append(str(number)) for number in range(count)]
        assert len(host.irq.request_vectors(device, handlers)) == 1
        assert host.send(device.bdf, host.msi(device.bdf)) is None
        assert host.came == [str(number) for number in range(count)]
        host.irq.free_device(device)
        assert host.send(device.bdf, host.msi(device.bdf)) == FaultReason.IR_NOT_PRESENT


def test_msix_vectors_come_and_go_in_any_order(host: Host) -> None:
    device = host.device(FIRST)
    with pytest.raises(OSError) as error:
        host.irq.request_msix(device, 0, lambda: None)
    assert error.value.errno == EINVAL
    assert host.irq.enable_msix(device) == 3
    assert [host.entry(index)[3] for index in range(3)] == [1, 1, 1], "masked until it is set"
    with pytest.raises(OSError) as error:
        host.irq.enable_msix(device)
    assert error.value.errno == EBUSY
    vector = host.irq.request_msix(device, 2, lambda: host.came.append("two"))
    assert [host.entry(index)[3] for index in range(3)] == [1, 1, 0]
    for index, code in ((2, EBUSY), (3, EINVAL), (-1, EINVAL)):
        with pytest.raises(OSError) as error:
            host.irq.request_msix(device, index, lambda: None)
        assert error.value.errno == code
    host.irq.mask_device_vector(vector)
    assert host.entry(2)[3] == 1
    host.irq.unmask_device_vector(vector)
    assert host.entry(2)[3] == 0
    host.irq.free(vector)
    assert host.entry(2)[3] == 1
    with pytest.raises(OSError) as error:
        host.irq.mask_device_vector(host.irq.request_msi(host.device(SECOND), lambda: None))
    assert error.value.errno == ENOTSUP


def test_a_reset_loses_the_table_and_restore_sets_it_again(host: Host) -> None:
    device = host.device(FIRST)
    vectors = host.irq.request_vectors(device, [lambda: None] * 3)
    host.irq.mask_device_vector(vectors[1])
    before = [host.entry(index) for index in range(3)]
    for offset in range(0, 48, 4):
        device.write(2, offset, 4, 1 if offset % 16 == 12 else 0)
    host.irq.restore(device)
    assert [host.entry(index) for index in range(3)] == before


def test_a_table_that_lies_nowhere_is_refused() -> None:
    function = endpoint(msix=3)
    offset = function.space.capability(pci.CapabilityId.MSIX)
    assert offset is not None
    function.space.define(offset + pci.MSIX_TABLE, 4, 0xFF8 | 2)
    machine = FakeMachine(functions={FIRST: function})
    kernel = Kernel(machine, drivers=())
    kernel.boot(machine.boot_params)
    with pytest.raises(OSError) as error:
        kernel.irq.enable_msix(kernel.device(FIRST))
    assert error.value.errno == EINVAL


# --- forged ones


def test_a_compatibility_message_is_blocked(host: Host) -> None:
    vector = host.irq.request_msi(host.device(SECOND), lambda: host.came.append("came"))
    assert host.send(SECOND, (0xFEE0_0000, vector)) == FaultReason.IR_COMPATIBILITY_BLOCKED
    assert host.came == []
    assert host.last_line() == (
        "DMAR: [INTR-REMAP] Request device [00:05.0] fault index 0x0 [fault reason 0x25] "
        "Blocked a compatibility format interrupt request"
    )


def test_without_remapping_a_compatibility_message_arrives() -> None:
    host = Host("intremap=off")
    vector = host.irq.request_msi(host.device(SECOND), lambda: host.came.append("came"))
    assert host.send(FIRST, (0xFEE0_0000, vector)) is None
    assert host.came == ["came"]


def test_another_devices_handle_is_blocked(host: Host) -> None:
    host.irq.request_vectors(host.device(FIRST), [lambda: None] * 3)
    host.irq.request_msi(host.device(SECOND), lambda: host.came.append("came"))
    assert host.send(FIRST, host.msi(SECOND)) == FaultReason.IR_SOURCE_ID
    assert host.came == []
    (record,), lost = host.iommu.take_faults()
    assert (record.source, record.entry, record.reason, lost) == (FIRST, 3, FaultReason.IR_SOURCE_ID, 0)
    assert "[00:04.0] fault index 0x3 [fault reason 0x26]" in host.last_line()


def test_without_source_verification_it_arrives() -> None:
    host = Host("intremap=nosid")
    assert host.iommu.interrupt_remapping
    host.irq.request_msi(host.device(SECOND), lambda: host.came.append("came"))
    assert host.send(FIRST, host.msi(SECOND)) is None
    assert host.came == ["came"]
    assert host.send(FIRST, (0xFEE0_0000, 0x30)) == FaultReason.IR_COMPATIBILITY_BLOCKED


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (remappable(256), FaultReason.IR_INDEX),
        (remappable(0xFFFF), FaultReason.IR_INDEX),
        (remappable(255), FaultReason.IR_NOT_PRESENT),
        (InterruptRequest(0, 0, True, data_high=1).encode(), FaultReason.IR_REQUEST_RESERVED),
        (InterruptRequest(0, 1, True).encode(), FaultReason.IR_NOT_PRESENT),
    ],
)
def test_other_requests_that_are_blocked(host: Host, message: tuple[int, int], reason: FaultReason) -> None:
    host.irq.request_msi(host.device(SECOND), lambda: host.came.append("came"))
    assert host.send(SECOND, message) == reason
    assert host.came == []
    (record,), _ = host.iommu.take_faults()
    assert (record.source, record.reason) == (SECOND, reason)


def test_reserved_bits_of_an_entry(host: Host) -> None:
    host.irq.request_msi(host.device(SECOND), lambda: host.came.append("came"))
    place = host.table_entry(0) + 8
    host.machine.memory.write_u64(place, host.machine.memory.read_u64(place) | 1 << 40)
    assert host.send(SECOND, host.msi(SECOND)) == FaultReason.IR_ENTRY_RESERVED
    assert host.came == []


def test_an_entry_is_reused_only_once_the_unit_has_forgotten_it(host: Host) -> None:
    old = host.irq.request_msi(host.device(SECOND), lambda: host.came.append("old"))
    message = host.msi(SECOND)
    assert host.send(SECOND, message) is None
    before = host.kernel.counters["interrupt_entry_invalidations"]
    host.irq.free(old)
    assert host.kernel.counters["interrupt_entry_invalidations"] == before + 1
    assert host.send(SECOND, message) == FaultReason.IR_NOT_PRESENT
    host.irq.request_msi(host.device(FIRST), lambda: host.came.append("new"))
    assert host.msi(FIRST) == message, "the same entry"
    assert host.send(SECOND, message) == FaultReason.IR_SOURCE_ID
    assert host.send(FIRST, message) is None
    assert host.came == ["old", "new"]


def test_the_units_own_fault_event_is_not_remapped(host: Host) -> None:
    assert host.send(SECOND, (0xFEE0_0000, 0x40)) == FaultReason.IR_COMPATIBILITY_BLOCKED
    assert [record.reason for record in host.iommu.faults] == [FaultReason.IR_COMPATIBILITY_BLOCKED]


def test_entries_run_out_and_come_back(host: Host) -> None:
    remapping = host.irq.remapping
    assert remapping is not None
    blocks = [remapping.allocate(SECOND, [0x40] * 32) for _ in range(8)]
    assert blocks == list(range(0, 256, 32))
    with pytest.raises(OSError) as error:
        host.irq.request_msi(host.device(SECOND), lambda: None)
    assert error.value.errno == ENOSPC
    assert host.irq.request_vector(lambda: None) == 0x31, "the vector was given back"
    remapping.free(blocks[3], 32)
    assert remapping.allocate(SECOND, [0x40]) == blocks[3]


@pytest.mark.parametrize("seed", range(5))
def test_blocks_never_overlap_and_what_is_freed_is_blocked(host: Host, seed: int) -> None:
    remapping, unit, rng = host.irq.remapping, host.machine.unit, random.Random(seed)
    assert remapping is not None and unit is not None
    held: dict[int, tuple[int, list[int]]] = {}
    for step in range(200):
        if held and rng.random() < 0.45:
            first = rng.choice(list(held))
            remapping.free(first, len(held.pop(first)[1]))
        else:
            vectors = [rng.randrange(0x30, 0xF0) for _ in range(rng.choice((1, 1, 2, 3, 5, 8, 32)))]
            try:
                held[remapping.allocate(step, vectors)] = step, vectors
            except OSError as error:
                assert error.errno == ENOSPC
        expected = {
            index: (source, vector)
            for first, (source, vectors) in held.items()
            for index, vector in enumerate(vectors, first)
        }
        assert sum(len(vectors) for _, vectors in held.values()) == len(expected)
        for index in rng.sample(range(256), 16):
            source, vector = expected.get(index, (0, None))
            outcome = unit.remap_interrupt(source, *remappable(index))
            found = None if isinstance(outcome, Blocked) else outcome.interrupt.vector
            assert found == vector
