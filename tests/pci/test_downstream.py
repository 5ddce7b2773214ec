"""Root complex and root port towards devices: configuration, MMIO, completions, timeouts, presence."""

from __future__ import annotations

import pytest

from tests.pci.fabric import DEVICE, LINK, PEER_BAR, PEER_LINK, SLOT, Fabric
from viommu_actors.pci.root_port import PortConfig
from viommu_actors.spec import pci, tlp


def test_absent_functions_read_all_ones(fabric: Fabric) -> None:
    got: list[int] = []
    for function in (pci.bdf(0, 9, 0), pci.bdf(0, SLOT, 1), pci.bdf(1, 1, 0), pci.bdf(7, 0, 0)):
        fabric.root.config_read(function, 0, 4, got.append)
    fabric.root.mmio_read(0xD000_0000, 8, got.append)
    assert got == [0xFFFF_FFFF] * 4 + [0xFFFF_FFFF_FFFF_FFFF]
    assert fabric.sent == {LINK: [], PEER_LINK: []}


def test_bus_zero_shows_the_host_bridge_and_the_ports(fabric: Fabric) -> None:
    got: list[int] = []
    fabric.root.config_read(0, pci.CLASS_DEVICE, 2, got.append)
    fabric.root.config_read(pci.bdf(0, SLOT, 0), pci.CLASS_DEVICE, 2, got.append)
    assert got == [pci.ClassCode.HOST_BRIDGE, pci.ClassCode.PCI_BRIDGE]


def test_a_configuration_read_waits_for_its_completion(fabric: Fabric) -> None:
    got: list[int] = []
    fabric.root.config_read(DEVICE, 0, 4, got.append)
    [request] = fabric.sent[LINK]
    assert isinstance(request, tlp.CfgRead) and request[1:] == (1, 0, 0, 4)
    assert got == [] and fabric.root.outstanding == [(LINK, request.tag)]
    fabric.root.receive(LINK, tlp.Completion(request.tag, 0, 4, b"\x34\x12\xe8\x11"))
    assert got == [0x11E8_1234] and fabric.root.outstanding == []


def test_a_configuration_write_is_done_when_completed(fabric: Fabric) -> None:
    done: list[bool] = []
    fabric.root.config_write(DEVICE, 4, 2, 6, lambda: done.append(True))
    [request] = fabric.sent[LINK]
    assert isinstance(request, tlp.CfgWrite) and request.data == b"\x06\x00" and not done
    fabric.root.receive(LINK, tlp.Completion(request.tag, 0, 0, b""))
    assert done == [True]


def test_mmio_goes_down_the_port_whose_window_holds_it(fabric: Fabric) -> None:
    fabric.root.mmio_write(0xC000_0010, 4, 5)
    fabric.root.mmio_write(PEER_BAR, 8, 6)
    fabric.root.mmio_write(0xC020_0000, 4, 7)
    fabric.root.mmio_write(0xC000_0002, 4, 8)
    assert fabric.sent[LINK] == [tlp.MmioWrite(0xC000_0010, b"\x05\0\0\0")]
    assert fabric.sent[PEER_LINK] == [tlp.MmioWrite(PEER_BAR, b"\x06" + bytes(7))]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_cpus_write_carries_the_bytes_of_its_size_only(fabric: Fabric, size: int) -> None:
    fabric.root.mmio_write(0xC000_0010, size, 1 << 8 * size | 0x7F)
    fabric.root.config_write(DEVICE, 0x40, size, 1 << 8 * size | 0x7F, lambda: None)
    data = (0x7F).to_bytes(size, "little")
    mmio, config = fabric.sent[LINK]
    assert mmio == tlp.MmioWrite(0xC000_0010, data)
    assert isinstance(config, tlp.CfgWrite) and config.data == data


def test_an_unsupported_request_reads_all_ones(fabric: Fabric) -> None:
    got: list[int] = []
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    fabric.root.receive(LINK, tlp.Completion(0, tlp.CompletionStatus.UNSUPPORTED_REQUEST, 0, b""))
    assert got == [0xFFFF_FFFF]


def test_a_completion_nobody_asked_for_is_dropped(fabric: Fabric) -> None:
    got: list[int] = []
    fabric.root.mmio_read(PEER_BAR, 4, got.append)
    fabric.root.receive(LINK, tlp.Completion(0, 0, 4, b"evil"))
    assert got == [] and fabric.root.outstanding == [(PEER_LINK, 0)]
    assert fabric.counters == {"unexpected completion": 1}


