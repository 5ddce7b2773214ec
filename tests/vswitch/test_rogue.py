"""A hostile back end: what it puts on its wire, and that the port and the others go on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vswitch.front_end import PAGE, Guest, World, frame, mac
from viommu_actors.spec import vhost
from viommu_actors.spec.vhost import Access
from viommu_actors.spec.virtio_net import Queue
from viommu_actors.vswitch.rogue import LIES, Rogue, parse_plan

MAPPED, FOREIGN = 200, 220
DATA = b"\xde\xad\xbe\xef" * 4


class NoWire:
    """For plans that keep to messages."""

    def send(self, *frames: bytes) -> bool:
        raise AssertionError(frames)

    def fuzz(self, seed: int, count: int) -> None:
        raise AssertionError(seed)


@pytest.fixture
def world() -> World:
    world = World()
    for number in range(2):
        guest = world.guest(f"vnet{number}")
        guest.start()
        guest.give(8)
    world.pump()
    return world


def played(world: World, guest: Guest, *steps: dict[str, Any]) -> list[str]:
    told: list[list[str]] = []
    Rogue(guest.port, guest.up.append, NoWire()).play(parse_plan(steps), told.append)
    world.pump()
    [words] = told
    return words


def still_serves(world: World) -> None:
    ours, theirs = world.guests
    sent = frame(mac(0), mac(1), b"honest")
    theirs.send(sent)
    world.pump()
    assert ours.received()[-1] == sent


def test_it_accesses_without_leave_and_again_with_a_miss(world: World) -> None:
    guest = world.guests[0]
    assert guest.mapping is not None
    del guest.mapping[FOREIGN]
    before = bytes(guest.ram)
    guest.counts.clear()
    told = played(
        world,
        guest,
        {"do": "write", "address": FOREIGN * PAGE, "data": DATA},
        {"do": "read", "address": FOREIGN * PAGE, "length": 4},
        {"do": "scan", "first": MAPPED * PAGE, "last": (MAPPED + 2) * PAGE, "stride": PAGE},
    )
    assert told == ["sent", "0 reads answered", "6 reads answered"]
    assert guest.faults.count((FOREIGN * PAGE, Access.WRITE)) == 3, "two writes, and the miss between them"
    assert guest.faults.count((FOREIGN * PAGE, Access.READ)) == 3
    assert (guest.counts["MemoryRead"], guest.counts["IotlbMiss"]) == (8, 5)
    assert guest.ram == before
    still_serves(world)


def test_a_transfer_wraps_at_the_end_of_the_address_space(world: World) -> None:
    guest = world.guests[0]
    played(world, guest, {"do": "write", "address": (1 << 64) - len(DATA), "data": DATA * 2})
    assert guest.ram[: len(DATA)] == DATA


def test_its_control_is_an_honest_access(world: World) -> None:
    guest = world.guests[0]
    assert guest.mapping is not None
    del guest.mapping[FOREIGN]
    control = {"do": "control", "iova": MAPPED * PAGE, "data": DATA}
    assert played(world, guest, control, control | {"iova": FOREIGN * PAGE}) == ["completed", "refused"]
    assert guest.ram[MAPPED * PAGE : MAPPED * PAGE + len(DATA)] == DATA


@pytest.mark.parametrize(("policy", "answers"), [("keep", 1), ("ignore", 0), ("honest", 1)])
def test_it_deals_with_invalidations_as_it_was_told(world: World, policy: str, answers: int) -> None:
    guest = world.guests[0]
    played(world, guest, {"do": "control", "iova": MAPPED * PAGE, "data": DATA})
    played(world, guest, {"do": "invalidations", "policy": policy})
    guest.said.clear()
    guest.unmap(MAPPED, sequence=7)
    world.pump()
    assert guest.said == [vhost.IotlbInvalidated(7)] * answers
    still_serves(world)


@pytest.mark.parametrize("kind", LIES)
def test_a_lie_stands_in_the_used_ring(world: World, kind: str) -> None:
    guest = world.guests[0]
    guest.calls.clear()
    assert played(world, guest, {"do": "lie", "kind": kind}) == ["sent"]
    used = guest.rx.get(guest.rx.used + 2, 2)
    head, length = guest.rx.get(guest.rx.used + 4, 4), guest.rx.get(guest.rx.used + 8, 4)
    untrue = {"unknown": head >= guest.rx.size, "long": length > PAGE, "ahead": used > guest.rx.size}
    assert untrue[kind] and guest.calls == [Queue.RECEIVE]


def test_a_queue_that_does_not_run_has_no_ring_to_lie_in(world: World) -> None:
    guest = world.guests[0]
    guest.to_switch(vhost.StopVring(Queue.RECEIVE))
    world.pump()
    assert played(world, guest, {"do": "lie", "kind": "long"}) == ["refused"]


def test_it_says_what_it_does_not_owe(world: World) -> None:
    guest = world.guests[0]
    guest.said.clear()
    message = {"do": "message", "name": "IotlbInvalidated", "fields": (9,), "times": 3}
    played(world, guest, message)
    assert guest.said == [vhost.IotlbInvalidated(9)] * 3


def test_a_plan_ends_where_its_port_starts_over(world: World) -> None:
    guest = world.guests[0]
    told: list[list[str]] = []
    read = {"do": "read", "address": MAPPED * PAGE, "length": 4}
    plan = parse_plan([{"do": "invalidations", "policy": "ignore"}, read, read])
    Rogue(guest.port, guest.up.append, NoWire()).play(plan, told.append)
    guest.port.receive(vhost.GetFeatures())
    assert told == [["sent"]]
    guest.up.clear()
    guest.down.clear()
    guest.start()
    guest.give(8)
    world.pump()
    still_serves(world)


@pytest.mark.parametrize(
    "step",
    [
        {"do": "lie", "kind": "white"},
        {"do": "lie", "kind": "long", "queue": 2},
        {"do": "message", "name": "MemRead", "fields": ()},
        {"do": "message", "name": "Call", "fields": ()},
        {"do": "jump"},
    ],
)
def test_a_plan_that_is_none_is_refused(step: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"lie|out of bounds|none of"):
        parse_plan([step])
