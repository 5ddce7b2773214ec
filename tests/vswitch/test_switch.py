"""Frames between guests by way of the switch: their rings and buffers are in memory that it reaches by messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vswitch.front_end import PAGE, RAM, Guest, World, frame, mac
from viommu_actors.spec import vhost
from viommu_actors.spec.vhost import Access
from viommu_actors.spec.virtio import DescriptorFlag
from viommu_actors.spec.virtio_net import HEADER, MAX_FRAME, MIN_FRAME, RECEIVE_HEADER, Queue
from viommu_actors.vswitch.egress import BUFFER_TIMEOUT, DELIVERY_TIMEOUT
from viommu_actors.vswitch.ring import BURST

ALL = b"\xff" * 6
NEXT, WRITE = DescriptorFlag.NEXT, DescriptorFlag.WRITE


@pytest.fixture
def world() -> World:
    return World()


def up(world: World, names: str, buffers: int = 32, **options: object) -> list[Guest]:
    """Guests that have made themselves known, each by a frame to itself."""
    guests = [world.guest(name, **options) for name in names]
    for number, guest in enumerate(guests):
        guest.give(buffers)
        guest.start()
        guest.send(frame(mac(number), mac(number)))
    world.pump()
    for guest in guests:
        guest.received()
        guest.tx.reap()
        guest.port.counters.clear()
        guest.counts.clear()
    return guests


def spent(*guests: Guest) -> dict[str, int]:
    kinds = sorted({kind for guest in guests for kind in guest.counts})
    return {kind: sum(guest.counts[kind] for guest in guests) for kind in kinds}


@pytest.mark.parametrize("translated", [True, False])
@pytest.mark.parametrize("size", [MIN_FRAME, 1000, MAX_FRAME])
def test_a_frame_crosses_byte_for_byte_and_its_buffer_comes_back(world: World, translated: bool, size: int) -> None:
    a, b = up(world, "ab", translated=translated)
    sent = frame(mac(1), mac(0), bytes(n % 251 for n in range(size - MIN_FRAME)))
    a.send(sent)
    world.pump()
    head, length = b.rx.reap()[0]
    at = b.rx.buffer(head)
    assert bytes(b.ram[at : at + length]) == RECEIVE_HEADER + sent
    assert len(a.tx.reap()) == 1
    assert not a.faults and not b.faults
    assert a.port.counters["rx_bytes"] == b.port.counters["tx_bytes"] == size


def test_unknown_goes_to_all_others_and_known_to_one(world: World) -> None:
    a, b, c = up(world, "abc")
    a.send(frame(mac(9), mac(0), b"who"))
    world.pump()
    assert [len(each.received()) for each in (a, b, c)] == [0, 1, 1]
    a.send(frame(mac(1), mac(0), b"you"), frame(ALL, mac(0), b"all"), frame(mac(0), mac(0), b"myself"))
    world.pump()
    assert [len(each.received()) for each in (a, b, c)] == [0, 2, 1]


def test_an_address_moves_with_its_frames_and_a_group_has_none(world: World) -> None:
    a, b, c = up(world, "abc")
    c.send(frame(mac(0), mac(1)), frame(mac(0), ALL))
    world.pump()
    a.send(frame(mac(1), mac(0)), frame(ALL, mac(0)))
    world.pump()
    assert [len(each.received()) for each in (b, c)] == [1, 2]


@pytest.mark.parametrize("translated", [True, False])
def test_rings_wrap_at_their_size_and_indices_at_65536(world: World, translated: bool) -> None:
    a, b = up(world, "ab", buffers=8, translated=translated, size=8, base=0xFFF0)
    sent = [frame(mac(1), mac(0), bytes((number,)) * 50) for number in range(40)]
    got = []
    for at in range(0, len(sent), 5):
        a.send(*sent[at : at + 5])
        world.pump()
        got += b.received()
        b.give(5)
        assert len(a.tx.reap()) == 5
    assert got == sent
    assert a.tx.index < 64


def test_chains_of_many_buffers(world: World) -> None:
    a, b = up(world, "ab", buffers=0)
    # To be read: the header apart, and the frame in three parts, one of them empty; to be written: four odd parts.
    content = frame(mac(1), mac(0), bytes(range(200)))
    a.ram[a.tx.buffer(0) : a.tx.buffer(0) + HEADER.size] = bytes(HEADER.size)
    at = a.tx.buffer(0) + 100
    a.ram[at : at + len(content)] = content
    a.tx.describe(9, a.tx.buffer(0), HEADER.size, NEXT, 5)
    a.tx.describe(5, at, 7, NEXT, 40)
    a.tx.describe(40, at, 0, NEXT, 41)
    a.tx.describe(41, at + 7, len(content) - 7)
    for index, length in enumerate((5, 20, 1, 5000)):
        flags = WRITE | (NEXT if index < 3 else 0)
        b.rx.describe(index, b.rx.buffer(index) + 1, length, flags, index + 1)
    b.rx.offer(0)
    a.tx.offer(9)
    world.pump()
    assert a.tx.reap() == [(9, 0)]
    assert b.rx.reap() == [(0, HEADER.size + len(content))]
    parts = (bytes(b.ram[b.rx.buffer(i) + 1 :][:length]) for i, length in enumerate((5, 20, 1, len(content) - 14)))
    assert b"".join(parts) == RECEIVE_HEADER + content


# --- what it costs


def test_a_burst_is_read_and_written_at_once(world: World) -> None:
    a, b = up(world, "ab", buffers=0)
    burst = 24
    for _ in range(2):
        for guest in (a, b):
            guest.counts.clear()
            guest.port.counters.clear()
        b.give(burst)
        a.send(*(frame(mac(1), mac(0), bytes(1000)) for _ in range(burst)))
        world.pump()
        assert len(b.received()) == burst
    empty = {guest: guest.port.counters["empty_polls"] for guest in (a, b)}
    # Index, heads and descriptors at once, each frame by itself, and a last look before it sleeps.
    assert a.counts["MemoryRead"] - empty[a] == 3 + burst + 1
    # The used ring, with its index and flags twice: that it sleeps, too.
    assert a.counts["MemoryWrite"] == 3
    # Index, heads and descriptors, and the look behind what was written.
    assert b.counts["MemoryRead"] - empty[b] == 4
    assert b.counts["MemoryWrite"] == burst + 2
    assert spent(a, b)["Call"] == 2
    # Of each page that it had not seen before, and of no other.
    assert a.counts["IotlbMiss"] == b.counts["IotlbMiss"] == burst


def test_an_idle_switch_says_nothing(world: World) -> None:
    a, b = up(world, "ab")
    assert world.pump() == 0
    assert a.tx.get(a.tx.used, 2) == 0
    assert b.rx.get(b.rx.used, 2) == 1
    a.send(frame(mac(1), mac(0)))
    assert [type(message) for message in a.down] == [vhost.Kick]


def test_no_notification_and_no_interrupt_while_both_sides_poll(world: World) -> None:
    a, b = up(world, "ab")
    for guest in (a, b):
        guest.rx.put(guest.rx.available, 2, 1)
        guest.tx.put(guest.tx.available, 2, 1)
        guest.calls.clear()
    a.send(frame(mac(1), mac(0)))
    while not a.tx.get(a.tx.used, 2):
        world.step()
    a.send(frame(mac(1), mac(0)))
    world.pump()
    assert len(b.received()) == 2
    assert a.port.counters["kicks"] == 1
    assert not a.calls and not b.calls


def test_a_driver_hears_of_what_a_switch_used_that_died_before_it_had_said_so(world: World) -> None:
    a, b = up(world, "ab")
    a.calls.clear()
    a.send(frame(mac(1), mac(0)))
    while a.tx.seen == a.tx.get(a.tx.used + 2, 2):
        assert world.step()
    assert not a.calls
    world.replace_switch()
    for guest in (a, b):
        guest.start()
    world.pump()
    assert Queue.TRANSMIT in a.calls and Queue.RECEIVE in b.calls


def test_a_driver_hears_of_a_burst_though_the_next_one_waits_for_its_page(world: World) -> None:
    a, b = up(world, "ab")
    assert a.mapping is not None
    a.mapping.pop(a.tx.buffer((a.tx.index + BURST + 1) % a.tx.size) // PAGE)
    a.calls.clear()
    a.stuck = True
    a.send(*(frame(mac(1), mac(0)) for _ in range(BURST + 4)))
    world.pump()
    a.stuck = False
    b.give(BURST)
    world.pump()
    assert len(a.tx.reap()) == BURST
    assert a.calls == [Queue.TRANSMIT]


# --- the device-IOTLB


def test_a_page_is_asked_for_once_and_again_when_it_was_invalidated(world: World) -> None:
    a, b = up(world, "ab", buffers=0)
    page = b.rx.buffer(0) // PAGE
    misses = []
    for times in range(3):
        b.counts.clear()
        b.rx.describe(0, page * PAGE, PAGE, WRITE)
        b.rx.offer(0)
        a.send(frame(mac(1), mac(0)))
        world.pump()
        misses.append(b.counts["IotlbMiss"])
        assert b.mapping is not None
        if times:
            leave = b.mapping[page]
            b.unmap(page, sequence=7)
            world.pump()
            assert b.said.pop() == vhost.IotlbInvalidated(7)
            b.mapping[page] = leave
    # At first the descriptors, too; at both rings it has been before.
    assert misses == [2, 0, 1]
    assert len(b.rx.reap()) == 3
    assert not b.faults


def test_a_miss_without_an_answer_holds_its_own_queue_alone_until_the_guest_has_mapped_it(world: World) -> None:
    a, b, c = up(world, "abc")
    assert a.mapping is not None
    bad = a.tx.buffer(a.tx.index % a.tx.size) // PAGE
    leave = a.mapping.pop(bad)
    a.send(frame(mac(1), mac(0), b"stays"))
    c.send(frame(mac(1), mac(2), b"passes"))
    world.pump()
    assert [each[14:] for each in b.received()] == [b"passes"]
    assert a.tx.reap() == [] and [iova // PAGE for iova, _ in a.faults] == [bad]
    a.mapping[bad] = leave
    a.to_switch(vhost.Kick(Queue.TRANSMIT))
    world.pump()
    assert [each[14:] for each in b.received()] == [b"stays"]
    assert len(a.tx.reap()) == 1


def test_a_buffer_that_must_not_be_written_is_not_written(world: World) -> None:
    a, b = up(world, "ab", buffers=2)
    assert b.mapping is not None
    page = b.rx.buffer(0) // PAGE
    b.mapping[page] = (page, Access.READ)
    # What it was told by a read of that page it holds against the write.
    b.to_switch(vhost.IotlbUpdate(page * PAGE, PAGE, page * PAGE, Access.READ))
    a.send(frame(mac(1), mac(0), b"second"))
    world.pump()
    assert b.rx.reap() == [(0, 0), (1, HEADER.size + MIN_FRAME + 6)]
    assert vhost.IotlbAccessFail(b.rx.buffer(0), HEADER.size + MIN_FRAME + 6, Access.WRITE) in b.said
    assert not b.faults


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (vhost.IotlbInvalidate(7, 0, RAM), vhost.IotlbInvalidated(7)),
        (vhost.StopVring(Queue.TRANSMIT), vhost.VringBase(Queue.TRANSMIT, 1)),
    ],
)
def test_what_is_to_be_read_later_is_not_read_once_that_was_promised(
    world: World, message: object, answer: object
) -> None:
    """A frame in more pieces than there may be reads on the way."""
    a, _ = up(world, "ab")
    pieces = 60
    for index in range(pieces):
        last = index == pieces - 1
        a.tx.describe(index, a.tx.buffer(index), 60, 0 if last else NEXT, 0 if last else index + 1)
    assert a.mapping is not None
    a.tx.offer(0)
    first = a.tx.buffer(0)
    while sum(type(said) is vhost.MemoryRead and said.iova >= first for said in a.up) < 32:
        assert world.step()
    a.port.receive(message)
    a.mapping.clear()
    while a.said[-1:] != [answer]:
        assert world.step()
    a.counts.clear()
    world.pump()
    assert a.counts["MemoryRead"] == 0


# --- guests that take nothing


def test_a_guest_without_buffers_is_waited_for_once(world: World) -> None:
    a, b, c = up(world, "abc", buffers=0)
    c.give(32)
    a.send(frame(mac(1), mac(0)), frame(mac(2), mac(0), b"after"))
    world.pump()
    assert len(c.received()) == 1
    assert a.tx.reap() == []
    world.now += BUFFER_TIMEOUT
    world.pump()
    assert len(a.tx.reap()) == 2
    a.send(frame(mac(1), mac(0)))
    world.pump()
    assert len(a.tx.reap()) == 1
    assert b.port.counters["tx_dropped"] == 2
    b.give(1)
    world.pump()
    a.send(frame(mac(1), mac(0), b"now"))
    world.pump()
    assert [each[14:] for each in b.received()] == [b"now"]


@pytest.mark.parametrize("leave", [Access.READ, Access.BOTH])
def test_a_guest_that_gives_buffers_by_drops_is_waited_for_no_longer(world: World, leave: Access) -> None:
    """Be they fit to be written or not: a frame's time is its own."""
    a, b, c = up(world, "abc", buffers=1)
    b.give(32)
    for index in range(c.rx.size):
        page = c.rx.buffer(index) // PAGE
        c.unmap(page)
        c.mapping[page] = page, leave  # type: ignore[index]
        c.to_switch(vhost.IotlbUpdate(page * PAGE, PAGE, page * PAGE, leave))
    a.send(*(frame(ALL, mac(0), bytes((number,))) for number in range(31)), frame(mac(1), mac(0), b"b's"))
    world.pump()
    assert len(b.received()) == 32
    sent = world.now
    while not a.tx.reap():
        assert world.now < sent + DELIVERY_TIMEOUT
        world.now += 0.8 * BUFFER_TIMEOUT
        c.give(1)
        world.pump()
    assert c.port.counters["tx_dropped"]


