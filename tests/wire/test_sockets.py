"""Sockets of the wires: inherited listeners, foreign users refused, single frames, back-pressure."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from viommu_actors.spec.tlp import HotReset
from viommu_actors.wire import sockets
from viommu_actors.wire.codec import MalformedMessage
from viommu_actors.wire.messages import INJECT, TRAP, TRAP_ANSWER, Inject, TrapDone, TrapRead, TrapValue, TrapWrite
from viommu_actors.wire.sockets import Channel, Inbox, Listener, PeerGone
from viommu_actors.wire.tally import Tally, disagreements


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


def _inbox(context: zmq.Context[Any], listener: Listener) -> Inbox:
    """An inbox on a copy of the descriptor, which ZeroMQ closes with the socket."""
    return Inbox(context, Listener(os.dup(listener.fd), listener.address))


def test_call_and_answer_are_counted_at_both_ends(context: zmq.Context[Any], listener: Listener) -> None:
    inbox = _inbox(context, listener)
    near, far = Tally("trap", "guest"), Tally("trap", "hypervisor")
    channel = Channel(context, "guest", listener.address, TRAP, TRAP_ANSWER, near)
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


def test_a_listener_made_before_its_actor_keeps_what_is_sent(context: zmq.Context[Any], listener: Listener) -> None:
    channel = Channel(context, "early", listener.address, TRAP, TRAP_ANSWER, Tally("trap", "x"))
    channel.post(TrapRead(0, 4))
    assert _inbox(context, listener).receive()[0] == b"early"


def test_another_user_is_refused(
    context: zmq.Context[Any], listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    inbox = _inbox(context, listener)
    Channel(context, "stranger", listener.address, TRAP, TRAP_ANSWER, Tally("trap", "x")).post(TrapRead(0, 4))
    assert not inbox.socket.poll(300)


def test_a_name_cannot_be_taken_over(listener: Listener) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as thief, pytest.raises(OSError):
        thief.bind("\0" + listener.address.removeprefix("ipc://@"))


def test_a_second_frame_is_dropped_whole(context: zmq.Context[Any], listener: Listener) -> None:
    inbox = _inbox(context, listener)
    channel = Channel(context, "peer", listener.address, TRAP, TRAP_ANSWER, Tally("trap", "x"))
    channel.socket.send_multipart([TRAP.encode(TrapRead(1, 4))] * 50)
    channel.post(TrapRead(2, 4))
    assert TRAP.decode(inbox.receive()[1]) == TrapRead(2, 4)


def test_an_answer_of_two_frames_is_malformed(context: zmq.Context[Any], listener: Listener) -> None:
    inbox = _inbox(context, listener)
    channel = Channel(context, "peer", listener.address, TRAP, TRAP_ANSWER, Tally("trap", "x"))
    channel.post(TrapRead(1, 4))
    peer, _ = inbox.receive()
    inbox.socket.send_multipart([peer, TRAP_ANSWER.encode(TrapValue(1)), b"more"])
    with pytest.raises(MalformedMessage):
        channel.receive()
    assert channel.tally.malformed == 1


def test_an_oversized_message_never_arrives(context: zmq.Context[Any], listener: Listener) -> None:
    inbox = _inbox(context, listener)
    channel = Channel(context, "peer", listener.address, TRAP, TRAP_ANSWER, Tally("trap", "x"))
    channel.socket.send(bytes(2 << 20))
    assert not inbox.socket.poll(300)


def test_a_post_to_nobody_never_blocks(context: zmq.Context[Any], listener: Listener) -> None:
    channel = Channel(context, "host", listener.address, INJECT, INJECT, Tally("inject", "host"))
    sent = sum(channel.offer(Inject(0x30)) for _ in range(10_000))
    assert 0 < sent < 10_000
    assert channel.tally.sent[Inject] == sent


def test_an_answer_that_does_not_come_is_an_error(context: zmq.Context[Any], listener: Listener) -> None:
    channel = Channel(context, "peer", listener.address, TRAP, TRAP_ANSWER, Tally("trap", "x"))
    channel.socket.setsockopt(zmq.RCVTIMEO, 50)
    with pytest.raises(PeerGone):
        channel.call(TrapRead(0, 4))


def test_sending_to_a_peer_that_is_gone_says_so(context: zmq.Context[Any], listener: Listener) -> None:
    tally = Tally("trap", "x")
    assert not _inbox(context, listener).send(b"nobody", TrapDone(False), TRAP_ANSWER, tally)
    assert not tally.as_dict()["sent"]


def test_a_message_of_another_wire_cannot_be_sent(context: zmq.Context[Any], listener: Listener) -> None:
    channel = Channel(context, "peer", listener.address, TRAP, TRAP_ANSWER, Tally("trap", "x"))
    with pytest.raises(KeyError):
        channel.post(HotReset(0))


def test_stamps_follow_the_order_of_a_wire_and_stop_when_told(context: zmq.Context[Any], listener: Listener) -> None:
    inbox = _inbox(context, listener)
    tally, kinds = Tally("trap", "x"), []
    channel = Channel(context, "peer", listener.address, TRAP, TRAP_ANSWER, tally)
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


def test_what_could_not_be_sent_leaves_no_stamp(context: zmq.Context[Any], listener: Listener) -> None:
    tally = Tally("inject", "host")
    channel = Channel(context, "host", listener.address, INJECT, INJECT, tally)
    tally.trace([])
    sent = sum(channel.offer(Inject(0x30)) for _ in range(1000))
    taken = tally.take_stamps(1000)
    assert taken is not None and len(array("q", taken["sent"])) == 2 * sent == 2 * tally.sent[Inject]
