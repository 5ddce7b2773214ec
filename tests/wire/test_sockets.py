"""Sockets of the wires: inherited listeners, foreign users refused, single frames, back-pressure."""

from __future__ import annotations

import os
import socket
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from viommu_actors.spec.tlp import HotReset
from viommu_actors.wire import sockets
from viommu_actors.wire.codec import Codec, MalformedMessage
from viommu_actors.wire.messages import TRAP, TRAP_ANSWER, TrapDone, TrapRead, TrapValue, TrapWrite
from viommu_actors.wire.sockets import Channel, Inbox, Listener
from viommu_actors.wire.tally import Tally, disagreements
from viommu_actors.wire.zmtp import PeerLost


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Iterator[zmq.Context[Any]]:
    """A context that keeps its sockets until all of them are closed at once."""
    made, kept, make = sockets.make_context(), [], sockets._socket

    def keep(context: zmq.Context[Any], kind: int) -> zmq.Socket[bytes]:
        kept.append(make(context, kind))
        return kept[-1]

    monkeypatch.setattr(sockets, "_socket", keep)
    yield made
    made.destroy(linger=0)


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener.create()
    yield made
    os.close(made.fd)


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


def _inbox(context: zmq.Context[Any], listener: Listener) -> Inbox:
    """An inbox on a copy of the descriptor, which ZeroMQ closes with the socket."""
    return Inbox(context, Listener(os.dup(listener.fd), listener.address))


def test_call_and_answer_are_counted_at_both_ends(
    context: zmq.Context[Any], listener: Listener, channel_to: Connect
) -> None:
    inbox = _inbox(context, listener)
    near, far = Tally("trap", "guest"), Tally("trap", "hypervisor")
    channel = channel_to("guest", TRAP, TRAP_ANSWER, near)
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


def test_who_asks_before_the_other_is_up_waits_for_it(
    context: zmq.Context[Any], listener: Listener, channel_to: Connect
) -> None:
    channel, answers = channel_to("early", TRAP, TRAP_ANSWER, Tally("trap", "x")), []
    asking = threading.Thread(target=lambda: answers.append(channel.call(TrapRead(0, 4))), daemon=True)
    asking.start()
    inbox = _inbox(context, listener)
    assert inbox.receive() == (b"early", TRAP.encode(TrapRead(0, 4)))
    assert not answers
    inbox.send(b"early", TrapValue(7), TRAP_ANSWER, Tally("trap", "y"))
    asking.join(10)
    assert answers == [TrapValue(7)]


