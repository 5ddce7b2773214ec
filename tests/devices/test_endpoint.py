"""Endpoints: requests that they serve, and the DMA that they do."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from tests.devices.bench import BAR_ADDRESS, BUS, FUNCTION, MESSAGE_ADDRESS, VECTOR, Bench
from viommu_actors.devices.dma_engine import EXTENDED_TAGS, TAGS
from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.pci import config_space
from viommu_actors.spec import pci, tlp
from viommu_actors.spec.tlp import Completion, CompletionStatus

UNSUPPORTED = CompletionStatus.UNSUPPORTED_REQUEST


class Register(Endpoint):
    """A function with one register, and a task that copies."""

    def __init__(self, send: Any) -> None:
        config = config_space.endpoint_header(0x1234, 0x0001, pci.ClassCode.UNCLASSIFIED_OTHER)
        config.add_bar(0, 0x1000)
        config_space.add_power_management(config)
        config_space.add_msi(config)
        config_space.add_express(config, pci.PortType.ENDPOINT, 4096)
        super().__init__(config, send)
        self.device_reset()
        self.results: list[bytes | None] = []

    def device_reset(self) -> None:
        self.value = 0

    def bar_read(self, bar: int, offset: int, size: int) -> int | None:
        return self.value if offset == 0 else None

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        self.value = value

    def fetch(self, address: int, length: int) -> Generator[Any, None, None]:
        data = yield from self.dma_read(address, length)
        self.results.append(data)


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.endpoint = Register(bench.send)
    bench.enable()
    return bench


def device(bench: Bench) -> Register:
    assert isinstance(bench.endpoint, Register)
    return bench.endpoint


# --- requests


def test_registers_are_read_and_written(bench: Bench) -> None:
    bench.write(0, 0x1122_3344_5566_7788, 8)
    assert bench.read(0, 8) == 0x1122_3344_5566_7788
    assert bench.read(0, 1) == 0x88


@pytest.mark.parametrize(
    "request_",
    [
        tlp.MmioRead(3, BAR_ADDRESS + 4, 4),  # no register
        tlp.MmioRead(3, BAR_ADDRESS + 0x1000, 4),  # behind the BAR
        tlp.MmioRead(3, BAR_ADDRESS + 2, 4),  # not aligned
        tlp.MmioRead(3, BAR_ADDRESS, 3),
        tlp.CfgRead(3, BUS, 1, 0, 4),  # function 1
        tlp.CfgRead(3, BUS, 0, 2, 4),
        tlp.CfgWrite(3, BUS, 1, 4, b"\0\0"),
    ],
)
def test_what_is_not_there_is_unsupported(bench: Bench, request_: Any) -> None:
    assert bench.ask(request_) == Completion(3, UNSUPPORTED, 0, b"")


def test_memory_decoding_can_be_off(bench: Bench) -> None:
    bench.configure(pci.COMMAND, 2, 0)
    assert bench.read(0) is None
    bench.write(0, 5)
    assert device(bench).value == 0


def test_a_sleeping_function_answers_configuration_only(bench: Bench) -> None:
    power = bench.endpoint.config.capability(pci.CapabilityId.POWER_MANAGEMENT)
    assert power is not None
    bench.configure(power + pci.PM_CONTROL, 2, 3)
    assert bench.read(0) is None
    bench.configure(power + pci.PM_CONTROL, 2, 0)
    assert bench.read(0) == 0


def test_a_write_teaches_the_function_its_bus_number(bench: Bench) -> None:
    assert bench.endpoint.requester == FUNCTION
    bench.endpoint.receive(tlp.CfgWrite(1, 9, 0, pci.CACHE_LINE_SIZE, b"\0"))
    assert bench.endpoint.requester == pci.bdf(9, 0, 0)


# --- resets


@pytest.mark.parametrize(("offset", "data"), [(0, b"\x00\xf0"), (0, b"\x00\xf0\x00\x00"), (1, b"\xf0")])
def test_function_level_reset(bench: Bench, offset: int, data: bytes) -> None:
    express = bench.endpoint.config.capability(pci.CapabilityId.PCI_EXPRESS)
    assert express is not None
    device(bench).value = 7
    bench.endpoint.start(device(bench).fetch(0, 4))
    [read] = bench.take()
    bench.configure(express + pci.EXP_DEVICE_CONTROL + offset, len(data), int.from_bytes(data, "little"))
    assert device(bench).value == 0
    assert bench.config_read(pci.COMMAND, 2) == 0 and bench.config_read(pci.BAR0, 4) == 0
    assert bench.endpoint.requester == FUNCTION
    control = bench.config_read(express + pci.EXP_DEVICE_CONTROL, 2)
    assert not control & pci.DEVCTL_FLR
    if offset == 1:
        assert pci.payload_size((control & pci.DEVCTL_MAX_PAYLOAD_MASK) >> pci.DEVCTL_MAX_PAYLOAD_SHIFT) == 4096
    bench.endpoint.receive(Completion(read.tag, 0, 4, b"late"))
    assert device(bench).results == [] and bench.endpoint.counters["unexpected completion"] == 1


def test_hot_reset_forgets_everything(bench: Bench) -> None:
    bench.endpoint.receive(tlp.HotReset(0))
    assert bench.endpoint.requester == 0
    assert bench.config_read(pci.COMMAND, 2) == 0


def test_requests_after_a_reset_do_not_take_old_answers(bench: Bench) -> None:
    bench.endpoint.start(device(bench).fetch(0, 4))
    [old] = bench.take()
    bench.endpoint.receive(tlp.HotReset(0))
    bench.enable()
    bench.endpoint.start(device(bench).fetch(0, 4))
    [new] = bench.take()
    assert new.tag != old.tag
    bench.endpoint.receive(Completion(old.tag, 0, 4, b"late"))
    bench.endpoint.receive(Completion(new.tag, 0, 4, b"good"))
    assert device(bench).results == [b"good"]


# --- DMA


def test_a_read_obeys_the_max_read_request(bench: Bench) -> None:
    bench.enable(max_read=128)
    bench.endpoint.start(device(bench).fetch(0x1001, 300))
    reads = bench.take()
    assert [(it.address, it.dwords, it.first_be, it.last_be) for it in reads] == [
        (0x1000, 32, 0b1110, 0b1111),
        (0x1080, 32, 0b1111, 0b1111),
        (0x1100, 12, 0b1111, 0b0001),
    ]
    assert all(it.requester == FUNCTION and it.at == 0 for it in reads)


def test_a_write_obeys_the_max_payload(bench: Bench) -> None:
    bench.enable(max_payload=256)
    assert bench.dma_write(0x10FF, bytes(range(256)) * 2)
    writes = bench.take()
    assert [(it.address, len(it.data), it.first_be, it.last_be) for it in writes] == [
        (0x10FC, 4, 0b1000, 0),
        (0x1100, 256, 0b1111, 0b1111),
        (0x1200, 256, 0b1111, 0b0111),
    ]
    assert all(it.requester == FUNCTION for it in writes)


@pytest.mark.parametrize(("address", "length"), [(0, 4096), (3, 1), (0xFFF, 2), (0x7FE, 9000), (5, 0)])
def test_data_arrive_as_they_are(bench: Bench, address: int, length: int) -> None:
    bench.memory[:] = bytes(it * 7 % 251 for it in range(len(bench.memory)))
    expected = bytes(bench.memory[address : address + length])
    bench.endpoint.start(device(bench).fetch(address, length))
    bench.serve()
    assert device(bench).results == [expected]
    bench.dma_write(0x8_0000 + address, expected)
    bench.serve()
    assert bench.memory[0x8_0000 + address : 0x8_0000 + address + length] == expected


def test_completions_in_parts_and_out_of_order(bench: Bench) -> None:
    bench.enable(max_read=128)
    bench.endpoint.start(device(bench).fetch(0x102, 150))
    first, second = bench.take()
    data = bytes(range(160))
    bench.endpoint.receive(Completion(second.tag, 0, 24, data[128:152]))
    bench.endpoint.receive(Completion(first.tag, 0, 126, data[:64]))
    bench.endpoint.receive(Completion(first.tag, 0, 64, data[64:128]))
    assert device(bench).results == [data[2:152]]


@pytest.mark.parametrize(
    "answer",
    [
        (0, 8, b"12345678"),  # more than asked for
        (0, 3, b"1234"),  # byte count does not fit
        (0, 4, b""),
    ],
)
def test_completions_that_do_not_fit_are_dropped(bench: Bench, answer: tuple[int, int, bytes]) -> None:
    bench.endpoint.start(device(bench).fetch(0x100, 4))
    [read] = bench.take()
    bench.endpoint.receive(Completion(read.tag, *answer))
    bench.endpoint.receive(Completion((read.tag + 1) % TAGS, 0, 4, b"1234"))
    assert device(bench).results == []
    assert bench.endpoint.counters["malformed completion"] == 1
    assert bench.endpoint.counters["unexpected completion"] == 1
    bench.endpoint.receive(Completion(read.tag, 0, 4, b"true"))
    assert device(bench).results == [b"true"]


@pytest.mark.parametrize("status", [1, 2, 4, 7])
def test_a_refused_part_fails_the_whole_read(bench: Bench, status: int) -> None:
    bench.endpoint.start(device(bench).fetch(0xFFC, 8))
    first, second = bench.take()
    bench.endpoint.receive(Completion(first.tag, status, 0, b""))
    assert device(bench).results == []
    bench.endpoint.receive(Completion(second.tag, 0, 4, b"1234"))
    assert device(bench).results == [None]


def test_a_read_without_answer_times_out(bench: Bench) -> None:
    bench.endpoint.start(device(bench).fetch(0, 4))
    [tag] = bench.endpoint.outstanding
    bench.endpoint.expire(tag)
    bench.endpoint.expire(tag)
    assert device(bench).results == [None] and bench.endpoint.outstanding == []


@pytest.mark.parametrize(("extended", "tags"), [(False, TAGS), (True, EXTENDED_TAGS)])
def test_more_requests_than_tags_wait_their_turn(bench: Bench, extended: bool, tags: int) -> None:
    bench.enable(max_read=128, extended_tags=extended)
    bench.endpoint.start(device(bench).fetch(0, 128 * (tags + 3)))
    assert len(bench.sent) == tags and len(set(bench.endpoint.outstanding)) == tags
    bench.serve()
    assert device(bench).results == [bytes(128 * (tags + 3))]


def test_tags_that_are_taken_back_are_not_used_again(bench: Bench) -> None:
    bench.enable(max_read=128, extended_tags=True)
    bench.endpoint.start(device(bench).fetch(0, 128 * EXTENDED_TAGS))
    bench.enable(max_read=128)
    bench.serve()
    bench.endpoint.start(device(bench).fetch(0, 128 * EXTENDED_TAGS))
    assert sorted(bench.endpoint.outstanding) == list(range(TAGS))
    bench.serve()
    assert device(bench).results == [bytes(128 * EXTENDED_TAGS)] * 2


def test_registers_are_served_while_dma_is_outstanding(bench: Bench) -> None:
    bench.endpoint.start(device(bench).fetch(0, 4))
    bench.take()
    bench.write(0, 9)
    assert bench.read(0) == 9
    assert device(bench).results == []


def test_a_link_that_answers_within_send_works_too() -> None:
    """As when root complex and device call each other directly."""

    def answer(message: Any) -> None:
        if isinstance(message, tlp.MemRead):
            bench.endpoint.receive(Completion(message.tag, 0, message.dwords * 4, bytes([7] * message.dwords * 4)))
        else:
            bench.sent.append(message)

    bench = Bench()
    bench.endpoint = Register(answer)
    bench.enable(max_read=128)
    bench.endpoint.start(device(bench).fetch(0, 8192))
    assert device(bench).results == [bytes([7] * 8192)]


def test_without_bus_master_nothing_is_sent(bench: Bench) -> None:
    bench.configure(pci.COMMAND, 2, pci.Command.MEMORY)
    bench.endpoint.start(device(bench).fetch(0, 4))
    assert not bench.dma_write(0, b"1234")
    assert not bench.endpoint.interrupt()
    assert bench.sent == [] and device(bench).results == [None]


def test_an_interrupt_is_a_write_of_the_message(bench: Bench) -> None:
    assert bench.endpoint.interrupt()
    data = VECTOR.to_bytes(4, "little")
    assert bench.take() == [tlp.MemWrite(FUNCTION, 0, MESSAGE_ADDRESS, 0xF, 0, data)]


def test_without_msi_there_is_no_interrupt(bench: Bench) -> None:
    msi = bench.endpoint.config.capability(pci.CapabilityId.MSI)
    assert msi is not None
    bench.configure(msi + pci.MSI_CONTROL, 2, 0)
    assert not bench.endpoint.interrupt()
    assert bench.sent == []
