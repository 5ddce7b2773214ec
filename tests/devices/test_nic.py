"""The nic: rings, loopback, cable, and drivers that write garbage."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.devices.bench import VECTOR, Bench
from viommu_actors.devices.nic import Nic
from viommu_actors.spec import nic, pci
from viommu_actors.spec.nic import Cause, Control, Done, Flag, Reg, Status

TX, RX = 0x1000, 0x2000
SIZE = 8
FRAME = bytes(range(200)) * 3


class NicBench(Bench):
    """A nic whose rings stand at TX and RX; page n of buffers at 0x10000 * n."""

    def __init__(self, cable: bool = False) -> None:
        super().__init__()
        self.cable: list[bytes] = []
        self.endpoint = self.nic = Nic(
            self.send, self.lines.append, mac=b"\x02\0\0\0\0\x07", send_frame=self.cable.append if cable else None
        )
        self.enable()

    def start(self, mode: int = Control.LOOPBACK, size: int = SIZE) -> None:
        for base, register in ((TX, Reg.TX_BASE), (RX, Reg.RX_BASE)):
            self.write(register, base, 8)
            self.write(register + 8, size)
        self.write(Reg.CAUSE_ENABLE, 0xF)
        self.write(Reg.CONTROL, Control.ENABLE | mode)

    def post(self, ring: int, index: int, address: int, length: int, flags: int = 0) -> None:
        place = ring + index * nic.DESCRIPTOR.size
        self.memory[place : place + nic.DESCRIPTOR.size] = nic.DESCRIPTOR.pack(address, length, flags, 0, 0)

    def result(self, ring: int, index: int) -> tuple[int, int]:
        place = ring + index * nic.DESCRIPTOR.size + nic.WRITE_BACK_OFFSET
        return nic.WRITE_BACK.unpack(self.memory[place : place + nic.WRITE_BACK.size])

    def transmit(self, index: int, address: int, length: int, flags: int = 0) -> None:
        self.post(TX, index, address, length, flags)
        self.write(Reg.TX_TAIL, (index + 1) % SIZE)
        self.serve()

    def offer(self, index: int, address: int, length: int, flags: int = 0) -> None:
        self.post(RX, index, address, length, flags)
        self.write(Reg.RX_TAIL, (index + 1) % SIZE)

    def statistic(self, name: str) -> int:
        value = self.read(Reg.STATISTICS + 8 * nic.STATISTICS.index(name), 8)
        assert value is not None
        return value


@pytest.fixture
def bench() -> NicBench:
    bench = NicBench()
    bench.memory[0x1_0000 : 0x1_0000 + len(FRAME)] = FRAME
    bench.start()
    return bench


@pytest.fixture
def wired() -> NicBench:
    bench = NicBench(cable=True)
    bench.memory[0x1_0000 : 0x1_0000 + len(FRAME)] = FRAME
    bench.start(0)
    return bench


def test_identity(bench: NicBench) -> None:
    assert bench.config_read(pci.VENDOR_ID, 4) == nic.DEVICE_ID << 16 | nic.VENDOR_ID
    assert bench.config_read(pci.CLASS_DEVICE, 2) == pci.ClassCode.ETHERNET
    assert bench.read(Reg.MAC_LOW, 8) == int.from_bytes(b"\x02\0\0\0\0\x07", "little")


def test_a_frame_loops_back(bench: NicBench) -> None:
    bench.offer(0, 0x2_0000, 4096, Flag.INTERRUPT)
    bench.transmit(0, 0x1_0000, len(FRAME))
    assert bench.memory[0x2_0000 : 0x2_0000 + len(FRAME)] == FRAME
    assert bench.result(TX, 0) == (0, Done.DONE)
    assert bench.result(RX, 0) == (len(FRAME), Done.DONE)
    assert bench.vectors == [VECTOR]
    assert bench.read(Reg.CAUSE) == Cause.TX_DONE | Cause.RX_DONE
    names = ("tx_packets", "tx_bytes", "rx_packets", "rx_bytes")
    assert [bench.statistic(it) for it in names] == [1, 600, 1, 600]
    assert bench.read(Reg.TX_HEAD) == bench.read(Reg.RX_HEAD) == 1


def test_many_frames_go_round_the_rings(bench: NicBench) -> None:
    for turn in range(5 * SIZE):
        index = turn % SIZE
        frame = bytes([turn]) * 64
        bench.memory[0x3_0000:0x3_0040] = frame
        bench.offer(index, 0x4_0000, 64)
        bench.transmit(index, 0x3_0000, 64)
        assert bench.memory[0x4_0000:0x4_0040] == frame
    assert bench.statistic("rx_packets") == 5 * SIZE and bench.vectors == []


def test_causes_are_cleared_by_ones_and_masked(bench: NicBench) -> None:
    bench.write(Reg.CAUSE_ENABLE, Cause.ERROR)
    bench.transmit(0, 0x1_0000, 64, Flag.INTERRUPT)
    assert bench.vectors == [] and bench.read(Reg.CAUSE) == Cause.TX_DONE
    bench.write(Reg.CAUSE, 0xFF)
    assert bench.read(Reg.CAUSE) == 0


def test_a_frame_without_a_receive_buffer_is_dropped(bench: NicBench) -> None:
    bench.transmit(0, 0x1_0000, 64)
    assert bench.result(TX, 0) == (0, Done.DONE) and bench.statistic("rx_dropped") == 1


def test_a_receive_buffer_too_short_is_an_error(bench: NicBench) -> None:
    bench.offer(0, 0x2_0000, 63)
    bench.transmit(0, 0x1_0000, 64)
    assert bench.result(RX, 0) == (0, Done.DONE | Done.ERROR)
    assert bench.memory[0x2_0000:0x2_0040] == bytes(64)


@pytest.mark.parametrize("length", [0, 13, 4097, 0xFFFF])
def test_a_frame_of_no_legal_length_is_an_error(bench: NicBench, length: int) -> None:
    bench.transmit(0, 0x1_0000, length)
    assert bench.result(TX, 0) == (0, Done.DONE | Done.ERROR)
    assert bench.statistic("bad_descriptors") == 1 and bench.statistic("tx_packets") == 0


def test_a_frame_that_cannot_be_read_is_an_error_and_the_ring_goes_on(bench: NicBench) -> None:
    bench.refused.add(0x50)
    bench.offer(0, 0x2_0000, 4096)
    bench.transmit(0, 0x5_0000, 64)
    bench.transmit(1, 0x1_0000, 64)
    assert bench.result(TX, 0) == (0, Done.DONE | Done.ERROR)
    assert bench.result(TX, 1) == (0, Done.DONE) and bench.result(RX, 0) == (64, Done.DONE)
    assert bench.statistic("dma_errors") == 1 and bench.read(Reg.CAUSE) & Cause.ERROR


def test_a_ring_that_cannot_be_read_halts_until_reset(bench: NicBench) -> None:
    bench.refused.add(TX >> 12)
    bench.transmit(0, 0x1_0000, 64)
    assert bench.read(Reg.STATUS) & Status.TX_HALTED and bench.vectors == [VECTOR]
    bench.refused.clear()
    bench.transmit(0, 0x1_0000, 64)
    assert bench.statistic("tx_packets") == 0
    bench.write(Reg.CONTROL, Control.RESET)
    assert bench.read(Reg.STATUS) == 0 and bench.read(Reg.CONTROL) == 0
    bench.start()
    bench.transmit(0, 0x1_0000, 64)
    assert bench.statistic("tx_packets") == 1


@pytest.mark.parametrize("size", [0, 1, 3, 2048, 0xFFFF_FFFF])
def test_a_ring_of_no_legal_size_is_refused(size: int) -> None:
    bench = NicBench()
    bench.start(size=size)
    assert bench.read(Reg.STATUS) & (Status.TX_HALTED | Status.RX_HALTED)
    bench.transmit(0, 0x1_0000, 64)
    assert bench.statistic("tx_packets") == 0


def test_a_tail_beyond_the_ring_halts_it(bench: NicBench) -> None:
    bench.write(Reg.TX_TAIL, SIZE)
    bench.serve()
    assert bench.read(Reg.STATUS) & Status.TX_HALTED


def test_disabling_forgets_what_is_in_flight(bench: NicBench) -> None:
    bench.post(TX, 0, 0x1_0000, 64)
    bench.write(Reg.TX_TAIL, 1)
    bench.write(Reg.CONTROL, 0)
    bench.serve()
    assert bench.read(Reg.TX_HEAD) == bench.read(Reg.TX_TAIL) == 0
    assert bench.endpoint.counters["unexpected completion"] == 1
    bench.start()
    bench.transmit(0, 0x1_0000, 64)
    assert bench.statistic("tx_packets") == 1


def test_rings_of_a_working_controller_stay_where_they_are(bench: NicBench) -> None:
    bench.write(Reg.TX_BASE, 0x5000)
    bench.write(Reg.RX_SIZE, 2)
    bench.write(Reg.CONTROL, Control.ENABLE)
    assert bench.read(Reg.TX_BASE) == TX and bench.read(Reg.RX_SIZE) == SIZE
    assert bench.read(Reg.CONTROL) == Control.ENABLE | Control.LOOPBACK


@pytest.mark.parametrize("size", [1, 2])
def test_registers_have_four_bytes(bench: NicBench, size: int) -> None:
    assert bench.read(Reg.STATUS, size) is None
    bench.write(Reg.CAUSE_ENABLE, 0, size)
    assert bench.read(Reg.CAUSE_ENABLE) == 0xF


# --- cable


def test_frames_cross_the_cable(wired: NicBench) -> None:
    wired.transmit(0, 0x1_0000, len(FRAME), Flag.INTERRUPT)
    assert wired.cable == [FRAME] and wired.vectors == [VECTOR]
    wired.offer(0, 0x2_0000, 4096, Flag.INTERRUPT)
    wired.nic.receive_frame(b"x" * 64)
    wired.serve()
    assert wired.memory[0x2_0000:0x2_0040] == b"x" * 64 and wired.result(RX, 0) == (64, Done.DONE)


def test_frames_that_come_together_are_received_in_order(wired: NicBench) -> None:
    for index in range(4):
        wired.offer(index, 0x2_0000 + 0x1000 * index, 4096)
    for index in range(5):
        wired.nic.receive_frame(bytes([index]) * 64)
    wired.serve()
    assert [wired.memory[0x2_0000 + 0x1000 * it] for it in range(4)] == [0, 1, 2, 3]
    assert wired.statistic("rx_dropped") == 1


@pytest.mark.parametrize("frame", [b"", b"x" * 13, b"x" * 4097])
def test_frames_of_no_legal_length_are_dropped(wired: NicBench, frame: bytes) -> None:
    wired.offer(0, 0x2_0000, 4096)
    wired.nic.receive_frame(frame)
    wired.serve()
    assert wired.statistic("rx_dropped") == 1 and wired.result(RX, 0) == (0, 0)


def test_a_flood_from_the_cable_is_bounded(wired: NicBench) -> None:
    wired.offer(0, 0x2_0000, 4096)
    for _ in range(1000):
        wired.nic.receive_frame(b"x" * 64)
    assert wired.statistic("rx_dropped") == 1000 - 64 - 1


def test_in_loopback_the_cable_is_off(wired: NicBench) -> None:
    wired.write(Reg.CONTROL, 0)
    wired.start(Control.LOOPBACK)
    wired.nic.receive_frame(b"x" * 64)
    wired.transmit(0, 0x1_0000, 64)
    assert wired.cable == [] and wired.statistic("rx_dropped") == 2


def test_the_link_shows_and_tells(wired: NicBench) -> None:
    assert wired.read(Reg.STATUS) == Status.LINK_UP
    wired.nic.set_link(False)
    wired.serve()
    assert wired.vectors == [VECTOR] and wired.read(Reg.CAUSE) == Cause.LINK_CHANGED
    assert wired.read(Reg.STATUS) == 0
    wired.transmit(0, 0x1_0000, 64)
    assert wired.result(TX, 0) == (0, Done.DONE | Done.ERROR) and wired.cable == []


def test_without_a_cable_there_is_no_link() -> None:
    bench = NicBench()
    bench.start(0)
    assert bench.read(Reg.STATUS) == 0


# --- garbage


@pytest.mark.parametrize("seed", range(20))
def test_garbage_ends(seed: int) -> None:
    """Random registers and random rings: nothing raises, and no step goes on for ever."""
    rng = random.Random(seed)
    bench = NicBench(cable=bool(seed % 2))
    bench.memory[:] = rng.randbytes(len(bench.memory))
    served: list[Any] = []
    for _ in range(300):
        offset = rng.choice([*Reg, rng.randrange(0, nic.BAR_SIZE, 4)])
        value = rng.choice([rng.getrandbits(32), rng.randrange(16), 3, 7, SIZE, TX])
        bench.write(offset, value)
        if rng.random() < 0.3:
            bench.nic.receive_frame(rng.randbytes(rng.randrange(100)))
        for _ in range(200):
            if not bench.sent:
                break
            bench._serve_one(bench.sent.pop(0))
            served.append(None)
        bench.read(rng.randrange(0, nic.BAR_SIZE, 8), 8)
    assert len(served) < 300 * 200