def test_another_user_is_refused(
    context: zmq.Context[Any], listener: Listener, channel_to: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    inbox = _inbox(context, listener)
    with pytest.raises(PeerLost):
        channel_to("stranger", TRAP, TRAP_ANSWER, Tally("trap", "x")).post(TrapRead(0, 4))
    assert not inbox.socket.poll(300)


def test_a_name_cannot_be_taken_over(listener: Listener) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as thief, pytest.raises(OSError):
        thief.bind("\0" + listener.address.removeprefix("ipc://@"))


def test_a_second_frame_is_dropped_whole(context: zmq.Context[Any], listener: Listener) -> None:
    inbox = _inbox(context, listener)
    with sockets.connect(context, listener.address, "peer") as libzmq:
        libzmq.send_multipart([TRAP.encode(TrapRead(1, 4))] * 50)
        libzmq.send(TRAP.encode(TrapRead(2, 4)))
    assert TRAP.decode(inbox.receive()[1]) == TrapRead(2, 4)


def test_an_answer_of_two_frames_is_malformed(
    context: zmq.Context[Any], listener: Listener, channel_to: Connect
) -> None:
    inbox = _inbox(context, listener)
    channel = channel_to("peer", TRAP, TRAP_ANSWER, Tally("trap", "x"))
    channel.post(TrapRead(1, 4))
    peer, _ = inbox.receive()
    inbox.socket.send_multipart([peer, TRAP_ANSWER.encode(TrapValue(1)), b"more"])
    inbox.send(peer, TrapValue(2), TRAP_ANSWER, Tally("trap", "y"))
    with pytest.raises(MalformedMessage):
        channel.receive()
    assert channel.tally.malformed == 1
    assert channel.receive() == TrapValue(2)


def test_an_oversized_message_never_arrives(context: zmq.Context[Any], listener: Listener) -> None:
    inbox = _inbox(context, listener)
    sockets.connect(context, listener.address, "peer").send(bytes(2 << 20))
    assert not inbox.socket.poll(300)


@pytest.mark.parametrize("asks", [True, False])
def test_an_answer_that_will_not_come_is_an_error(
    context: zmq.Context[Any], listener: Listener, channel_to: Connect, asks: bool
) -> None:
    inbox, channel = _inbox(context, listener), channel_to("peer", TRAP, TRAP_ANSWER, Tally("trap", "x"))
    channel.post(TrapRead(0, 4))
    inbox.receive()
    inbox.socket.close()
    with pytest.raises(PeerLost):
        channel.call(TrapRead(0, 4)) if asks else channel.receive()
    with pytest.raises(PeerLost):
        channel.call(TrapRead(0, 4))


def test_a_post_waits_for_room(context: zmq.Context[Any], listener: Listener, channel_to: Connect) -> None:
    """Whoever writes to one who takes nothing does not fill the memory of either."""
    inbox, tally = _inbox(context, listener), Tally("trap", "x")
    channel, count = channel_to("peer", TRAP, TRAP_ANSWER, tally), 20_000
    posting = threading.Thread(target=lambda: [channel.post(TrapRead(n, 4)) for n in range(count)], daemon=True)
    posting.start()
    before = -1
    while (sent := tally.sent[TrapRead]) != before or not sent:
        before = sent
        time.sleep(0.1)
    assert sent < count
    assert [TRAP.decode(inbox.receive()[1]) for _ in range(count)] == [TrapRead(n, 4) for n in range(count)]
    posting.join(10)
    assert not posting.is_alive()


def test_sending_to_a_peer_that_is_gone_says_so(context: zmq.Context[Any], listener: Listener) -> None:
    tally = Tally("trap", "x")
    assert not _inbox(context, listener).send(b"nobody", TrapDone(False), TRAP_ANSWER, tally)
    assert not tally.as_dict()["sent"]


def test_calls_under_way_at_the_same_time_are_answered_in_order(
    context: zmq.Context[Any], listener: Listener, channel_to: Connect
) -> None:
    """More of them than a socket has room for, while the peer takes none for a while."""
    inbox, tally, count = _inbox(context, listener), Tally("trap", "x"), 300
    channel, answers = channel_to("peer", TRAP, TRAP_ANSWER, tally), []
    asking = threading.Thread(
        target=lambda: answers.extend(channel.calls([TrapRead(n, 4) for n in range(count)])), daemon=True
    )
    asking.start()
    assert inbox.socket.poll(5000)
    time.sleep(0.1)
    most = 0
    for n in range(count):
        most = max(most, tally.sent[TrapRead] - n)
        peer, frame = inbox.receive()
        assert TRAP.decode(frame) == TrapRead(n, 4)
        assert inbox.send(peer, TrapValue(n), TRAP_ANSWER, Tally("trap", "y"))
    asking.join(10)
    assert answers == [TrapValue(n) for n in range(count)]
    assert 1 < most <= sockets.HIGH_WATER_MARK
    assert tally.as_dict() == {
        "wire": "trap", "end": "x", "sent": {"TrapRead": count}, "received": {"TrapValue": count}
    }  # fmt: skip


def test_one_malformed_answer_takes_no_other_with_it(
    context: zmq.Context[Any], listener: Listener, channel_to: Connect
) -> None:
    inbox, errors = _inbox(context, listener), []
    channel = channel_to("peer", TRAP, TRAP_ANSWER, Tally("trap", "x"))

    def ask() -> None:
        try:
            channel.calls([TrapRead(n, 4) for n in range(3)])
        except MalformedMessage as error:
            errors.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    for n in range(3):
        peer, _ = inbox.receive()
        inbox.socket.send_multipart([peer, b"nonsense" if n == 1 else TRAP_ANSWER.encode(TrapValue(n))])
    asking.join(10)
    assert len(errors) == 1
    channel.post(TrapRead(3, 4))
    inbox.send(inbox.receive()[0], TrapValue(3), TRAP_ANSWER, Tally("trap", "y"))
    assert channel.receive() == TrapValue(3), "none is left over"


def test_a_message_of_another_wire_cannot_be_sent(channel_to: Connect) -> None:
    channel = channel_to("peer", TRAP, TRAP_ANSWER, Tally("trap", "x"))
    with pytest.raises(KeyError):
        channel.post(HotReset(0))


def test_stamps_follow_the_order_of_a_wire_and_stop_when_told(
    context: zmq.Context[Any], listener: Listener, channel_to: Connect
) -> None:
    inbox = _inbox(context, listener)
    tally, kinds = Tally("trap", "x"), []
    channel = channel_to("peer", TRAP, TRAP_ANSWER, tally)
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
