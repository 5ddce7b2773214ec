"""What serves a guest or a hypervisor answers whatever it is asked, and does nothing that the asker has no part in."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from tests.hypervisor.whole_guest import GUEST_RAM, LENT, WholeGuest
from viommu_actors.actors.kernel_service import KernelService, kvm_calls
from viommu_actors.actors.lending import Lending
from viommu_actors.kernel.kvm import Kvm
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.wire import messages as m
from viommu_actors.wire.codec import Codec, MalformedMessage
from viommu_actors.wire.fuzz import hostile
from viommu_actors.wire.tally import Tally

LIMIT = 8192
MESSAGES = 4000


class Box:
    """The sending half of an inbox."""

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def send(self, peer: bytes, message: Any, codec: Codec, tally: Tally) -> bool:
        codec.decode(codec.encode(message))
        self.answers.append(message)
        return True


def _frames(seed: int, codec: Codec) -> list[bytes]:
    return [frames[0] for frames in islice(hostile(seed, codec, LIMIT), MESSAGES) if len(frames[0]) <= LIMIT]


def _malformed(frames: list[bytes], codec: Codec) -> int:
    count = 0
    for frame in frames:
        try:
            codec.decode(frame)
        except MalformedMessage:
            count += 1
    return count


@pytest.mark.parametrize("seed", range(4))
def test_a_kernel_answers_whatever_a_hypervisor_asks(seed: int) -> None:
    """Its errors are errno; what it maps for it is its own memory, whoever else has some."""
    guest = WholeGuest()
    vfio, box = Vfio(guest.kernel), Box()
    kvm = Kvm(guest.beneath.ports, {"h": "vm"})
    service = KernelService(box, vfio, kvm_calls(kvm), lambda process, eventfd: None)  # type: ignore[arg-type]
    tally, ram = Tally("vfio:h", "host"), {"ram": (LENT, GUEST_RAM)}
    service.add_process(b"h", tally, ram)
    # A start, so that there are descriptors and memory to be hostile with.
    start = [m.OpenContainer(), m.Eventfd(), m.CreateVm("vm"), m.MmapRam("ram"), m.OpenGroup("0000:01:00.0")]
    frames = [m.VFIO.encode(message) for message in start] + _frames(seed, m.VFIO)
    before = guest.host.memory.read(0, 1 << 20)
    for frame in frames:
        service.serve(b"h", frame)
    assert tally.malformed == _malformed(frames, m.VFIO) > 500
    assert len(box.answers) == len(frames) - tally.malformed
    for container in vfio.mappings:
        assert not container.mapped
    assert guest.host.memory.read(0, 1 << 20) == before
    service.release(b"h")


class Bars:
    """The fabric behind the direct wire."""

    def __init__(self) -> None:
        self.touched: list[int] = []

    def post(self, address: int, size: int, value: int) -> None:
        self.touched += [address, address + size - 1]

    def read(self, address: int, size: int, done: Any) -> None:
        self.touched += [address, address + size - 1]
        done(0)


@pytest.mark.parametrize("seed", range(4))
def test_a_guest_reaches_through_its_channels_what_was_lent_and_nothing_else(seed: int) -> None:
    bars, box = Bars(), Box()
    lending = Lending(bars, box, lambda vm, vector: None)  # type: ignore[arg-type]
    token = lending.lend_bar(0xC000_0000, 0x1000)
    dead = lending.lend_bar(0xD000_0000, 0x1000)
    lending.revoke(dead)
    tally = Tally("direct:g", "host")
    lending.add_guest(b"g", tally)
    frames = _frames(seed, m.DIRECT)
    for offset in (0, 0xFFC, 0xFFE, 0x1000, (1 << 32) - 4):
        for channel in (token, dead, bytes(16), b""):
            frames += [m.DIRECT.encode(m.DirectRead(channel, offset, 4))]
            frames += [m.DIRECT.encode(m.DirectWrite(channel, offset, 4, 1))]
    for frame in frames:
        lending.serve(b"g", frame)
    assert tally.malformed == _malformed(frames, m.DIRECT)
    assert bars.touched and all(0xC000_0000 <= address < 0xC000_1000 for address in bars.touched)