def test_a_front_end_that_does_not_answer_holds_nobody(world: World) -> None:
    a, b, c = up(world, "abc")
    b.stuck = True
    a.send(frame(mac(1), mac(0)))
    c.send(frame(mac(0), mac(2), b"passes"))
    world.pump()
    assert len(a.received()) == 1
    assert a.tx.reap() == []
    world.now += DELIVERY_TIMEOUT
    world.pump()
    assert len(a.tx.reap()) == 1
    b.stuck = False
    world.pump()
    a.send(frame(mac(1), mac(0), b"again"))
    world.pump()
    assert b.received()[-1][14:] == b"again"


def test_a_guest_that_was_never_there_is_waited_for_once(world: World) -> None:
    a, b = *up(world, "a"), world.guest("b")
    world.now += 1000
    a.send(frame(mac(1), mac(0), b"first"))
    world.pump()
    assert a.tx.reap() == []
    b.give(8)
    b.start()
    world.pump()
    assert len(a.tx.reap()) == len(b.received()) == 1
    c = world.guest("c")
    a.send(frame(mac(2), mac(0), b"second"))
    world.pump()
    world.now += DELIVERY_TIMEOUT
    a.send(frame(mac(2), mac(0), b"third"))
    world.pump()
    assert len(a.tx.reap()) == len(b.received()) == 2
    assert c.port.counters["tx_dropped"] == 2


