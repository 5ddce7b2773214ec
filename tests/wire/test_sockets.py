"""Channels that ask, at an inbox and at libzmq's ROUTER: inherited listeners, single frames, back-pressure."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import zmq

from viommu_actors.spec.tlp import HotReset
from viommu_actors.wire import libzmq
from viommu_actors.wire.codec import Codec, MalformedMessage
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.messages import TRAP, TRAP_ANSWER, TrapDone, TrapRead, TrapValue, TrapWrite
from viommu_actors.wire.sockets import Channel, Listener
from viommu_actors.wire.tally import Tally, disagreements
from viommu_actors.wire.zmtp import QUEUE, PeerLost

Connect = Callable[[str, Codec, Codec, Tally], Channel]


@pytest.fixture
def channel_to(listener: Listener) -> Iterator[Connect]:
    """Makes channels to the listener: (name, out, answer, tally)."""
    made = []

    def make(name: str, out: Codec, answer: Codec, tally: Tally) -> Channel:
        made.append(Channel(name, listener.address, out, answer, tally))
        return made[-1]

    yield make
    for channel in made:
        channel.close()


@pytest.fixture
def inbox(listener: Listener, poller: select.epoll) -> Iterator[Inbox]:
    with closing(Inbox(again(listener), poller)) as made:
        yield made


@pytest.fixture
def router(listener: Listener) -> Iterator[zmq.Socket[bytes]]:
    """What libzmq has in the place of an inbox."""
    with libzmq.make_context() as context, libzmq.bind_router(context, again(listener)) as made:
        yield made


def again(listener: Listener) -> Listener:
    """A copy of the descriptor, which whoever listens closes with the socket."""
    return Listener(os.dup(listener.fd), listener.address)


def test_call_and_answer_are_counted_at_both_ends(inbox: Inbox, channel_to: Connect) -> None:
    near, far = Tally("trap", "guest"), Tally("trap", "hypervisor")
    channel = channel_to("guest", TRAP, TRAP_ANSWER, near)
    assert inbox.receive_within(0.0) is None, "it shakes hands"
    channel.post(TrapWrite(0xFED9_0088, 4, 0x20))
    peer, frame = inbox.receive()
    request = TRAP.decode(frame)
    far.received[type(request)] += 1
    assert (peer, request) == (b"guest", TrapWrite(0xFED9_0088, 4, 0x20))
    assert inbox.send(peer, TrapDone(False), TRAP_ANSWER, far)
    assert channel.receive() == TrapDone(False)
    assert disagreements([near.as_dict(), far.as_dict()]) == []
    far.received[TrapRead] += 1
    assert (
        "guest sent TrapWrite 1, hypervisor received TrapRead 1, TrapWrite 1"
        in disagreements([near.as_dict(), far.as_dict()])[0]
    )


def test_a_wire_counted_at_one_end_only_disagrees() -> None:
    assert disagreements([]) == []
    assert disagreements([Tally("link:nic0", "host").as_dict()]) == ["link:nic0: counted at 1 end(s) only, by host"]
    assert disagreements([Tally("link:nic0", "host").as_dict()], {"nic0"}) == []
    assert disagreements([Tally("link:nic0", "host").as_dict()], {"nic1"})


def test_who_asks_before_the_other_is_up_waits_for_it(listener: Listener, channel_to: Connect) -> None:
    channel, answers = channel_to("early", TRAP, TRAP_ANSWER, Tally("trap", "x")), []
    asking = threading.Thread(target=lambda: answers.append(channel.call(TrapRead(0, 4))), daemon=True)
    asking.start()
    with closing(select.epoll()) as poller, closing(Inbox(again(listener), poller)) as inbox:
        assert inbox.receive() == (b"early", TRAP.encode(TrapRead(0, 4)))
        assert not answers
        inbox.send(b"early", TrapValue(7), TRAP_ANSWER, Tally("trap", "y"))
        asking.join(10)
    assert answers == [TrapValue(7)]


def test_another_user_is_refused(inbox: Inbox, channel_to: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    channel = channel_to("stranger", TRAP, TRAP_ANSWER, Tally("trap", "x"))
    assert inbox.receive_within(0.1) is None
    with pytest.raises(PeerLost):
        channel.post(TrapRead(0, 4))
    assert inbox.receive_within(0.1) is None


def test_a_name_cannot_be_taken_over(listener: Listener) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as thief, pytest.raises(OSError):
        thief.bind("\0" + listener.address.removeprefix("ipc://@"))


def test_an_answer_of_two_frames_is_malformed(router: zmq.Socket[bytes], channel_to: Connect) -> None:
    channel = channel_to("peer", TRAP, TRAP_ANSWER, Tally("trap", "x"))
    channel.post(TrapRead(1, 4))
    peer, frame = router.recv_multipart()
    assert (peer, TRAP.decode(frame)) == (b"peer", TrapRead(1, 4))
    router.send_multipart([peer, TRAP_ANSWER.encode(TrapValue(1)), b"more"])
    router.send_multipart([peer, TRAP_ANSWER.encode(TrapValue(2))])
    with pytest.raises(MalformedMessage):
        channel.receive()
    assert channel.tally.malformed == 1
    assert channel.receive() == TrapValue(2)


@pytest.mark.parametrize("asks", [True, False])
def test_an_answer_that_will_not_come_is_an_error(listener: Listener, channel_to: Connect, asks: bool) -> None:
    channel = channel_to("peer", TRAP, TRAP_ANSWER, Tally("trap", "x"))
    with closing(select.epoll()) as poller, closing(Inbox(again(listener), poller)) as inbox:
        assert inbox.receive_within(0.0) is None, "it shakes hands"
        channel.post(TrapRead(0, 4))
        inbox.receive()
    with pytest.raises(PeerLost):
        channel.call(TrapRead(0, 4)) if asks else channel.receive()
    with pytest.raises(PeerLost):
        channel.call(TrapRead(0, 4))


def test_a_post_waits_for_room(inbox: Inbox, channel_to: Connect) -> None:
    """Whoever writes to one who takes nothing does not fill the memory of either."""
    tally = Tally("trap", "x")
    channel, count = channel_to("peer", TRAP, TRAP_ANSWER, tally), 20_000
    posting = threading.Thread(target=lambda: [channel.post(TrapRead(n, 4)) for n in range(count)], daemon=True)
    posting.start()
    first, before = inbox.receive()[1], -1
    while (sent := tally.sent[TrapRead]) != before or not sent:
        before = sent
        time.sleep(0.1)
    assert sent < count
    frames = [first, *(inbox.receive()[1] for _ in range(count - 1))]
    assert [TRAP.decode(frame) for frame in frames] == [TrapRead(n, 4) for n in range(count)]
    posting.join(10)
    assert not posting.is_alive()


def test_calls_under_way_at_the_same_time_are_answered_in_order(inbox: Inbox, channel_to: Connect) -> None:
    """More of them than are under way at a time, while the peer takes none for a while."""
    tally, count = Tally("trap", "x"), 300
    channel, answers = channel_to("peer", TRAP, TRAP_ANSWER, tally), []
    asking = threading.Thread(
        target=lambda: answers.extend(channel.calls([TrapRead(n, 4) for n in range(count)])), daemon=True
    )
    asking.start()
    peer, frame = inbox.receive()
    time.sleep(0.1)
    most = 0
    for n in range(count):
        most = max(most, tally.sent[TrapRead] - n)
        if n:
            peer, frame = inbox.receive()
        assert TRAP.decode(frame) == TrapRead(n, 4)
        assert inbox.send(peer, TrapValue(n), TRAP_ANSWER, Tally("trap", "y"))
    asking.join(10)
    assert answers == [TrapValue(n) for n in range(count)]
    assert 1 < most <= QUEUE // 2
    assert tally.as_dict() == {
        "wire": "trap", "end": "x", "sent": {"TrapRead": count}, "received": {"TrapValue": count}
    }  # fmt: skip


def test_one_malformed_answer_takes_no_other_with_it(router: zmq.Socket[bytes], channel_to: Connect) -> None:
    errors = []
    channel = channel_to("peer", TRAP, TRAP_ANSWER, Tally("trap", "x"))

    def ask() -> None:
        try:
            channel.calls([TrapRead(n, 4) for n in range(3)])
        except MalformedMessage as error:
            errors.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    for n in range(3):
        peer, _ = router.recv_multipart()
        router.send_multipart([peer, b"nonsense" if n == 1 else TRAP_ANSWER.encode(TrapValue(n))])
    asking.join(10)
    assert len(errors) == 1
    channel.post(TrapRead(3, 4))
    router.send_multipart([router.recv_multipart()[0], TRAP_ANSWER.encode(TrapValue(3))])
    assert channel.receive() == TrapValue(3), "none is left over"


def test_a_message_of_another_wire_cannot_be_sent(channel_to: Connect) -> None:
    channel = channel_to("peer", TRAP, TRAP_ANSWER, Tally("trap", "x"))
    with pytest.raises(KeyError):
        channel.post(HotReset(0))


def test_stamps_follow_the_order_of_a_wire_and_stop_when_told(inbox: Inbox, channel_to: Connect) -> None:
    tally, kinds = Tally("trap", "x"), []
    channel = channel_to("peer", TRAP, TRAP_ANSWER, tally)
    assert inbox.receive_within(0.0) is None, "it shakes hands"
    channel.post(TrapRead(0, 4))
    assert tally.take_stamps(1000) is None
    tally.trace(kinds)
    channel.post(TrapWrite(0, 4, 0))
    channel.post(TrapRead(0, 4))
    taken = tally.take_stamps(1000)
    assert taken is not None
    stamps = array("q", taken["sent"])
    assert [kinds[index] for index in stamps[::2]] == [TrapWrite, TrapRead]
    assert stamps[1] <= stamps[3] and not taken["received"]
    assert tally.take_stamps(1000) == {"wire": "trap", "end": "x", "sent": b"", "received": b""}
    channel.post(TrapRead(0, 4))
    channel.post(TrapRead(0, 4))
    parts = [tally.take_stamps(1), tally.take_stamps(1), tally.take_stamps(1)]
    assert [len(part["sent"]) if part else None for part in parts] == [16, 16, 0]
    tally.trace(None)
    channel.post(TrapRead(0, 4))
    assert tally.take_stamps(1000) is None
    assert tally.as_dict()["sent"] == {"TrapRead": 5, "TrapWrite": 1}
    assert len([inbox.receive() for _ in range(6)]) == 6
