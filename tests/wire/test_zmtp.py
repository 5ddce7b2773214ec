"""The peer that stands towards a device: libzmq at the other end understands it, and nobody there can make it grow."""

from __future__ import annotations

import os
import select
import socket
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from viommu_actors.wire.codec import Defect, MalformedMessage
from viommu_actors.wire.libzmq import bind_link, make_context
from viommu_actors.wire.sockets import Listener
from viommu_actors.wire.zmtp import QUEUE, PeerLost, ZmtpPeer

LIMIT = 8192
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


@pytest.fixture
def honest(listener: Listener) -> Iterator[zmq.Socket[bytes]]:
    """libzmq's end."""
    context = make_context()
    yield bind_link(context, Listener(os.dup(listener.fd), listener.address))
    context.destroy(linger=0)


@pytest.fixture
def peer(listener: Listener) -> Iterator[ZmtpPeer]:
    made = ZmtpPeer.to(listener.address, LIMIT)
    yield made
    made.close()


class Raw:
    """An end that writes what it likes."""

    def __init__(self, listener: Listener, shakes_hands: bool = True) -> None:
        with socket.socket(fileno=os.dup(listener.fd)) as listening:
            self.socket, _ = listening.accept()
        if shakes_hands:
            self.socket.sendall(GREETING + READY)

    def write(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))


@pytest.fixture
def raw(listener: Listener, peer: ZmtpPeer) -> Iterator[Raw]:
    made = Raw(listener)
    yield made
    made.socket.close()


def frame(body: bytes, flags: int = 0, long: bool = False) -> bytes:
    if long or len(body) > 255:
        return bytes((flags | 2,)) + len(body).to_bytes(8, "big") + body
    return bytes((flags, len(body))) + body


