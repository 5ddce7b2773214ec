"""Guests whose rings are no rings: each loses its own queue at most, and the switch goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vswitch.front_end import PAGE, ROOM, SIZE, DriverQueue, Guest, World, frame, mac
from viommu_actors.spec import vhost, virtio
from viommu_actors.spec.virtio import DescriptorFlag
from viommu_actors.spec.virtio_net import HEADER, MAX_FRAME, MIN_FRAME, Queue
from viommu_actors.vswitch.egress import DELIVERY_TIMEOUT
from viommu_actors.vswitch.ring import BURST

NEXT, WRITE, INDIRECT = DescriptorFlag.NEXT, DescriptorFlag.WRITE, DescriptorFlag.INDIRECT
EVERYTHING = (1 << 64) - 1


def three(translated: bool = True) -> tuple[World, Guest, Guest, Guest]:
    """A guest that is hostile, and two that talk to one another."""
    world = World()
    mallory, a, b = (world.guest(name, translated=translated) for name in ("mallory", "a", "b"))
    for number, guest in enumerate((mallory, a, b)):
        guest.give(16)
        guest.start()
        guest.send(frame(mac(number), mac(number)))
    world.pump()
    for guest in (mallory, a, b):
        guest.tx.reap()
    return world, mallory, a, b


def still_serves(world: World, a: Guest, b: Guest) -> None:
    for source, target, numbers in ((a, b, (1, 2)), (b, a, (2, 1))):
        source.send(frame(mac(numbers[1]), mac(numbers[0]), b"still there"))
        world.pump()
        assert target.received()[-1][14:] == b"still there"
        assert source.tx.reap()


def _loop(ring: DriverQueue) -> None:
    ring.describe(0, ring.buffer(0), 8, NEXT, 1)
    ring.describe(1, ring.buffer(0), 8, NEXT, 0)
    ring.offer(0)


def _itself(ring: DriverQueue) -> None:
    ring.describe(3, ring.buffer(0), 0, NEXT, 3)
    ring.offer(3)


def _next_beyond(ring: DriverQueue) -> None:
    ring.describe(0, ring.buffer(0), 8, NEXT, SIZE)
    ring.offer(0)


def _head_beyond(ring: DriverQueue) -> None:
    ring.offer(0xFFFF)


def _indirect(ring: DriverQueue) -> None:
    ring.describe(0, ring.buffer(0), 64, INDIRECT)
    ring.offer(0)


def _both_ways(ring: DriverQueue) -> None:
    ring.describe(0, ring.buffer(0), 64, NEXT, 1)
    ring.describe(1, ring.buffer(0), 64, WRITE)
    ring.offer(0)


def _index_far_away(ring: DriverQueue) -> None:
    ring.index = ring.index + 2 * SIZE + 1 & 0xFFFF
    ring.offer(0)


@pytest.mark.parametrize(
    "attack", [_loop, _itself, _next_beyond, _head_beyond, _indirect, _both_ways, _index_far_away]
)
def test_a_ring_that_is_none_is_over_and_nothing_else(attack: Callable[[DriverQueue], None]) -> None:
    world, mallory, a, b = three()
    attack(mallory.tx)
    world.pump()
    assert list(mallory.port.state()["broken"]) == ["transmit"]
    assert "transmit" not in mallory.port.state()["started"]
    still_serves(world, a, b)
    # What it is sent it gets, and once its queue is set up anew it is served again.
    a.send(frame(mac(9), mac(1), b"all"))
    world.pump()
    assert mallory.received()[-1][14:] == b"all"
    mallory.to_switch(vhost.StopVring(Queue.TRANSMIT))
    mallory.tx = DriverQueue(mallory, Queue.TRANSMIT)
    mallory.to_switch(mallory.tx.setup())
    mallory.to_switch(vhost.StartVring(Queue.TRANSMIT))
    still_serves(world, mallory, b)


@pytest.mark.parametrize(
    "attack", [_loop, _itself, _next_beyond, _head_beyond, _indirect, _both_ways, _index_far_away]
)
def test_the_same_of_a_ring_that_frames_wait_for(attack: Callable[[DriverQueue], None]) -> None:
    world, mallory, a, b = three()
    mallory.rx.index = mallory.rx.get(mallory.rx.used + 2, 2)
    attack(mallory.rx)
    a.send(*(frame(mac(9), mac(1)) for _ in range(4)))
    world.pump()
    assert list(mallory.port.state()["broken"]) == ["receive"]
    assert len(a.tx.reap()) == 4
    assert mallory.port.counters["tx_dropped"] >= 1
    still_serves(world, a, b)


@pytest.mark.parametrize(
    "length", [0, HEADER.size, HEADER.size + MIN_FRAME - 1, HEADER.size + MAX_FRAME + 1, 0xFFFF_FFFF]
)
def test_what_is_no_frame_is_not_read(length: int) -> None:
    world, mallory, a, b = three()
    mallory.counts.clear()
    mallory.tx.describe(0, mallory.tx.buffer(0), length)
    mallory.tx.offer(0)
    world.pump()
    assert mallory.tx.reap() == [(0, 0)]
    assert mallory.port.counters["rx_errors"] == 1
    assert mallory.counts["IotlbMiss"] <= 1  # of its descriptors
    still_serves(world, mallory, b)
    still_serves(world, a, b)


@pytest.mark.parametrize("address", [EVERYTHING, EVERYTHING - 100, 1 << 63])
@pytest.mark.parametrize("translated", [True, False])
def test_buffers_where_nothing_is(address: int, translated: bool) -> None:
    world, mallory, a, b = three(translated)
    mallory.tx.describe(0, address, 500)
    mallory.tx.offer(0)
    mallory.rx.describe(0, address, 500, WRITE)
    a.send(frame(mac(9), mac(1)))
    world.pump()
    world.now += DELIVERY_TIMEOUT
    still_serves(world, a, b)


@pytest.mark.parametrize("where", ["descriptors", "available", "used"])
@pytest.mark.parametrize("address", [EVERYTHING - 3, 1 << 62])
def test_rings_where_nothing_is(where: str, address: int) -> None:
    world, mallory, a, b = three()
    for ring in (mallory.tx, mallory.rx):
        mallory.to_switch(ring.setup()._replace(**{where: address}))
        mallory.to_switch(vhost.StartVring(ring.queue))
    mallory.send(frame(mac(9), mac(8)))
    for _ in range(3):
        still_serves(world, a, b)
        world.now += DELIVERY_TIMEOUT


def test_a_buffer_for_what_is_sent_that_is_too_small_or_to_be_read_gets_nothing() -> None:
    world, mallory, a, b = three()
    ring = mallory.rx
    ring.index = ring.get(ring.used + 2, 2)
    ring.describe(0, ring.buffer(0), HEADER.size + MIN_FRAME, WRITE)
    ring.offer(0)
    ring.describe(1, ring.buffer(1), PAGE)
    ring.offer(1)
    before = bytes(mallory.ram[ring.buffer(0) : ring.buffer(2)])
    a.send(frame(mac(9), mac(1), b"long"))
    world.pump()
    assert bytes(mallory.ram[ring.buffer(0) : ring.buffer(2)]) == before
    a.send(frame(mac(9), mac(1)), frame(mac(9), mac(1)))
    world.pump()
    assert ring.reap() == [(0, HEADER.size + MIN_FRAME), (1, 0)]
    assert mallory.port.counters["tx_errors"] == 2
    still_serves(world, a, b)


def test_notifications_without_end_ask_no_more_than_there_is_room_for() -> None:
    world, mallory, a, b = three()
    assert mallory.mapping is not None
    buffers = {mallory.tx.buffer(index) // PAGE for index in range(mallory.tx.size)}
    leave = {page: mallory.mapping.pop(page) for page in buffers}
    for page in buffers:
        mallory.to_switch(vhost.IotlbInvalidate(1, page * PAGE, PAGE))
    mallory.stuck = True
    mallory.send(*(frame(mac(1), mac(0), bytes((number,))) for number in range(BURST)))
    mallory.stuck = False
    world.pump()
    assert not mallory.tx.reap()
    mallory.stuck = True
    for _ in range(1000):
        mallory.to_switch(vhost.Kick(Queue.TRANSMIT))
    world.pump()
    assert len(mallory.up) < ROOM + 2 * BURST
    still_serves(world, a, b)
    # The last notification is served nevertheless, however many there were of them.
    mallory.mapping |= leave
    mallory.stuck = False
    a.give(BURST)
    world.pump()
    assert len(mallory.tx.reap()) == BURST


@pytest.mark.parametrize("size", [3, 48, 255])
def test_a_size_that_is_no_power_of_two_is_not_served(size: int) -> None:
    world, mallory, a, b = three()
    for ring in (mallory.tx, mallory.rx):
        mallory.to_switch(ring.setup()._replace(size=size))
        mallory.to_switch(vhost.StartVring(ring.queue))
    world.pump()
    assert mallory.port.state()["started"] == []
    still_serves(world, a, b)


@settings(max_examples=50)
@given(
    memory=st.lists(st.tuples(st.integers(0, 14 * PAGE // 8 - 1), st.integers(0, EVERYTHING)), max_size=60),
    small=st.lists(st.tuples(st.integers(0, 2 * 64 - 1), st.integers(0, 80), st.integers(0, 7)), max_size=20),
    kicks=st.lists(st.sampled_from(list(Queue)), max_size=6),
)
def test_any_content_of_rings(
    memory: list[tuple[int, int]], small: list[tuple[int, int, int]], kicks: list[Queue]
) -> None:
    """Whatever stands there, messages end, and the others are served."""
    world, mallory, a, b = three()
    rings = (mallory.tx, mallory.rx)
    for at, value in memory:
        mallory.ram[PAGE + 8 * at : PAGE + 8 * at + 8] = value.to_bytes(8, "little")
    for number, following, flags in small:
        ring = rings[number % 2]
        ring.describe(number // 2, ring.buffer(number // 2), 40, flags, following)
        ring.put(ring.available + 4 + 2 * (number // 2), 2, following)
        ring.put(ring.available + 2, 2, number // 2)
    for queue in kicks:
        mallory.to_switch(vhost.Kick(queue))
    a.send(frame(mac(9), mac(1)))
    world.pump()
    world.now += DELIVERY_TIMEOUT
    still_serves(world, a, b)


@given(
    st.lists(
        st.one_of(
            st.builds(vhost.SetFeatures, st.sampled_from([0, int(virtio.Feature.ACCESS_PLATFORM)])),
            st.builds(
                vhost.SetVring,
                st.integers(0, 1),
                st.sampled_from([1, 2, 8, 64, 32768, 7]),
                *[st.one_of(st.integers(0, 255 * PAGE), st.integers(0, EVERYTHING))] * 3,
                st.integers(0, 0xFFFF),
            ),
            st.builds(vhost.StartVring, st.integers(0, 1)),
            st.builds(vhost.StopVring, st.integers(0, 1)),
            st.builds(vhost.Kick, st.integers(0, 1)),
            st.builds(
                vhost.IotlbUpdate, st.integers(0, EVERYTHING), st.integers(1, EVERYTHING), st.just(0), st.integers(1, 3)
            ),
            st.builds(vhost.IotlbInvalidate, st.just(1), st.integers(0, EVERYTHING), st.integers(1, EVERYTHING)),
            st.builds(vhost.ReadCompletion, st.integers(0, 1023), st.integers(0, 255), st.binary(max_size=8)),
            st.just(vhost.Reset()),
            st.just(vhost.GetFeatures()),
        ),
        max_size=30,
    )
)
def test_any_messages_of_a_front_end(messages: list[object]) -> None:
    world, mallory, a, b = three()
    for message in messages:
        mallory.to_switch(message)
    world.pump()
    world.now += DELIVERY_TIMEOUT
    still_serves(world, a, b)
