"""Rules of a bridge to conventional PCI: one requester ID for all behind it, and a bus that all of them hear."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pci.tree import ALIAS, BRIDGE, BRIDGE_LINKS, BRIDGE_WINDOW, ON_BRIDGE, PLAIN, PLAIN_LINK, bridge
from viommu_actors.pci.component import BridgeConfig
from viommu_actors.pci.link import LogEntry, Outcome
from viommu_actors.spec import pci, tlp
from viommu_actors.spec.vtd import Access

FIRST, SECOND = BRIDGE_LINKS
UNSUPPORTED = tlp.Completion(7, tlp.CompletionStatus.UNSUPPORTED_REQUEST, 0, b"")


def test_it_is_a_bridge_from_express_to_pci() -> None:
    tree = bridge()
    got: list[int] = []
    for bdf in (BRIDGE, BRIDGE + 1, pci.bdf(2, 1, 0)):
        tree.root.config_read(bdf, pci.DEVICE_ID, 2, got.append)
    assert got == [pci.DEVICE_PCI_BRIDGE, 0xFFFF, 0xFFFF]


def test_devices_are_told_apart_by_their_device_number() -> None:
    tree = bridge()
    got: list[int] = []
    for bdf in (*ON_BRIDGE, pci.bdf(3, 2, 0)):
        tree.root.config_read(bdf, 0, 4, got.append)
    [first], [second] = tree.sent[FIRST], tree.sent[SECOND]
    assert isinstance(first, tlp.CfgRead) and (first.bus, first.devfn) == (3, 0)
    assert isinstance(second, tlp.CfgRead) and (second.bus, second.devfn) == (3, 8)
    assert got == [0xFFFF_FFFF], "nobody claims the third"


@pytest.mark.parametrize("requester", [*ON_BRIDGE, PLAIN, BRIDGE, 0xFFFF])
@pytest.mark.parametrize("link", BRIDGE_LINKS)
def test_whatever_a_device_says_it_is_the_bridge_says_it(link: str, requester: int) -> None:
    tree = bridge()
    log = tree.root.start_log(link)
    tree.write(link, requester, 0x1000, b"abcd")
    tree.write(link, requester, 0xFEE0_0000, b"1\0\0\0")
    tree.read(link, requester, 0x1000)
    assert tree.asked == [(ALIAS, 0x1000, Access.WRITE), (ALIAS, 0x1000, Access.READ)]
    assert tree.interrupts == [(ALIAS, 0xFEE0_0000, 0x31)]
    assert log.entries[0] == LogEntry("write", ALIAS, 0x1000, 4, True, Outcome.OK, 0x1000, None)
    # The answer finds whoever asked.
    assert tree.sent[link] == [tlp.Completion(7, 0, 4, b"abcd")]
    assert not tree.sent[BRIDGE_LINKS[link == FIRST]] and not tree.sent[PLAIN_LINK]


def test_a_configuration_request_from_the_bus_is_for_nobody() -> None:
    tree = bridge()
    tree.root.receive(FIRST, tlp.ConfigRequest(PLAIN, 7, 1, 0, pci.COMMAND, bytes(2)))
    assert tree.sent == {PLAIN_LINK: [], FIRST: [UNSUPPORTED], SECOND: []}


@pytest.mark.parametrize("port", [BRIDGE, pci.bdf(0, 2, 0)])
def test_every_bridge_above_must_let_it_master_the_bus(port: int) -> None:
    tree = bridge()
    tree.configure(port, pci.COMMAND, 2, pci.Command.MEMORY)
    tree.read(SECOND, ON_BRIDGE[1], 0x1000)
    assert tree.counters(SECOND) == {"no bus master": 1} and tree.asked == []


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_conventional_bus_has_no_address_types(at: int) -> None:
    tree = bridge()
    tree.write(FIRST, ALIAS, 0x1000, b"evil", at=at)
    assert tree.counters(FIRST) == {"address type": 1} and tree.asked == []


def test_all_devices_hear_an_access_and_the_one_whose_bar_it_is_answers() -> None:
    tree = bridge()
    got: list[int] = []
    tree.root.mmio_read(BRIDGE_WINDOW, 4, got.append)
    tree.root.mmio_write(BRIDGE_WINDOW + 4, 4, 5)
    for link in BRIDGE_LINKS:
        assert tree.sent[link] == [tlp.MmioRead(0, BRIDGE_WINDOW, 4), tlp.MmioWrite(BRIDGE_WINDOW + 4, b"\5\0\0\0")]
    tree.root.receive(FIRST, tlp.Completion(0, tlp.CompletionStatus.UNSUPPORTED_REQUEST, 0, b""))
    assert got == []
    tree.root.receive(SECOND, tlp.Completion(0, 0, 4, b"\7\0\0\0"))
    assert got == [7] and tree.root.outstanding == []


def test_an_address_that_nobody_claims_reads_all_ones() -> None:
    tree = bridge()
    got: list[int] = []
    tree.root.mmio_read(BRIDGE_WINDOW, 4, got.append)
    for link in BRIDGE_LINKS:
        tree.root.receive(link, tlp.Completion(0, tlp.CompletionStatus.UNSUPPORTED_REQUEST, 0, b""))
    assert got == [0xFFFF_FFFF]


def test_the_first_answer_counts() -> None:
    tree = bridge()
    got: list[int] = []
    tree.root.mmio_read(BRIDGE_WINDOW, 4, got.append)
    tree.root.receive(SECOND, tlp.Completion(0, 0, 4, b"\1\0\0\0"))
    tree.root.receive(FIRST, tlp.Completion(0, 0, 4, b"\2\0\0\0"))
    tree.root.detach(FIRST)
    assert got == [1]


def test_devices_on_one_bus_reach_each_other_and_no_iommu_sees_it() -> None:
    tree = bridge()
    tree.table = {}
    tree.write(FIRST, ON_BRIDGE[0], BRIDGE_WINDOW, b"evil")
    tree.read(FIRST, ON_BRIDGE[0], BRIDGE_WINDOW)
    assert tree.sent[SECOND] == [tlp.MmioWrite(BRIDGE_WINDOW, b"evil"), tlp.MmioRead(0, BRIDGE_WINDOW, 4)]
    tree.root.receive(SECOND, tlp.Completion(0, 0, 4, b"data"))
    assert tree.sent[FIRST] == [tlp.Completion(7, 0, 4, b"data")] and tree.asked == []


@pytest.mark.parametrize("above", [True, False])
def test_a_secondary_bus_reset_reaches_all_on_the_bus(above: bool) -> None:
    tree = bridge()
    tree.configure(pci.bdf(0, 2, 0) if above else BRIDGE, pci.BRIDGE_CONTROL, 2, pci.SECONDARY_BUS_RESET)
    assert tree.sent == {PLAIN_LINK: [], FIRST: [tlp.HotReset(0)], SECOND: [tlp.HotReset(0)]}


def test_the_payload_that_the_bridge_takes_is_its_devices_too() -> None:
    tree = bridge()
    tree.write(FIRST, ALIAS, 0x1000, bytes(256))
    assert tree.counters(FIRST) == {"malformed": 1}, "128 bytes after a reset"
    registers = tree.root.ports[FIRST]._bridge.function.config
    express = registers.capability(pci.CapabilityId.PCI_EXPRESS)
    tree.configure(BRIDGE, express + pci.EXP_DEVICE_CONTROL, 2, pci.payload_code(256) << pci.DEVCTL_MAX_PAYLOAD_SHIFT)
    tree.write(FIRST, ALIAS, 0x1000, bytes(256))
    assert tree.counters(FIRST) == {"malformed": 1, "write": 1}


@settings(deadline=None)
@given(
    requester=st.integers(0, 0xFFFF),
    address=st.one_of(st.integers(0, (1 << 64) - 1), st.integers(BRIDGE_WINDOW, BRIDGE_WINDOW + (1 << 20))),
    enables=st.tuples(st.integers(0, 15), st.integers(0, 15)),
    data=st.binary(max_size=64),
    at=st.integers(0, 3),
)
def test_no_request_leaves_under_another_name(
    requester: int, address: int, enables: tuple[int, int], data: bytes, at: int
) -> None:
    tree = bridge()
    tree.root.receive(SECOND, tlp.MemRead(requester, 7, at, address, 1, *enables))
    tree.root.receive(SECOND, tlp.MemWrite(requester, at, address, *enables, data))
    tree.root.receive(SECOND, tlp.Atomic(requester, 7, at, 1, address, data[:32].ljust(4, b"\0")))
    assert {source for source, _, _ in tree.asked} <= {ALIAS}
    assert {source for source, _, _ in tree.interrupts} <= {ALIAS}
    assert not tree.sent[PLAIN_LINK]


def test_a_bridge_has_a_sensible_number_of_devices() -> None:
    with pytest.raises(ValueError, match="behind one component"):
        BridgeConfig("br0", 0)
