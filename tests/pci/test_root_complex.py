"""Rules of root complex and root port for what devices send, each by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pci.fabric import (
    DEVICE,
    FULL,
    LINK,
    PEER,
    PEER_BAR,
    PEER_LINK,
    READ_FAULT,
    SLOT,
    UNSUPPORTED,
    WRITE_FAULT,
    Fabric,
)
from viommu_actors.pci.link import LogEntry, Outcome
from viommu_actors.spec import pci, tlp
from viommu_actors.spec.vtd import Access, FaultReason


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
    log = fabric.root.start_log(LINK)
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
    assert fabric.sent[PEER_LINK] == []


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
    express = fabric.root.ports[LINK].config.capability(pci.CapabilityId.PCI_EXPRESS)
    assert express is not None
    fabric.configure(pci.bdf(0, SLOT, 0), express + pci.EXP_DEVICE_CONTROL, 2, 0)
    fabric.write(0x1000, bytes(256))
    assert fabric.counters == {"malformed": 1}


def test_a_configuration_request_upstream_is_unsupported(fabric: Fabric) -> None:
    fabric.root.receive(LINK, tlp.CfgWrite(0, 2, 0, 4, bytes(4)))
    assert fabric.counters == {"unsupported": 1}
    assert fabric.sent[PEER_LINK] == []


# --- identity


@given(
    acs=st.booleans(),
    first=st.integers(0, 0xFF),
    last=st.integers(0, 0xFF),
    command=st.sampled_from([0, pci.Command.BUS_MASTER]),
    requester=st.integers(0, 0xFFFF),
)
def test_whom_a_port_lets_pass_unasked_it_would_let_pass(
    acs: bool, first: int, last: int, command: int, requester: int
) -> None:
    fabric = Fabric(acs)
    port, bridge = fabric.root.ports[LINK], pci.bdf(0, SLOT, 0)
    fabric.configure(bridge, pci.COMMAND, 2, command)
    fabric.configure(bridge, pci.PRIMARY_BUS, 4, last << 16 | first << 8)
    own = port.forwards_bus(requester >> 8)
    assert (port.first_passing <= requester <= port.last_passing) == (own and port.refusal(requester, 0) is None)


def test_acs_drops_a_forged_bus_number(fabric: Fabric) -> None:
    before = bytes(fabric.ram)
    fabric.write(0x1000, b"evil", requester=PEER)
    fabric.read(0x1000, requester=PEER)
    assert fabric.counters["acs"] == 2
    assert fabric.ram == before and fabric.asked == []
    # Answered, but to the bus that was named.
    assert fabric.sent[PEER_LINK] == [tlp.Completion(7, tlp.CompletionStatus.COMPLETER_ABORT, 0, b"")]


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
    assert len(fabric.sent[PEER_LINK]) == 1


def test_the_answer_to_a_bus_that_is_nowhere_is_dropped() -> None:
    fabric = Fabric(acs=False)
    fabric.read(0x1000, requester=pci.bdf(9, 0, 0))
    assert fabric.answers == []
    assert fabric.counters["completion nowhere"] == 1


def test_acs_can_be_switched_off_by_its_control_register(fabric: Fabric) -> None:
    acs = fabric.root.ports[LINK].config.extended_capability(pci.ExtendedCapabilityId.ACS)
    assert acs is not None
    fabric.configure(pci.bdf(0, SLOT, 0), acs + pci.ACS_CONTROL, 2, 0)
    fabric.write(0x1000, b"evil", requester=PEER)
    assert fabric.ram[0x1000:0x1004] == b"evil"


@pytest.mark.parametrize("at", [tlp.AddressType.TRANSLATED, tlp.AddressType.TRANSLATION_REQUEST, 3])
def test_translation_blocking_stops_what_is_not_untranslated(fabric: Fabric, at: int) -> None:
    fabric.read(0x1000, at=at)
    fabric.write(0x1000, b"evil", at=at)
    fabric.write(0xFEE0_0000, b"evil", at=at)
    assert fabric.counters == {"acs translation blocking": 3}
    assert fabric.answers == [tlp.Completion(7, tlp.CompletionStatus.COMPLETER_ABORT, 0, b"")]
    assert fabric.asked == [] and fabric.interrupts == []


@pytest.mark.parametrize("at", [tlp.AddressType.TRANSLATED, tlp.AddressType.TRANSLATION_REQUEST, 3])
def test_without_translation_services_none_are_pretended(at: int) -> None:
    fabric = Fabric(acs=False)
    fabric.read(0x1000, at=at)
    fabric.write(0x1000, b"evil", at=at)
    assert fabric.counters == {"address type": 2}
    assert fabric.answers == [UNSUPPORTED]
    fabric.write(0xFEE0_0000, b"evil", at=at)
    assert fabric.counters["interrupt range"] == 1
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
    log = fabric.root.start_log(LINK)
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