def take(peer: ZmtpPeer, seconds: float = 5.0) -> Any:
    """The next message, or the defect of what is none."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            message = peer.receive()
        except BlockingIOError:
            assert time.monotonic() < deadline, "nothing came"
            select.select([peer], [], [], 0.1)
            continue
        except MalformedMessage as error:
            return error.defect
        if message is not None:
            return message


def shaken(peer: ZmtpPeer) -> ZmtpPeer:
    while not peer.shake_hands():
        assert select.select([peer], [], [], 5)[0], "nobody shakes hands"
    return peer


def test_it_and_libzmq_understand_each_other(peer: ZmtpPeer, honest: zmq.Socket[bytes]) -> None:
    bodies = [b"", b"x", bytes(255), bytes(256), os.urandom(4096), os.urandom(LIMIT)]
    for body in bodies:
        honest.send(body)
        assert shaken(peer).send(body)
    assert [take(peer) for _ in bodies] == bodies
    assert [honest.recv() for _ in bodies] == bodies


def test_what_finds_no_room_waits_in_order_and_what_is_beyond_that_is_refused(
    peer: ZmtpPeer, honest: zmq.Socket[bytes]
) -> None:
    sent = 0
    shaken(peer)
    while peer.send(sent.to_bytes(4096, "big")):
        sent += 1
        assert sent < 10_000
    assert peer.waits and sent >= QUEUE
    received = []
    while len(received) < sent:
        peer.flush()
        while honest.poll(0):
            received.append(int.from_bytes(honest.recv(), "big"))
    assert received == list(range(sent))
    assert not peer.waits


def test_what_is_gathered_goes_out_in_order_and_no_later_than_it_is_flushed(
    peer: ZmtpPeer, honest: zmq.Socket[bytes]
) -> None:
    shaken(peer).gathers = True
    frames = [os.urandom(number * 40) for number in range(20)]
    for frame_ in frames:
        assert peer.send(frame_)
    assert honest.recv() == frames[0], "those of a whole write went out already"
    assert peer.waits
    peer.flush()
    assert [honest.recv() for _ in frames[1:]] == frames[1:]
    assert not peer.waits


def test_gathering_keeps_no_more_than_waiting_does(peer: ZmtpPeer, honest: zmq.Socket[bytes]) -> None:
    shaken(peer).gathers = True
    sent = 0
    while peer.send(sent.to_bytes(4096, "big")):
        sent += 1
        assert sent < 10_000
    peer.flush()
    received = []
    while len(received) < sent:
        peer.flush()
        while honest.poll(0):
            received.append(int.from_bytes(honest.recv(), "big"))
    assert received == list(range(sent))


def test_many_frames_of_libzmq_are_one_malformed_message(peer: ZmtpPeer, honest: zmq.Socket[bytes]) -> None:
    honest.send_multipart([b"a", b"b", bytes(5000), b"", b"c"])
    honest.send_multipart([bytes(LIMIT + 1), b"b"])
    honest.send(b"good")
    assert [take(peer) for _ in range(3)] == [Defect.FRAMES, Defect.FRAMES, b"good"]


def test_an_oversized_frame_is_passed_over(peer: ZmtpPeer, honest: zmq.Socket[bytes]) -> None:
    for size in (LIMIT + 1, 1 << 20):
        honest.send(bytes(size))
        honest.send(b"good")
        assert [take(peer), take(peer)] == [Defect.OVERSIZE, b"good"]


def test_who_passes_over_a_long_frame_has_his_say_after_each_read(raw: Raw, peer: ZmtpPeer) -> None:
    """However fast more of it comes: no other has to wait for its end."""
    size, taken = 1 << 20, 0
    raw.socket.setblocking(False)
    rest = memoryview(frame(bytes(size)) + frame(b"good"))
    said: list[Any] = []
    while b"good" not in said:
        with suppress(BlockingIOError):
            rest = rest[raw.socket.send(rest) :] if rest else rest
        try:
            said.append(peer.receive())
            taken += 1
        except BlockingIOError:
            continue
        except MalformedMessage as error:
            said.append(error.defect)
    assert said[0] is Defect.OVERSIZE and set(said[1:-1]) == {None}
    assert taken >= size // (1 << 16)


def test_what_was_read_and_not_taken_no_poll_tells_of(raw: Raw, peer: ZmtpPeer) -> None:
    """It is told by `behind`, which is never less than what is there, and ends with it."""
    raw.write(frame(b"1"), frame(b"2"), frame(bytes(300))[:-1])
    assert take(peer) == b"1" and peer.behind and not select.select([peer], [], [], 0)[0]
    assert take(peer) == b"2" and peer.behind
    with pytest.raises(BlockingIOError):
        peer.receive()
    assert not peer.behind
    raw.write(bytes(1), frame(b"3"))
    assert take(peer) == bytes(300) and peer.behind
    assert take(peer) == b"3" and not peer.behind


def test_commands_and_unknown_flags_are_no_messages(raw: Raw, peer: ZmtpPeer) -> None:
    raw.write(frame(b"\x04PING\0\0", 4), frame(b"", 0x80), frame(b"", 0x38, long=True), frame(b"good"))
    assert [take(peer) for _ in range(4)] == [Defect.COMMAND] * 3 + [b"good"]


def test_frames_without_an_end_are_not_kept_and_end_the_connection(raw: Raw, peer: ZmtpPeer) -> None:
    raw.socket.setblocking(False)
    endless, told = frame(bytes(LIMIT), flags=1), 0
    written = len(endless)
    tracemalloc.start()
    try:
        with pytest.raises(PeerLost):
            while True:
                with suppress(BlockingIOError):
                    written += raw.socket.send(endless[written % len(endless) :])
                try:
                    peer.receive()
                except BlockingIOError:
                    continue
                except MalformedMessage as error:
                    assert error.defect is Defect.FRAMES
                    told += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert told == 1
    assert peak < 1 << 20 < written


def test_a_frame_of_all_the_memory_there_is_ends_the_connection(raw: Raw, peer: ZmtpPeer) -> None:
    raw.write(b"\x02" + (1 << 63).to_bytes(8, "big"), bytes(100_000))
    with pytest.raises(PeerLost):
        take(peer)


def test_more_messages_than_are_asked_for_stay_and_it_says_so(raw: Raw, peer: ZmtpPeer) -> None:
    raw.write(*(frame(bytes((n,))) for n in range(100)))
    assert take(peer) == b"\0"
    assert peer.behind
    assert [take(peer) for _ in range(99)] == [bytes((n,)) for n in range(1, 100)]
    assert not peer.behind
    with pytest.raises(BlockingIOError):
        peer.receive()


@pytest.mark.parametrize(
    "words",
    [
        bytes(64),
        b"GET / HTTP/1.1\r\n".ljust(64),
        GREETING[:10] + b"\x01" + GREETING[11:],
        GREETING.replace(b"NULL\0", b"PLAIN"),
        GREETING + frame(b"\x05READY"),
        GREETING + frame(b"\x05ERROR\0", 4),
    ],
    ids=["zeros", "http", "ZMTP 1", "PLAIN", "no command", "error"],
)
def test_who_speaks_no_zmtp_is_let_go(listener: Listener, peer: ZmtpPeer, words: bytes) -> None:
    raw = Raw(listener, shakes_hands=False)
    raw.write(words)
    with pytest.raises(PeerLost):
        take(peer)
    assert not peer.up
    raw.socket.close()


def test_a_handshake_may_come_byte_by_byte(listener: Listener, peer: ZmtpPeer) -> None:
    raw = Raw(listener, shakes_hands=False)
    for byte in GREETING + READY:
        assert not peer.shake_hands()
        raw.write(bytes((byte,)))
    shaken(peer)
    raw.socket.close()


def test_to_half_an_end_nothing_is_sent(listener: Listener, peer: ZmtpPeer) -> None:
    """Nobody accepts, or he says nothing."""
    assert not peer.shake_hands() and not peer.send(b"")
    raw = Raw(listener, shakes_hands=False)
    raw.write(GREETING)
    assert not peer.shake_hands() and not peer.shake_hands() and not peer.send(b"")
    raw.socket.close()


def test_the_other_end_closes(raw: Raw, peer: ZmtpPeer) -> None:
    raw.write(frame(b"last"), b"\0")
    raw.socket.close()
    assert take(peer) == b"last"
    with pytest.raises(PeerLost):
        take(peer)
    assert not peer.send(b"late")


def test_nobody_listens() -> None:
    with pytest.raises(PeerLost):
        ZmtpPeer.to("ipc://@viommu-nobody-is-here", LIMIT)


_SIZES = st.sampled_from([0, 1, 200, 255, 256, 300, LIMIT, LIMIT + 1])
_FRAMES = st.lists(st.tuples(_SIZES, st.booleans()), min_size=1, max_size=8)


@settings(deadline=None)
@given(messages=st.lists(_FRAMES, max_size=8), cuts=st.lists(st.integers(1, 400), min_size=1))
def test_however_the_stream_is_cut_the_messages_are_the_same(
    messages: list[list[tuple[int, bool]]], cuts: list[int]
) -> None:
    listener = Listener.create()
    peer = ZmtpPeer.to(listener.address, LIMIT)
    raw = Raw(listener)
    try:
        stream, expected = b"", []
        for parts in messages:
            for number, (size, long) in enumerate(parts, start=1):
                stream += frame(bytes(size), flags=int(number < len(parts)), long=long)
            single = bytes(parts[0][0]) if parts[0][0] <= LIMIT else Defect.OVERSIZE
            expected.append(single if len(parts) == 1 else Defect.FRAMES)
        seen, cut = [], 0
        while len(seen) < len(expected):
            if stream:
                length = cuts[cut % len(cuts)] * (1 + len(stream) // 4000)
                raw.write(stream[:length])
                stream, cut = stream[length:], cut + 1
            try:
                while True:
                    message = peer.receive()
                    seen += [message] if message is not None else []
            except MalformedMessage as error:
                seen.append(error.defect)
            except BlockingIOError:
                continue
        assert seen == expected
    finally:
        raw.socket.close()
        peer.close()
        os.close(listener.fd)
