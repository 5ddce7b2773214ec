"""Root complex and root port rules, each by name."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.pci.root_complex import RootComplex
from viommu_actors.pci.root_port import LogEntry, Outcome, PortConfig
from viommu_actors.spec import pci, tlp
from viommu_actors.spec.vtd import Access, FaultReason

DEVICE = pci.bdf(1, 0, 0)
PEER = pci.bdf(2, 0, 0)
SLOT, PEER_SLOT = 1, 2
PEER_BAR = 0xC010_0000
FULL = 0xF
WRITE_FAULT, READ_FAULT = 5, 6


class Target(NamedTuple):
    address: int
    reason: int | None


class Fabric:
    """A root complex of two ports over 1 MiB, whose IOMMU is a table: (requester, page) -> (page, access)."""

    def __init__(self, acs: bool = True, max_payload: int = 4096) -> None:
        self.ram = bytearray(range(256)) * 4096
        self.memory = PhysicalMemory([Slot("ram", 0, memoryview(self.ram))])
        self.table: dict[tuple[int, int], tuple[int, Access]] | None = None
        self.asked: list[tuple[int, int, Access]] = []
        self.interrupts: list[tuple[int, int, int]] = []
        self.sent: dict[int, list[tlp.Downstream]] = {SLOT: [], PEER_SLOT: []}
        self.room = True
        ports = [PortConfig(slot, acs, max_payload) for slot in (SLOT, PEER_SLOT)]
        self.blocks: FaultReason | None = None
        self.root = RootComplex(self.memory, self.translate, self.interrupt, ports)
        for slot in (SLOT, PEER_SLOT):
            self.root.attach(slot, lambda message, slot=slot: self.send(slot, message))
            port = pci.bdf(0, slot, 0)
            self.configure(port, pci.PRIMARY_BUS, 4, slot << 16 | slot << 8)
            window = 0xC000 + 0x10 * (slot - 1)
            self.configure(port, pci.MEMORY_BASE, 4, window << 16 | window)
            self.configure(port, pci.COMMAND, 2, pci.Command.MEMORY | pci.Command.BUS_MASTER)
            express = self.root.ports[slot].config.capability(pci.CapabilityId.PCI_EXPRESS)
            assert express is not None
            code = pci.payload_code(max_payload) << pci.DEVCTL_MAX_PAYLOAD_SHIFT
            self.configure(port, express + pci.EXP_DEVICE_CONTROL, 2, code)

    def configure(self, function: int, offset: int, size: int, value: int) -> None:
        self.root.config_write(function, offset, size, value, lambda: None)

    def send(self, slot: int, message: tlp.Downstream) -> bool:
        if self.room:
            self.sent[slot].append(message)
        return self.room

    def interrupt(self, requester: int, address: int, data: int) -> FaultReason | None:
        self.interrupts.append((requester, address, data))
        return self.blocks

    def translate(self, requester: int, address: int, access: Access) -> Target:
        self.asked.append((requester, address, access))
        if self.table is None:
            return Target(address, None)
        page, allowed = self.table.get((requester, address >> 12), (0, Access(0)))
        if access & ~allowed:
            return Target(0, WRITE_FAULT if access & ~allowed & Access.WRITE else READ_FAULT)
        return Target(page << 12 | address & 0xFFF, None)

    def read(self, address: int, dwords: int = 1, first: int = FULL, last: int | None = None, **other: int) -> None:
        last = last if last is not None else FULL if dwords > 1 else 0
        requester, at = other.get("requester", DEVICE), other.get("at", 0)
        self.root.receive(SLOT, tlp.MemRead(requester, 7, at, address, dwords, first, last))

    def write(self, address: int, data: bytes, first: int = FULL, last: int | None = None, **other: int) -> None:
        last = last if last is not None else FULL if len(data) > 4 else 0
        requester, at = other.get("requester", DEVICE), other.get("at", 0)
        self.root.receive(SLOT, tlp.MemWrite(requester, at, address, first, last, data))

    def atomic(self, kind: int, address: int, data: bytes) -> None:
        self.root.receive(SLOT, tlp.Atomic(DEVICE, 7, 0, kind, address, data))

    @property
    def answers(self) -> list[tlp.Completion]:
        return [message for message in self.sent[SLOT] if isinstance(message, tlp.Completion)]

    @property
    def counters(self) -> dict[str, int]:
        return dict(self.root.ports[SLOT].counters)


UNSUPPORTED = tlp.Completion(7, tlp.CompletionStatus.UNSUPPORTED_REQUEST, 0, b"")


@pytest.fixture
def fabric() -> Fabric:
    return Fabric()


def test_a_read_returns_memory(fabric: Fabric) -> None:
    fabric.read(0x1000, 1024)
    assert fabric.answers == [tlp.Completion(7, 0, 4096, bytes(fabric.ram[0x1000:0x2000]))]
    assert fabric.asked == [(DEVICE, 0x1000, Access.READ)]


def test_a_long_read_is_completed_in_parts_with_byte_counts() -> None:
    fabric = Fabric(max_payload=128)
    fabric.read(0x1044, 100, first=0b1100, last=0b0001)
    parts = [(len(part.data), part.remaining) for part in fabric.answers]
    assert parts == [(60, 395), (128, 337), (128, 209), (84, 81)]
    assert b"".join(part.data for part in fabric.answers) == fabric.ram[0x1044 : 0x1044 + 400]


def test_a_write_changes_memory(fabric: Fabric) -> None:
    fabric.write(0x2000, b"12345678")
    assert fabric.ram[0x2000:0x2008] == b"12345678"
    assert fabric.asked == [(DEVICE, 0x2000, Access.WRITE)]


def test_only_enabled_bytes_change(fabric: Fabric) -> None:
    fabric.write(0x2000, b"abcdefgh", first=0b1001, last=0b0110)
    assert fabric.ram[0x2000:0x2008] == b"a\x01\x02d\x04fg\x07"


def test_a_write_with_no_byte_enabled_changes_nothing(fabric: Fabric) -> None:
    fabric.write(0x2000, b"abcd", first=0)
    assert fabric.ram[0x2000:0x2004] == bytes(range(4))
    assert fabric.counters == {"write": 1}


def test_a_zero_length_read_is_translated(fabric: Fabric) -> None:
    fabric.read(0x3000, 1, first=0)
    assert fabric.asked == [(DEVICE, 0x3000, Access.READ)]
    assert fabric.answers == [tlp.Completion(7, 0, 1, bytes(4))]
    fabric.table = {}
    fabric.read(0x3000, 1, first=0)
    assert fabric.answers[-1] == UNSUPPORTED


def test_a_fault_is_an_unsupported_request(fabric: Fabric) -> None:
    log = fabric.root.start_log(SLOT)
    fabric.table = {(DEVICE, 1): (2, Access.READ)}
    fabric.read(0x1000)
    fabric.write(0x1000, b"abcd")
    fabric.read(0x5000)
    assert [(e.kind, e.outcome, e.physical, e.reason) for e in log.entries] == [
        ("read", "ok", 0x2000, None),
        ("write", "fault", None, WRITE_FAULT),
        ("read", "fault", None, READ_FAULT),
    ]
    assert fabric.answers[1:] == [UNSUPPORTED]
    assert fabric.ram[0x2000:0x2004] == bytes(range(4))


def test_memory_that_is_not_there_is_an_unsupported_request(fabric: Fabric) -> None:
    fabric.read(0x4000_0000)
    fabric.write(0x4000_0000, b"abcd")
    assert fabric.answers == [UNSUPPORTED]
    assert fabric.counters == {"unclaimed": 2}


def test_another_devices_bar_is_not_reached(fabric: Fabric) -> None:
    fabric.write(PEER_BAR, b"abcd")
    fabric.read(PEER_BAR)
    assert fabric.counters == {"peer to peer": 2}
    assert fabric.sent[PEER_SLOT] == []


# --- malformed


@pytest.mark.parametrize(
    ("address", "dwords", "first", "last"),
    [
        (0x1002, 1, FULL, 0),  # address is not dword aligned
        (0x1FFC, 2, FULL, FULL),  # crosses 4 KiB
        (0x1000, 1, FULL, FULL),  # last enables of one dword
        (0x1000, 3, 0b0111, FULL),  # a hole
        (0x1000, 2, 0, FULL),
        (0x1000, 1025, FULL, FULL),  # too long
    ],
)
def test_malformed_reads_are_counted_and_dropped(
    fabric: Fabric, address: int, dwords: int, first: int, last: int
) -> None:
    fabric.read(address, dwords, first, last)
    assert fabric.counters == {"malformed": 1}
    assert fabric.answers == [] and fabric.asked == []


@pytest.mark.parametrize(
    ("address", "data", "first", "last"),
    [
        (0x1000, b"", FULL, 0),
        (0x1000, b"abc", FULL, 0),  # no whole dwords
        (0x1FFC, b"abcdefgh", FULL, FULL),
        (0x1000, bytes(132), FULL, FULL),  # longer than the max payload
    ],
)
def test_malformed_writes_are_counted_and_dropped(address: int, data: bytes, first: int, last: int) -> None:
    fabric = Fabric(max_payload=128)
    before = bytes(fabric.ram)
    fabric.write(address, data, first, last)
    assert fabric.counters == {"malformed": 1}
    assert fabric.ram == before


def test_the_programmed_max_payload_counts_not_the_capability() -> None:
    fabric = Fabric(max_payload=4096)
    express = fabric.root.ports[SLOT].config.capability(pci.CapabilityId.PCI_EXPRESS)
    assert express is not None
    fabric.configure(pci.bdf(0, SLOT, 0), express + pci.EXP_DEVICE_CONTROL, 2, 0)
    fabric.write(0x1000, bytes(256))
    assert fabric.counters == {"malformed": 1}


def test_a_configuration_request_upstream_is_unsupported(fabric: Fabric) -> None:
    fabric.root.receive(SLOT, tlp.CfgWrite(0, 2, 0, 4, bytes(4)))
    assert fabric.counters == {"unsupported": 1}
    assert fabric.sent[PEER_SLOT] == []


# --- identity


def test_acs_drops_a_forged_bus_number(fabric: Fabric) -> None:
    before = bytes(fabric.ram)
    fabric.write(0x1000, b"evil", requester=PEER)
    fabric.read(0x1000, requester=PEER)
    assert fabric.counters["acs"] == 2
    assert fabric.ram == before and fabric.asked == []
    # Answered, but to the bus that was named.
    assert fabric.sent[PEER_SLOT] == [tlp.Completion(7, tlp.CompletionStatus.COMPLETER_ABORT, 0, b"")]


def test_another_function_of_the_own_bus_passes_acs(fabric: Fabric) -> None:
    fabric.read(0x1000, requester=DEVICE + 3)
    assert fabric.asked == [(DEVICE + 3, 0x1000, Access.READ)]
    assert len(fabric.answers) == 1


def test_without_acs_a_forged_requester_is_believed() -> None:
    fabric = Fabric(acs=False)
    fabric.write(0x1000, b"evil", requester=PEER)
    assert fabric.asked == [(PEER, 0x1000, Access.WRITE)]
    assert fabric.ram[0x1000:0x1004] == b"evil"


def test_the_answer_to_a_forged_read_goes_to_the_one_it_named() -> None:
    fabric = Fabric(acs=False)
    fabric.read(0x1000, requester=PEER)
    assert fabric.answers == []
    assert len(fabric.sent[PEER_SLOT]) == 1


def test_the_answer_to_a_bus_that_is_nowhere_is_dropped() -> None:
    fabric = Fabric(acs=False)
    fabric.read(0x1000, requester=pci.bdf(9, 0, 0))
    assert fabric.answers == []
    assert fabric.counters["completion nowhere"] == 1


def test_acs_can_be_switched_off_by_its_control_register(fabric: Fabric) -> None:
    acs = fabric.root.ports[SLOT].config.extended_capability(pci.ExtendedCapabilityId.ACS)
    assert acs is not None
    fabric.configure(pci.bdf(0, SLOT, 0), acs + pci.ACS_CONTROL, 2, 0)
    fabric.write(0x1000, b"evil", requester=PEER)
    assert fabric.ram[0x1000:0x1004] == b"evil"


@pytest.mark.parametrize("at", [tlp.AddressType.TRANSLATED, tlp.AddressType.TRANSLATION_REQUEST, 3])
def test_translated_requests_are_refused(fabric: Fabric, at: int) -> None:
    fabric.read(0x1000, at=at)
    fabric.write(0x1000, b"evil", at=at)
    fabric.write(0xFEE0_0000, b"evil", at=at)
    assert fabric.counters == {"address type": 3}
    assert fabric.answers == [UNSUPPORTED]
    assert fabric.asked == [] and fabric.interrupts == []


def test_bus_master_enable_of_the_port_gates_requests(fabric: Fabric) -> None:
    fabric.configure(pci.bdf(0, SLOT, 0), pci.COMMAND, 2, pci.Command.MEMORY)
    fabric.read(0x1000)
    fabric.write(0x1000, b"abcd")
    fabric.write(0xFEE0_0000, b"abcd")
    assert fabric.counters == {"no bus master": 3}
    assert fabric.answers == [UNSUPPORTED]


# --- interrupts


def test_a_dword_write_to_the_interrupt_range_is_an_interrupt(fabric: Fabric) -> None:
    fabric.write(0xFEE0_1000, (0x4031).to_bytes(4, "little"))
    assert fabric.interrupts == [(DEVICE, 0xFEE0_1000, 0x4031)]
    assert fabric.asked == []


@pytest.mark.parametrize(("data", "first"), [(b"12345678", FULL), (b"1234", 0b0011), (b"1234", 0), (bytes(64), FULL)])
def test_any_other_write_to_the_interrupt_range_is_none(fabric: Fabric, data: bytes, first: int) -> None:
    fabric.write(0xFEE0_0000, data, first=first)
    assert fabric.interrupts == []
    assert fabric.counters == {"interrupt range": 1}


def test_a_misaligned_write_to_the_interrupt_range_is_none(fabric: Fabric) -> None:
    for address in (0xFEE0_0001, 0xFEE0_0002, 0xFEE0_0003):
        fabric.write(address, b"1234")
    fabric.write(0xFEE0_0000, b"12345678", first=0b1000, last=0b0111)
    assert fabric.interrupts == []
    assert fabric.counters == {"malformed": 3, "interrupt range": 1}


def test_the_log_says_what_blocked_an_interrupt(fabric: Fabric) -> None:
    log = fabric.root.start_log(SLOT)
    fabric.write(0xFEE0_0010, b"1\0\0\0")
    fabric.blocks = FaultReason.IR_COMPATIBILITY_BLOCKED
    fabric.write(0xFEE0_0000, b"1\0\0\0")
    fabric.write(0xFEE0_0000, b"12345678")
    assert log.entries == [
        LogEntry("msi", DEVICE, 0xFEE0_0010, 4, True, Outcome.OK, None, None),
        LogEntry("msi", DEVICE, 0xFEE0_0000, 4, True, Outcome.FAULT, None, 0x25),
        LogEntry("msi", DEVICE, 0xFEE0_0000, 8, True, Outcome.INTERRUPT_RANGE, None, None),
    ]
    assert fabric.counters == {"msi": 1, "fault": 1, "interrupt range": 1}


def test_a_read_of_the_interrupt_range_is_unsupported(fabric: Fabric) -> None:
    fabric.read(0xFEEF_FFFC)
    assert fabric.answers == [UNSUPPORTED]
    assert fabric.interrupts == [] and fabric.asked == []


def test_an_atomic_to_the_interrupt_range_is_unsupported(fabric: Fabric) -> None:
    fabric.atomic(tlp.AtomicKind.SWAP, 0xFEE0_0000, b"1234")
    assert fabric.answers == [UNSUPPORTED]
    assert fabric.interrupts == []


def test_the_interrupt_range_ends_at_its_last_byte(fabric: Fabric) -> None:
    for address in (0xFEDF_FFFC, 0xFEF0_0000, 0x1_FEE0_0000):
        fabric.write(address, b"1234")
    assert fabric.interrupts == []
    assert [address for _, address, _ in fabric.asked] == [0xFEDF_FFFC, 0xFEF0_0000, 0x1_FEE0_0000]


# --- atomics


@pytest.mark.parametrize(
    ("kind", "operand", "after"),
    [
        (tlp.AtomicKind.FETCH_ADD, b"\xff\xff\xff\xff", b"\xff\x00\x02\x03"),
        (tlp.AtomicKind.SWAP, b"abcd", b"abcd"),
        (tlp.AtomicKind.COMPARE_SWAP, b"\x00\x01\x02\x03wxyz", b"wxyz"),
        (tlp.AtomicKind.COMPARE_SWAP, b"????wxyz", b"\x00\x01\x02\x03"),
    ],
)
def test_an_atomic_answers_the_old_value(fabric: Fabric, kind: tlp.AtomicKind, operand: bytes, after: bytes) -> None:
    fabric.atomic(kind, 0x1000, operand)
    assert fabric.answers == [tlp.Completion(7, 0, 4, bytes(range(4)))]
    assert fabric.ram[0x1000:0x1004] == after
    assert fabric.asked == [(DEVICE, 0x1000, Access.READ | Access.WRITE)]


@pytest.mark.parametrize("access", [Access.READ, Access.WRITE])
def test_an_atomic_needs_read_and_write(fabric: Fabric, access: Access) -> None:
    fabric.table = {(DEVICE, 1): (1, access)}
    before = bytes(fabric.ram)
    fabric.atomic(tlp.AtomicKind.SWAP, 0x1000, b"abcdefgh")
    assert fabric.answers == [UNSUPPORTED]
    assert fabric.ram == before


@pytest.mark.parametrize(
    ("kind", "address", "data"),
    [
        (tlp.AtomicKind.FETCH_ADD, 0x1002, bytes(4)),
        (tlp.AtomicKind.FETCH_ADD, 0x1004, bytes(8)),
        (tlp.AtomicKind.FETCH_ADD, 0x1000, bytes(16)),
        (tlp.AtomicKind.SWAP, 0x1000, bytes(5)),
        (tlp.AtomicKind.COMPARE_SWAP, 0x1000, bytes(4)),
        (tlp.AtomicKind.COMPARE_SWAP, 0x1000, bytes(9)),
        (tlp.AtomicKind.COMPARE_SWAP, 0x1008, bytes(32)),
        (3, 0x1000, bytes(4)),
    ],
)
def test_atomics_of_a_wrong_size_or_alignment_are_malformed(
    fabric: Fabric, kind: int, address: int, data: bytes
) -> None:
    fabric.atomic(kind, address, data)
    assert fabric.counters == {"malformed": 1}
    assert fabric.answers == []


# --- towards devices


def test_absent_functions_read_all_ones(fabric: Fabric) -> None:
    got: list[int] = []
    for function in (pci.bdf(0, 9, 0), pci.bdf(0, SLOT, 1), pci.bdf(1, 1, 0), pci.bdf(7, 0, 0)):
        fabric.root.config_read(function, 0, 4, got.append)
    fabric.root.mmio_read(0xD000_0000, 8, got.append)
    assert got == [0xFFFF_FFFF] * 4 + [0xFFFF_FFFF_FFFF_FFFF]
    assert fabric.sent == {SLOT: [], PEER_SLOT: []}


def test_bus_zero_shows_the_host_bridge_and_the_ports(fabric: Fabric) -> None:
    got: list[int] = []
    fabric.root.config_read(0, pci.CLASS_DEVICE, 2, got.append)
    fabric.root.config_read(pci.bdf(0, SLOT, 0), pci.CLASS_DEVICE, 2, got.append)
    assert got == [pci.ClassCode.HOST_BRIDGE, pci.ClassCode.PCI_BRIDGE]


def test_a_configuration_read_waits_for_its_completion(fabric: Fabric) -> None:
    got: list[int] = []
    fabric.root.config_read(DEVICE, 0, 4, got.append)
    [request] = fabric.sent[SLOT]
    assert isinstance(request, tlp.CfgRead) and request[1:] == (1, 0, 0, 4)
    assert got == [] and fabric.root.outstanding == [(SLOT, request.tag)]
    fabric.root.receive(SLOT, tlp.Completion(request.tag, 0, 4, b"\x34\x12\xe8\x11"))
    assert got == [0x11E8_1234] and fabric.root.outstanding == []


def test_a_configuration_write_is_done_when_completed(fabric: Fabric) -> None:
    done: list[bool] = []
    fabric.root.config_write(DEVICE, 4, 2, 6, lambda: done.append(True))
    [request] = fabric.sent[SLOT]
    assert isinstance(request, tlp.CfgWrite) and request.data == b"\x06\x00" and not done
    fabric.root.receive(SLOT, tlp.Completion(request.tag, 0, 0, b""))
    assert done == [True]


def test_mmio_goes_down_the_port_whose_window_holds_it(fabric: Fabric) -> None:
    fabric.root.mmio_write(0xC000_0010, 4, 5)
    fabric.root.mmio_write(PEER_BAR, 8, 6)
    fabric.root.mmio_write(0xC020_0000, 4, 7)
    fabric.root.mmio_write(0xC000_0002, 4, 8)
    assert fabric.sent[SLOT] == [tlp.MmioWrite(0xC000_0010, b"\x05\0\0\0")]
    assert fabric.sent[PEER_SLOT] == [tlp.MmioWrite(PEER_BAR, b"\x06" + bytes(7))]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_cpus_write_carries_the_bytes_of_its_size_only(fabric: Fabric, size: int) -> None:
    fabric.root.mmio_write(0xC000_0010, size, 1 << 8 * size | 0x7F)
    fabric.root.config_write(DEVICE, 0x40, size, 1 << 8 * size | 0x7F, lambda: None)
    data = (0x7F).to_bytes(size, "little")
    mmio, config = fabric.sent[SLOT]
    assert mmio == tlp.MmioWrite(0xC000_0010, data)
    assert isinstance(config, tlp.CfgWrite) and config.data == data


def test_an_unsupported_request_reads_all_ones(fabric: Fabric) -> None:
    got: list[int] = []
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    fabric.root.receive(SLOT, tlp.Completion(0, tlp.CompletionStatus.UNSUPPORTED_REQUEST, 0, b""))
    assert got == [0xFFFF_FFFF]


def test_a_completion_nobody_asked_for_is_dropped(fabric: Fabric) -> None:
    got: list[int] = []
    fabric.root.mmio_read(PEER_BAR, 4, got.append)
    fabric.root.receive(SLOT, tlp.Completion(0, 0, 4, b"evil"))
    assert got == [] and fabric.root.outstanding == [(PEER_SLOT, 0)]
    assert fabric.counters == {"unexpected completion": 1}


@pytest.mark.parametrize("answer", [(8, b"12345678"), (4, b"12345678"), (8, b"1234"), (0, b"")])
def test_a_completion_of_a_wrong_length_is_dropped(fabric: Fabric, answer: tuple[int, bytes]) -> None:
    got: list[int] = []
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    fabric.root.receive(SLOT, tlp.Completion(0, 0, *answer))
    assert got == [] and fabric.counters == {"malformed": 1}
    fabric.root.expire(SLOT, 0)
    assert got == [0xFFFF_FFFF]


def test_after_a_timeout_the_late_completion_meets_no_newer_request(fabric: Fabric) -> None:
    got: list[int] = []
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    fabric.root.expire(SLOT, 0)
    fabric.root.expire(SLOT, 0)
    assert got == [0xFFFF_FFFF]
    fabric.root.receive(SLOT, tlp.Completion(0, 0, 4, b"late"))
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    fabric.root.receive(SLOT, tlp.Completion(0, 0, 4, b"late"))
    assert got == [0xFFFF_FFFF]
    assert fabric.counters == {"completion timeout": 1, "unexpected completion": 2}


@pytest.mark.parametrize("end", ["late completion", "completion of another", "hot reset", "another device"])
def test_a_device_that_let_a_request_time_out_is_not_waited_for_again(fabric: Fabric, end: str) -> None:
    got: list[int] = []
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    fabric.root.mmio_read(0xC000_0004, 4, lambda _: None)
    fabric.root.expire(SLOT, 0)
    for _ in range(3):
        fabric.root.mmio_read(0xC000_0000, 4, got.append)
        fabric.root.config_read(DEVICE, 0, 4, got.append)
    assert got == [0xFFFF_FFFF] * 7 and fabric.root.outstanding == [(SLOT, 1)]
    fabric.root.receive(SLOT, tlp.Completion(9, 0, 4, b"what"))
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    assert len(got) == 8, "a completion that nobody is owed changes nothing"
    if end == "late completion":
        fabric.root.receive(SLOT, tlp.Completion(0, 0, 4, b"late"))
    elif end == "completion of another":
        fabric.root.receive(SLOT, tlp.Completion(1, 0, 4, b"fine"))
    elif end == "hot reset":
        fabric.root.hot_reset(SLOT)
    else:
        fabric.root.attach(SLOT, lambda message: fabric.send(SLOT, message))
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    assert len(got) == 8 and (SLOT, 2) in fabric.root.outstanding


def test_a_full_link_reads_all_ones_at_once(fabric: Fabric) -> None:
    fabric.room = False
    got: list[int] = []
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    assert got == [0xFFFF_FFFF] and fabric.root.outstanding == []


def test_running_out_of_tags_reads_all_ones_at_once(fabric: Fabric) -> None:
    got: list[int] = []
    for _ in range(1025):
        fabric.root.mmio_read(0xC000_0000, 4, got.append)
    assert len(fabric.root.outstanding) == 1024 and got == [0xFFFF_FFFF]


def test_detaching_answers_what_waits_and_shows_in_the_slot(fabric: Fabric) -> None:
    got: list[int] = []
    port = fabric.root.ports[SLOT].config
    express = port.capability(pci.CapabilityId.PCI_EXPRESS)
    assert express is not None
    assert port.read(express + pci.EXP_SLOT_STATUS, 2) & pci.SLTSTA_PRESENT
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    fabric.root.detach(SLOT)
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    assert got == [0xFFFF_FFFF] * 2
    status = port.read(express + pci.EXP_SLOT_STATUS, 2)
    assert status & pci.SLTSTA_PRESENCE_CHANGED and not status & pci.SLTSTA_PRESENT
    assert not port.read(express + pci.EXP_LINK_STATUS, 2) & pci.LNKSTA_DLL_ACTIVE


def test_secondary_bus_reset_resets_the_device_once(fabric: Fabric) -> None:
    for value in (pci.SECONDARY_BUS_RESET, pci.SECONDARY_BUS_RESET, 0):
        fabric.configure(pci.bdf(0, SLOT, 0), pci.BRIDGE_CONTROL, 2, value)
    assert fabric.sent[SLOT] == [tlp.HotReset(0)]


def test_a_log_keeps_the_first_entries_and_counts_the_rest(fabric: Fabric) -> None:
    log = fabric.root.start_log(SLOT, capacity=2)
    for page in range(5):
        fabric.read(page << 12)
    fabric.root.stop_log(SLOT)
    fabric.read(0x9000)
    assert [entry.address for entry in log.entries] == [0, 0x1000] and log.lost == 3


@pytest.mark.parametrize(("slot", "max_payload"), [(0, 4096), (32, 4096), (1, 100)])
def test_port_options_are_checked(slot: int, max_payload: int) -> None:
    with pytest.raises(ValueError, match=r"slot|payload"):
        PortConfig(slot, max_payload=max_payload)
