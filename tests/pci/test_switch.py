"""Rules of a PCI Express switch: its ports, its access control, and the way from peer to peer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pci.tree import (
    BARS,
    BELOW,
    DOWNSTREAM_PORTS,
    LINKS,
    PLAIN,
    PLAIN_BAR,
    PLAIN_LINK,
    UPSTREAM_PORT,
    Tree,
    switch,
)
from viommu_actors.pci.component import MAX_BEHIND, SwitchConfig
from viommu_actors.pci.link import LogEntry, Outcome
from viommu_actors.spec import pci, tlp
from viommu_actors.spec.vtd import Access

ROGUE, VICTIM = BELOW
ROGUE_LINK, VICTIM_LINK = LINKS
PORT = DOWNSTREAM_PORTS[0]
VICTIM_BAR = BARS[1]
REDIRECT = pci.Acs.REQUEST_REDIRECT
ABORT = tlp.Completion(7, tlp.CompletionStatus.COMPLETER_ABORT, 0, b"")
UNSUPPORTED = tlp.Completion(7, tlp.CompletionStatus.UNSUPPORTED_REQUEST, 0, b"")


# --- down


def test_the_ports_are_functions_on_buses_of_the_fabric() -> None:
    tree = switch()
    got: list[int] = []
    for bdf in (UPSTREAM_PORT, *DOWNSTREAM_PORTS, pci.bdf(3, 2, 0), pci.bdf(3, 0, 1), UPSTREAM_PORT + 1):
        tree.root.config_read(bdf, pci.DEVICE_ID, 2, got.append)
    ports = [pci.DEVICE_SWITCH_UPSTREAM, pci.DEVICE_SWITCH_DOWNSTREAM, pci.DEVICE_SWITCH_DOWNSTREAM]
    assert got == [*ports, 0xFFFF, 0xFFFF, 0xFFFF]
    assert not any(tree.sent.values())


@pytest.mark.parametrize("number", [0, 1])
def test_requests_leave_by_the_port_of_their_bus_or_address(number: int) -> None:
    tree = switch()
    link = LINKS[number]
    got: list[int] = []
    tree.root.config_read(BELOW[number], 0, 4, got.append)
    tree.root.mmio_read(BARS[number] + 8, 4, got.append)
    tree.root.mmio_write(BARS[number], 4, 5)
    config, read, write = tree.sent[link]
    assert isinstance(config, tlp.CfgRead) and (config.bus, config.devfn) == (BELOW[number] >> 8, 0)
    assert isinstance(read, tlp.MmioRead) and write == tlp.MmioWrite(BARS[number], b"\5\0\0\0")
    for tag, data in ((config.tag, b"abcd"), (read.tag, b"\1\0\0\0")):
        tree.root.receive(link, tlp.Completion(tag, 0, 4, data))
    assert got == [int.from_bytes(b"abcd", "little"), 1]
    assert not tree.sent[LINKS[1 - number]] and not tree.sent[PLAIN_LINK]


def test_no_device_but_the_first_is_behind_a_downstream_port() -> None:
    tree = switch()
    got: list[int] = []
    tree.root.config_read(pci.bdf(4, 1, 0), 0, 4, got.append)
    assert got == [0xFFFF_FFFF] and not tree.sent[ROGUE_LINK]


def test_a_port_that_does_not_forward_memory_hides_what_is_behind() -> None:
    for port in (UPSTREAM_PORT, DOWNSTREAM_PORTS[1], pci.bdf(0, 2, 0)):
        tree = switch()
        tree.configure(port, pci.COMMAND, 2, pci.Command.BUS_MASTER)
        got: list[int] = []
        tree.root.mmio_read(VICTIM_BAR, 4, got.append)
        assert got == [0xFFFF_FFFF] and not tree.sent[VICTIM_LINK]


@pytest.mark.parametrize(
    ("port", "reset"),
    [
        (pci.bdf(0, 2, 0), {ROGUE_LINK, VICTIM_LINK}),
        (UPSTREAM_PORT, {ROGUE_LINK, VICTIM_LINK}),
        (DOWNSTREAM_PORTS[1], {VICTIM_LINK}),
    ],
)
def test_a_secondary_bus_reset_reaches_all_behind_and_nobody_else(port: int, reset: set[str]) -> None:
    tree = switch()
    tree.configure(port, pci.BRIDGE_CONTROL, 2, pci.SECONDARY_BUS_RESET)
    assert {link for link, sent in tree.sent.items() if sent == [tlp.HotReset(0)]} == reset
    got: list[int] = []
    tree.root.config_read(BELOW[0], 0, 4, got.append)
    forgets = port != DOWNSTREAM_PORTS[1]
    assert (got == [0xFFFF_FFFF]) is forgets, "the ports above forget their bus numbers, as the devices do"


def test_a_downstream_port_tells_whether_its_link_is_up() -> None:
    tree = switch()
    port = tree.root.ports[ROGUE_LINK].config
    status = port.capability(pci.CapabilityId.PCI_EXPRESS) + pci.EXP_LINK_STATUS
    assert port.read(status, 2) & pci.LNKSTA_DLL_ACTIVE
    tree.configure(UPSTREAM_PORT, pci.BRIDGE_CONTROL, 2, pci.SECONDARY_BUS_RESET)
    assert port.read(status, 2) & pci.LNKSTA_DLL_ACTIVE
    tree.root.detach(ROGUE_LINK)
    assert not port.read(status, 2) & pci.LNKSTA_DLL_ACTIVE


# --- up


def test_a_device_reaches_memory_under_its_own_name() -> None:
    tree = switch()
    tree.read(ROGUE_LINK, ROGUE, 0x1000)
    tree.write(ROGUE_LINK, ROGUE, 0x2000, b"abcd")
    tree.write(ROGUE_LINK, ROGUE, 0xFEE0_0000, b"1\0\0\0")
    assert tree.sent[ROGUE_LINK] == [tlp.Completion(7, 0, 4, bytes(range(4)))]
    assert tree.ram[0x2000:0x2004] == b"abcd"
    assert tree.interrupts == [(ROGUE, 0xFEE0_0000, 0x31)]
    assert tree.counters(ROGUE_LINK) == {"read": 1, "write": 1, "msi": 1}


@pytest.mark.parametrize("port", [PORT, UPSTREAM_PORT, pci.bdf(0, 2, 0)])
def test_every_port_above_must_let_it_master_the_bus(port: int) -> None:
    tree = switch()
    tree.configure(port, pci.COMMAND, 2, pci.Command.MEMORY)
    tree.read(ROGUE_LINK, ROGUE, 0x1000)
    assert tree.counters(ROGUE_LINK) == {"no bus master": 1} and tree.asked == []


@pytest.mark.parametrize("requester", [VICTIM, PLAIN, pci.bdf(9, 0, 0)])
def test_source_validation_stops_a_forged_bus_number_at_the_downstream_port(requester: int) -> None:
    tree = switch()
    tree.acs(PORT, pci.Acs.SOURCE_VALIDATION)
    log = tree.root.start_log(ROGUE_LINK)
    tree.write(ROGUE_LINK, requester, 0x1000, b"evil")
    assert log.entries == [LogEntry("write", requester, 0x1000, 4, True, Outcome.ACS, None, None)]
    assert tree.counters(ROGUE_LINK) == {"acs": 1} and tree.asked == []
    tree.write(ROGUE_LINK, ROGUE + 1, 0x1000, b"fine")
    assert tree.asked == [(ROGUE + 1, 0x1000, Access.WRITE)]


def test_without_it_the_victims_name_is_believed_and_its_answer_goes_to_the_victim() -> None:
    tree = switch()
    tree.write(ROGUE_LINK, VICTIM, 0x1000, b"evil")
    tree.read(ROGUE_LINK, VICTIM, 0x1000)
    assert tree.asked == [(VICTIM, 0x1000, Access.WRITE), (VICTIM, 0x1000, Access.READ)]
    assert tree.sent[VICTIM_LINK] == [tlp.Completion(7, 0, 4, b"evil")] and not tree.sent[ROGUE_LINK]


def test_the_root_port_validates_what_the_switch_lets_through() -> None:
    tree = switch(acs=False)
    tree.write(ROGUE_LINK, PLAIN, 0x1000, b"evil")
    assert tree.counters(ROGUE_LINK) == {"acs": 1} and tree.asked == []
    open_tree = Tree(SwitchConfig("sw0", 2, acs=False), root_acs=False)
    open_tree.write(ROGUE_LINK, PLAIN, 0x1000, b"evil")
    assert open_tree.asked == [(PLAIN, 0x1000, Access.WRITE)]


@pytest.mark.parametrize("requester", [UPSTREAM_PORT, DOWNSTREAM_PORTS[1]])
def test_the_answer_to_a_port_of_the_switch_reaches_no_device(requester: int) -> None:
    tree = switch(acs=False)
    tree.read(ROGUE_LINK, requester, 0x1000)
    assert not any(tree.sent.values())
    assert tree.counters(ROGUE_LINK)["completion nowhere"] == 1


@pytest.mark.parametrize("data", [b"", b"\6\0\0\0"])
def test_a_configuration_request_from_below_is_unsupported_and_reaches_no_peer(data: bytes) -> None:
    tree = switch()
    log = tree.root.start_log(ROGUE_LINK)
    tree.root.receive(ROGUE_LINK, tlp.ConfigRequest(ROGUE, 7, VICTIM >> 8, 0, pci.COMMAND, data))
    kind = "config write" if data else "config read"
    place = pci.ecam_offset(VICTIM, pci.COMMAND)
    assert log.entries == [LogEntry(kind, ROGUE, place, len(data), bool(data), Outcome.UNSUPPORTED, None, None)]
    assert tree.sent == {PLAIN_LINK: [], ROGUE_LINK: [UNSUPPORTED], VICTIM_LINK: []}


# --- peer to peer


def test_a_write_to_a_peers_bar_turns_round_in_the_switch() -> None:
    tree = switch()
    tree.table = {}
    log = tree.root.start_log(ROGUE_LINK)
    tree.write(ROGUE_LINK, ROGUE, VICTIM_BAR + 8, b"evil")
    assert tree.sent[VICTIM_LINK] == [tlp.MmioWrite(VICTIM_BAR + 8, b"evil")]
    assert tree.asked == []
    assert log.entries == [LogEntry("peer write", ROGUE, VICTIM_BAR + 8, 4, True, Outcome.OK, VICTIM_BAR + 8, None)]


def test_a_read_of_a_peers_bar_is_completed_by_the_peer() -> None:
    tree = switch()
    tree.read(ROGUE_LINK, ROGUE, VICTIM_BAR + 8, first=0b1100)
    [request] = tree.sent[VICTIM_LINK]
    assert request == tlp.MmioRead(0, VICTIM_BAR + 10, 2) and not tree.sent[ROGUE_LINK]
    tree.root.receive(VICTIM_LINK, tlp.Completion(0, 0, 2, b"xy"))
    assert tree.sent[ROGUE_LINK] == [tlp.Completion(7, 0, 2, b"\0\0xy")]
    assert tree.asked == [] and tree.counters(ROGUE_LINK) == {"peer read": 1}


@pytest.mark.parametrize("end", ["refused", "timed out", "gone"])
def test_a_peer_that_gives_no_data_is_an_unsupported_request(end: str) -> None:
    tree = switch()
    tree.read(ROGUE_LINK, ROGUE, VICTIM_BAR)
    if end == "refused":
        tree.root.receive(VICTIM_LINK, tlp.Completion(0, tlp.CompletionStatus.UNSUPPORTED_REQUEST, 0, b""))
    elif end == "timed out":
        tree.root.expire(VICTIM_LINK, 0)
    else:
        tree.root.detach(VICTIM_LINK)
    assert tree.sent[ROGUE_LINK] == [UNSUPPORTED]


def test_request_redirect_sends_it_to_the_root_complex_where_the_iommu_stops_it() -> None:
    tree = switch()
    tree.acs(PORT, REDIRECT)
    tree.table = {}
    tree.write(ROGUE_LINK, ROGUE, VICTIM_BAR, b"evil")
    tree.read(ROGUE_LINK, ROGUE, VICTIM_BAR)
    assert tree.asked == [(ROGUE, VICTIM_BAR, Access.WRITE), (ROGUE, VICTIM_BAR, Access.READ)]
    assert tree.counters(ROGUE_LINK) == {"fault": 2}
    assert tree.sent[ROGUE_LINK] == [UNSUPPORTED] and not tree.sent[VICTIM_LINK]


def test_redirected_and_let_through_by_the_iommu_it_ends_at_the_root_complex() -> None:
    tree = switch()
    tree.acs(PORT, REDIRECT)
    tree.write(ROGUE_LINK, ROGUE, VICTIM_BAR, b"evil")
    assert tree.counters(ROGUE_LINK) == {"peer to peer": 1}, "which routes nothing to peers"


def test_without_redirect_an_iova_in_a_peers_window_never_reaches_memory() -> None:
    tree = switch()
    tree.table = {(ROGUE, VICTIM_BAR >> 12): Access.BOTH}
    tree.write(ROGUE_LINK, ROGUE, VICTIM_BAR, b"data")
    assert tree.asked == [] and tree.sent[VICTIM_LINK]


def test_source_validation_holds_between_peers_too() -> None:
    tree = switch()
    tree.acs(PORT, pci.Acs.SOURCE_VALIDATION)
    tree.write(ROGUE_LINK, PLAIN, VICTIM_BAR, b"evil")
    tree.read(ROGUE_LINK, PLAIN, VICTIM_BAR)
    assert tree.counters(ROGUE_LINK) == {"acs": 2}
    assert not tree.sent[VICTIM_LINK] and tree.sent[PLAIN_LINK] == [ABORT]


def test_the_port_itself_must_let_it_master_the_bus() -> None:
    tree = switch()
    tree.configure(PORT, pci.COMMAND, 2, pci.Command.MEMORY)
    tree.write(ROGUE_LINK, ROGUE, VICTIM_BAR, b"evil")
    assert not tree.sent[VICTIM_LINK] and tree.counters(ROGUE_LINK) == {"no bus master": 1}


def test_what_is_no_register_access_no_peer_supports() -> None:
    tree = switch()
    tree.write(ROGUE_LINK, ROGUE, VICTIM_BAR, bytes(64))
    tree.write(ROGUE_LINK, ROGUE, VICTIM_BAR, b"abcd", first=0b0111)
    tree.read(ROGUE_LINK, ROGUE, VICTIM_BAR, 1024)
    tree.root.receive(ROGUE_LINK, tlp.Atomic(ROGUE, 7, 0, tlp.AtomicKind.SWAP, VICTIM_BAR, b"abcd"))
    assert tree.counters(ROGUE_LINK) == {"unsupported": 4}
    assert tree.sent[ROGUE_LINK] == [UNSUPPORTED] * 2 and not tree.sent[VICTIM_LINK]


def test_malformed_requests_reach_no_peer() -> None:
    tree = switch()
    tree.write(ROGUE_LINK, ROGUE, VICTIM_BAR + 2, b"evil")
    tree.read(ROGUE_LINK, ROGUE, VICTIM_BAR + 0xFFC, 2)
    assert tree.counters(ROGUE_LINK) == {"malformed": 2}
    assert not tree.sent[VICTIM_LINK] and not tree.sent[ROGUE_LINK]


def test_a_devices_own_window_is_reached_by_nobody_from_below() -> None:
    tree = switch()
    tree.write(ROGUE_LINK, ROGUE, BARS[0], b"abcd")
    assert tree.counters(ROGUE_LINK) == {"unsupported": 1} and not tree.sent[ROGUE_LINK]
    tree.acs(PORT, pci.Acs.UPSTREAM_FORWARDING)
    tree.write(ROGUE_LINK, ROGUE, BARS[0], b"abcd")
    assert tree.asked == [(ROGUE, BARS[0], Access.WRITE)], "forwarded upstream"


@pytest.mark.parametrize("link", [ROGUE_LINK, PLAIN_LINK])
def test_no_way_leads_from_peer_to_peer_by_the_root_complex(link: str) -> None:
    tree = switch()
    own, target = (ROGUE, PLAIN_BAR) if link == ROGUE_LINK else (PLAIN, VICTIM_BAR)
    tree.write(link, own, target, b"evil")
    assert tree.counters(link) == {"peer to peer": 1}
    assert not tree.sent[VICTIM_LINK] and not tree.sent[PLAIN_LINK]


@settings(max_examples=300, deadline=None)
@given(
    services=st.integers(0, 31).map(pci.Acs),
    requester=st.sampled_from([ROGUE, VICTIM, PLAIN, UPSTREAM_PORT, *DOWNSTREAM_PORTS, 0, 0xFFFF]),
    base=st.sampled_from([*BARS, PLAIN_BAR, 0, 0xFEE0_0000, 1 << 40, (1 << 64) - 4096]),
    offset=st.integers(0, 4095),
    data=st.binary(max_size=64),
    enables=st.tuples(st.integers(0, 15), st.integers(0, 15)),
    dwords=st.integers(1, 1024),
    at=st.integers(0, 3),
)
def test_whatever_is_sent_and_to_whom_no_peer_is_reached_with_redirect(
    services: pci.Acs,
    requester: int,
    base: int,
    offset: int,
    data: bytes,
    enables: tuple[int, int],
    dwords: int,
    at: int,
) -> None:
    tree = switch()
    tree.acs(PORT, services)
    tree.table = {}
    before = bytes(tree.ram)
    address = base + offset
    tree.root.receive(ROGUE_LINK, tlp.MemRead(requester, 7, at, address, dwords, *enables))
    tree.root.receive(ROGUE_LINK, tlp.MemWrite(requester, at, address, *enables, data))
    tree.root.receive(ROGUE_LINK, tlp.Atomic(requester, 7, at, 1, address, data[:32].ljust(4, b"\0")))
    reached = [each for sent in tree.sent.values() for each in sent if not isinstance(each, tlp.Completion)]
    assert tree.ram == before
    assert not [each for each in tree.sent[ROGUE_LINK] if not isinstance(each, tlp.Completion)]
    assert not [each for each in tree.sent[PLAIN_LINK] if not isinstance(each, tlp.Completion)]
    if services & REDIRECT or base != VICTIM_BAR:
        assert not reached
    if services & pci.Acs.SOURCE_VALIDATION and requester >> 8 != ROGUE >> 8:
        assert not reached and not tree.asked and not tree.interrupts


@pytest.mark.parametrize("count", [0, MAX_BEHIND + 1])
def test_a_switch_has_a_sensible_number_of_ports(count: int) -> None:
    with pytest.raises(ValueError, match="behind one component"):
        SwitchConfig("sw0", count)
