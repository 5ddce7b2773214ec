"""The end of a link that listens, towards the peer that connects, of our own and of libzmq."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import zmq

from viommu_actors.wire import libzmq, link_end
from viommu_actors.wire.codec import Defect, MalformedMessage
from viommu_actors.wire.link_end import LinkEnd
from viommu_actors.wire.sockets import Listener
from viommu_actors.wire.zmtp import QUEUE, PeerLost, ZmtpPeer, framed, framed_with_more

LIMIT = 8192


@pytest.fixture
def end(listener: Listener, poller: select.epoll) -> Iterator[LinkEnd]:
    with closing(LinkEnd(Listener(os.dup(listener.fd), listener.address), poller)) as made:
        yield made


@pytest.fixture
def peer(listener: Listener) -> Iterator[ZmtpPeer]:
    with closing(ZmtpPeer.to(listener.address, LIMIT)) as made:
        yield made


def shake(end: LinkEnd, peer: ZmtpPeer) -> None:
    with pytest.raises(BlockingIOError):
        end.receive()
    while not peer.shake_hands():
        pass
    with pytest.raises(BlockingIOError):
        end.receive()


def take(peer: ZmtpPeer) -> bytes | Defect:
    """The next message, or the defect of what is none."""
    while True:
        try:
            if (frame := peer.receive()) is not None:
                return frame
        except BlockingIOError:
            assert select.select([peer], [], [], 5)[0], "nothing came"
        except MalformedMessage as error:
            return error.defect


def test_frames_go_both_ways_and_what_is_gathered_goes_with_the_flush(
    end: LinkEnd, peer: ZmtpPeer, poller: select.epoll
) -> None:
    shake(end, peer)
    assert not poller.poll(0)
    assert peer.send(b"down") and peer.send(b"again")
    assert poller.poll(5) == [(end.fd, select.EPOLLIN)]
    assert end.receive() == b"down" and end.behind
    assert end.receive() == b"again" and not end.behind
    assert end.send(b"up")
    end.gather()
    assert end.send(b"a") and end.send(b"b")
    assert take(peer) == b"up"
    with pytest.raises(BlockingIOError):
        peer.receive()
    end.flush()
    assert [take(peer), take(peer)] == [b"a", b"b"]


def test_libzmq_connects_too(end: LinkEnd, listener: Listener) -> None:
    with libzmq.make_context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(listener.address)
        dealer.send(b"down")
        frame = None
        while frame is None:
            try:
                frame = end.receive()
            except BlockingIOError:
                select.select([end.fd], [], [], 0.1)
        assert frame == b"down"
        assert end.send(b"up") and dealer.recv() == b"up"


def test_who_sends_waits_for_who_reads(end: LinkEnd, peer: ZmtpPeer) -> None:
    shake(end, peer)
    count = 3000

    def send() -> None:
        end.gather()
        sent = [end.send(number.to_bytes(1024, "big")) for number in range(count)]
        end.flush()
        assert all(sent)

    sending = threading.Thread(target=send)
    sending.start()
    assert [int.from_bytes(frame, "big") for frame in map(take, [peer] * count) if type(frame) is bytes] == list(
        range(count)
    )
    sending.join(10)
    assert not sending.is_alive()


def test_a_link_whose_other_end_reads_nothing_is_down_until_it_does(
    end: LinkEnd, peer: ZmtpPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_end, "_DOWN", 0.02)
    shake(end, peer)
    sent = 0
    while end.send(bytes(4096)):
        sent += 1
        assert sent < 10_000
    assert not end.send(b"lost") and not end.write(framed(b"lost"))
    taken = 0
    while taken < sent:
        assert take(peer) == bytes(4096)
        taken += 1
        end.flush()
    assert end.send(b"up again")
    assert take(peer) == b"up again"


def test_a_link_that_is_down_holds_nobody_up_and_is_polled_for_room(
    end: LinkEnd, peer: ZmtpPeer, poller: select.epoll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its device does other things meanwhile; what waited goes out though nothing else happens to it."""
    shake(end, peer)
    monkeypatch.setattr(link_end, "_DOWN", 0.02)
    sent = 0
    while end.send(bytes(4096)):
        sent += 1
        assert sent < 10_000
    monkeypatch.setattr(link_end, "_DOWN", 3600.0)
    for _ in range(3):
        end.gather()
        assert not end.send(b"lost") and not end.write(framed(b"lost"))
        end.flush()
    assert poller.poll(0) == []
    for _ in range(sent - 1):
        assert take(peer) == bytes(4096)
    assert poller.poll(5) == [(end.fd, select.EPOLLOUT)]
    end.flush()
    assert poller.poll(0) == []
    assert take(peer) == bytes(4096)
    assert end.send(b"up again") and take(peer) == b"up again"


def test_the_one_behind_a_link_that_was_down_finds_it_up(
    end: LinkEnd, peer: ZmtpPeer, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    shake(end, peer)
    with monkeypatch.context() as patched:
        patched.setattr(link_end, "_DOWN", 0.02)
        while end.send(bytes(4096)):
            pass
    peer.close()
    with pytest.raises(BlockingIOError):
        end.receive()
    with closing(ZmtpPeer.to(listener.address, LIMIT)) as second:
        shake(end, second)
        assert end.send(b"welcome") and take(second) == b"welcome"


def test_bytes_beneath_all_messages_come_as_they_are_and_in_order(end: LinkEnd, peer: ZmtpPeer) -> None:
    shake(end, peer)
    end.gather()
    assert end.send(b"before")
    assert end.write(framed_with_more(b"first") + framed(b"second"))
    assert end.write(b"\x04\x05\x04PING" + framed(b"good"))
    assert [take(peer) for _ in range(4)] == [b"before", Defect.FRAMES, Defect.COMMAND, b"good"]


def test_the_next_one_is_let_in_when_the_first_has_gone(end: LinkEnd, peer: ZmtpPeer, listener: Listener) -> None:
    assert not end.send(b"to nobody") and not end.write(b"to nobody")
    shake(end, peer)
    with closing(ZmtpPeer.to(listener.address, LIMIT)) as second:
        with pytest.raises(BlockingIOError):
            end.receive()
        assert not second.shake_hands()
        peer.send(b"last")
        peer.close()
        assert end.receive() == b"last"
        with pytest.raises(BlockingIOError):
            end.receive()
        assert not end.send(b"to nobody")
        shake(end, second)
        assert end.send(b"welcome") and take(second) == b"welcome"


def test_another_user_is_refused_and_does_not_hold_the_link(
    end: LinkEnd, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, closing(ZmtpPeer.to(listener.address, LIMIT)) as stranger:
        patched.setattr(os, "getuid", lambda: 12345)
        with pytest.raises(BlockingIOError):
            end.receive()
        with pytest.raises(PeerLost):
            stranger.receive()
    with closing(ZmtpPeer.to(listener.address, LIMIT)) as friend:
        shake(end, friend)


def test_a_link_that_is_crowded_keeps_no_more_than_so_many_frames(
    end: LinkEnd, peer: ZmtpPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_end, "_DOWN", 0.0)
    shake(end, peer)
    end.gather()
    kept = [end.send(bytes(4096)) for _ in range(1000)]
    assert not kept[-1]
    assert end._peer is not None and len(end._peer._queue) <= QUEUE