@pytest.mark.parametrize("answer", [(8, b"12345678"), (4, b"12345678"), (8, b"1234"), (0, b"")])
def test_a_completion_of_a_wrong_length_is_dropped(fabric: Fabric, answer: tuple[int, bytes]) -> None:
    got: list[int] = []
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    fabric.root.receive(LINK, tlp.Completion(0, 0, *answer))
    assert got == [] and fabric.counters == {"malformed": 1}
    fabric.root.expire(LINK, 0)
    assert got == [0xFFFF_FFFF]


def test_after_a_timeout_the_late_completion_meets_no_newer_request(fabric: Fabric) -> None:
    got: list[int] = []
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    fabric.root.expire(LINK, 0)
    fabric.root.expire(LINK, 0)
    assert got == [0xFFFF_FFFF]
    fabric.root.receive(LINK, tlp.Completion(0, 0, 4, b"late"))
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    fabric.root.receive(LINK, tlp.Completion(0, 0, 4, b"late"))
    assert got == [0xFFFF_FFFF]
    assert fabric.counters == {"completion timeout": 1, "unexpected completion": 2}


@pytest.mark.parametrize("end", ["late completion", "completion of another", "hot reset", "another device"])
def test_a_device_that_let_a_request_time_out_is_not_waited_for_again(fabric: Fabric, end: str) -> None:
    got: list[int] = []
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    fabric.root.mmio_read(0xC000_0004, 4, lambda _: None)
    fabric.root.expire(LINK, 0)
    for _ in range(3):
        fabric.root.mmio_read(0xC000_0000, 4, got.append)
        fabric.root.config_read(DEVICE, 0, 4, got.append)
    assert got == [0xFFFF_FFFF] * 7 and fabric.root.outstanding == [(LINK, 1)]
    fabric.root.receive(LINK, tlp.Completion(9, 0, 4, b"what"))
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    assert len(got) == 8, "a completion that nobody is owed changes nothing"
    if end == "late completion":
        fabric.root.receive(LINK, tlp.Completion(0, 0, 4, b"late"))
    elif end == "completion of another":
        fabric.root.receive(LINK, tlp.Completion(1, 0, 4, b"fine"))
    elif end == "hot reset":
        fabric.root.ports[LINK].hot_reset()
    else:
        fabric.root.attach(LINK, lambda message: fabric.send(LINK, message))
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    assert len(got) == 8 and (LINK, 2) in fabric.root.outstanding


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
    port = fabric.root.ports[LINK].config
    express = port.capability(pci.CapabilityId.PCI_EXPRESS)
    assert express is not None
    assert port.read(express + pci.EXP_SLOT_STATUS, 2) & pci.SLTSTA_PRESENT
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    fabric.root.detach(LINK)
    fabric.root.mmio_read(0xC000_0000, 4, got.append)
    assert got == [0xFFFF_FFFF] * 2
    status = port.read(express + pci.EXP_SLOT_STATUS, 2)
    assert status & pci.SLTSTA_PRESENCE_CHANGED and not status & pci.SLTSTA_PRESENT
    assert not port.read(express + pci.EXP_LINK_STATUS, 2) & pci.LNKSTA_DLL_ACTIVE


def test_secondary_bus_reset_resets_the_device_once(fabric: Fabric) -> None:
    for value in (pci.SECONDARY_BUS_RESET, pci.SECONDARY_BUS_RESET, 0):
        fabric.configure(pci.bdf(0, SLOT, 0), pci.BRIDGE_CONTROL, 2, value)
    assert fabric.sent[LINK] == [tlp.HotReset(0)]


def test_a_log_keeps_the_first_entries_and_counts_the_rest(fabric: Fabric) -> None:
    log = fabric.root.start_log(LINK, capacity=2)
    for page in range(5):
        fabric.read(page << 12)
    fabric.root.stop_log(LINK)
    fabric.read(0x9000)
    assert [entry.address for entry in log.entries] == [0, 0x1000] and log.lost == 3


@pytest.mark.parametrize(("slot", "max_payload"), [(0, 4096), (32, 4096), (1, 100)])
def test_port_options_are_checked(slot: int, max_payload: int) -> None:
    with pytest.raises(ValueError, match=r"slot|payload"):
        PortConfig(slot, max_payload=max_payload)
