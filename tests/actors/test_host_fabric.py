"""The host's links between the handshake and the first message."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from viommu_actors.actors import host_fabric
from viommu_actors.actors.host_fabric import Fabric
from viommu_actors.memory import PhysicalMemory
from viommu_actors.spec.tlp import MemWrite
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.unit import RemappingUnit
from viommu_actors.wire.link import LINK_UP
from viommu_actors.wire.sockets import Listener
from viommu_actors.wire.zmtp import framed

HANDSHAKE = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x04\x06\x05READY"
WRITE = MemWrite(0x100, 0, 0x1000, 15, 0, bytes(4))

Devices = Callable[[], tuple[Fabric, socket.socket]]


@pytest.fixture
def one_device() -> Iterator[Devices]:
    """Makes a fabric with one link, and the device's end of it, which has said nothing yet."""
    made: list[Any] = []

    def make() -> tuple[Fabric, socket.socket]:
        listener, poller, memory = Listener.create(), select.epoll(), PhysicalMemory()
        unit = RemappingUnit(UnitConfig(), memory, lambda address, data: None)
        link = {"name": "slot1", "device": "nic0", "address": listener.address}
        ports = [{"slot": 1, "acs": True, "below": None}]
        fabric = Fabric(poller, memory, unit, lambda *_: None, ports, [link], lambda number, asserted: None)
        with socket.socket(fileno=listener.fd) as listening:
            device, _ = listening.accept()
        made.extend((device, poller, fabric._wires["slot1"]))
        return fabric, device

    yield make
    for each in made[::-1]:
        each.close()


def drain_all(fabric: Fabric) -> None:
    """What a wake of the host does where no poll has told of anything."""
    for fd in list(fabric.behind):
        fabric.drain(fd, 64, None)


def test_what_comes_with_the_handshake_is_taken_though_nothing_comes_after_it(one_device: Devices) -> None:
    fabric, device = one_device()
    device.sendall(HANDSHAKE + framed(LINK_UP.encode(WRITE)) * 100)
    fabric.train()
    drain_all(fabric)
    assert fabric.tally("slot1").received[MemWrite] == 64, "others have their turn"
    drain_all(fabric)
    assert fabric.tally("slot1").received[MemWrite] == 100 and not fabric.behind


def test_what_comes_with_the_handshake_of_another_process_is_taken_too(one_device: Devices) -> None:
    fabric, device = one_device()
    device.sendall(HANDSHAKE)
    fabric.train()
    successor = Listener.create()
    with socket.socket(fileno=successor.fd) as listening:

        def come() -> None:
            with listening.accept()[0] as end:
                end.sendall(HANDSHAKE + framed(LINK_UP.encode(WRITE)))
                end.recv(1 << 16)
                end.recv(1)

        coming = threading.Thread(target=come, daemon=True)
        coming.start()
        fabric.relink("slot1", successor.address)
        drain_all(fabric)
        assert fabric.tally("slot1").received[MemWrite] == 1
        fabric.pull("slot1")
        coming.join(10)
        assert not coming.is_alive()


def test_the_descriptor_of_a_link_that_never_came_up_is_taken_for_nobody_elses(
    one_device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next connection of the inbox has its number."""
    monkeypatch.setattr(host_fabric, "LINK_TIMEOUT", 0.02)
    fabric, _ = one_device()
    number = fabric._wires["slot1"].fd
    assert fabric.polls(number)
    fabric.train()
    assert not fabric.polls(number)