def test_what_is_sent_to_a_guest_from_its_start_on_waits_for_it(world: World) -> None:
    a, b = up(world, "ab")
    b.to_switch(vhost.StopVring(Queue.RECEIVE))
    world.pump()
    b.start()
    while b.down:
        b.port.receive(b.down.popleft())
    a.send(frame(mac(1), mac(0), b"early"))
    b.stuck = True
    world.pump()
    b.stuck = False
    world.pump()
    assert [each[14:] for each in b.received()] == [b"early"]


@pytest.mark.parametrize("message", [vhost.StopVring(Queue.RECEIVE), vhost.Reset()])
def test_a_port_that_has_gone_takes_nothing(world: World, message: object) -> None:
    a, b = up(world, "ab")
    b.to_switch(message)
    a.send(frame(mac(1), mac(0)))
    world.pump()
    assert len(a.tx.reap()) == 1
    assert b.port.counters["tx_dropped"] == 1
    assert b.received() == []


# --- stop, and go on


def test_a_queue_goes_on_where_it_stopped(world: World) -> None:
    a, b = up(world, "ab")
    a.send(frame(mac(1), mac(0), b"first"))
    world.pump()
    a.to_switch(vhost.StopVring(Queue.TRANSMIT))
    world.pump()
    base = a.said.pop()
    assert base == vhost.VringBase(Queue.TRANSMIT, a.tx.index)
    a.send(frame(mac(1), mac(0), b"second"))
    assert world.pump() == 1
    a.to_switch(a.tx.setup()._replace(base=base.base))
    a.to_switch(vhost.StartVring(Queue.TRANSMIT))
    world.pump()
    assert [each[14:] for each in b.received()] == [b"first", b"second"]


@given(seed=st.integers(0, 2**32), dies_after=st.integers(0, 400), translated=st.booleans())
def test_what_was_acknowledged_has_arrived_whenever_the_switch_dies(
    seed: int, dies_after: int, translated: bool
) -> None:
    world = World(seed)
    a, b = up(world, "ab", translated=translated)
    sent = [frame(mac(1), mac(0), bytes((number,))) for number in range(20)]
    a.send(*sent)
    for _ in range(dies_after):
        if not world.step():
            break
    # What is on a wire dies with the switch, but what a front end had done is done.
    acknowledged, got = len(a.tx.reap()), b.received()
    assert got[:acknowledged] == sent[:acknowledged]
    world.replace_switch()
    b.give(len(got))
    for guest in (a, b):
        guest.start()
    world.pump()
    got += b.received()
    assert acknowledged + len(a.tx.reap()) == len(sent)
    assert sorted(set(got)) == sent
    assert not a.faults and not b.faults


@given(st.data())
def test_any_traffic_in_any_order_arrives_once_and_in_its_order(data: st.DataObject) -> None:
    world = World(data.draw(st.integers(0, 2**32)))
    size = data.draw(st.sampled_from([4, 8, 64]))
    guests = up(world, "abc", buffers=size, size=size, base=data.draw(st.sampled_from([0, 0xFFFE])))
    sent: dict[tuple[int, int], list[bytes]] = {}
    got: dict[tuple[int, int], list[bytes]] = {}
    serial = 0
    free = [size] * 3
    for _ in range(data.draw(st.integers(1, 12))):
        source = data.draw(st.integers(0, 2))
        target = data.draw(st.sampled_from([number for number in range(3) if number != source]))
        for _ in range(data.draw(st.integers(1, size))):
            if free[source]:
                free[source] -= 1
                serial += 1
                content = frame(mac(target), mac(source), serial.to_bytes(2, "big"))
                sent.setdefault((source, target), []).append(content)
                guests[source].send(content)
        for _ in range(data.draw(st.integers(0, 60))):
            world.step()
        for number, guest in enumerate(guests):
            free[number] += len(guest.tx.reap())
            for each in (received := guest.received()):
                got.setdefault((each[11], number), []).append(each)
            guest.give(len(received))
    while world.pump():
        for number, guest in enumerate(guests):
            for each in (received := guest.received()):
                got.setdefault((each[11], number), []).append(each)
            guest.give(len(received))
    assert got == sent
    assert not any(guest.faults for guest in guests)
    assert not any(guest.port.counters["tx_dropped"] for guest in guests)
