"""The inbox, towards peers by libzmq, of our own, and of whoever writes to the socket itself."""

from __future__ import annotations

import os
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import zmq

from viommu_actors.wire import libzmq
from viommu_actors.wire.codec import MAX_FRAME
from viommu_actors.wire.inbox import NO_MESSAGE, Inbox
from viommu_actors.wire.messages import CONTROL_ANSWER, TRAP, TRAP_ANSWER, Reply, TrapRead, TrapValue
from viommu_actors.wire.sockets import Channel, Listener
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.zmtp import QUEUE

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


@pytest.fixture
def inbox(listener: Listener, poller: select.epoll) -> Iterator[Inbox]:
    with closing(Inbox(Listener(os.dup(listener.fd), listener.address), poller)) as made:
        yield made


Connect = Callable[[str], zmq.Socket[bytes]]


@pytest.fixture
def dealer(listener: Listener) -> Iterator[Connect]:
    """Makes libzmq's peers, by name; what they send waits until the inbox lets them in."""
    context, made = libzmq.make_context(), []

    def make(name: str) -> zmq.Socket[bytes]:
        made.append(context.socket(zmq.DEALER))
        made[-1].setsockopt(zmq.ROUTING_ID, name.encode())
        made[-1].connect(listener.address)
        return made[-1]

    yield make
    for peer in made:
        peer.close(0)
    context.term()


@pytest.fixture
def raw(listener: Listener) -> Iterator[Callable[[], socket.socket]]:
    """Makes connections that say nothing by themselves."""
    made = []

    def make() -> socket.socket:
        made.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        made[-1].connect("\0" + listener.address.removeprefix("ipc://@"))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ready(name: bytes) -> bytes:
    body = b"\x05READY\x08Identity" + len(name).to_bytes(4, "big") + name
    return bytes((4, len(body))) + body


def closed_by(inbox: Inbox, connection: socket.socket) -> bool:
    """Whether the inbox lets go of a connection."""
    connection.setblocking(False)
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        assert inbox.receive_within(0.01) is None
        try:
            if not connection.recv(4096):
                return True
        except BlockingIOError:
            continue
        except ConnectionResetError:
            return True
    return False


def test_libzmq_asks_and_is_answered(inbox: Inbox, dealer: Connect) -> None:
    tally, peer = Tally("trap", "hypervisor"), dealer("guest")
    bodies = [b"", b"x", bytes(255), bytes(256), os.urandom(MAX_FRAME)]
    for body in bodies:
        peer.send(body)
    assert [inbox.receive() for _ in bodies] == [(b"guest", body) for body in bodies]
    for number in range(3):
        assert inbox.send(b"guest", TrapValue(number), TRAP_ANSWER, tally)
    assert [TRAP_ANSWER.decode(peer.recv()) for _ in range(3)] == [TrapValue(number) for number in range(3)]
    assert tally.sent[TrapValue] == 3


def test_each_has_its_turn_though_one_has_much_to_say(inbox: Inbox, dealer: Connect) -> None:
    loud, quiet = dealer("loud"), dealer("quiet")
    for number in range(50):
        loud.send(bytes((number,)))
    first = [inbox.receive()]
    quiet.send(b"word")
    time.sleep(0.1)  # for libzmq's thread
    first += [inbox.receive() for _ in range(50)]
    assert sorted(first) == sorted([*((b"loud", bytes((number,))) for number in range(50)), (b"quiet", b"word")])
    assert [frame for peer, frame in first if peer == b"loud"] == [bytes((number,)) for number in range(50)]


def test_frames_that_are_no_message_of_any_wire_are_handed_out_once_as_none(inbox: Inbox, dealer: Connect) -> None:
    peer = dealer("peer")
    peer.send_multipart([TRAP.encode(TrapRead(1, 4))] * 50)
    peer.send(bytes(MAX_FRAME + 1))
    peer.send(TRAP.encode(TrapRead(2, 4)))
    expected = [NO_MESSAGE, NO_MESSAGE, TRAP.encode(TrapRead(2, 4))]
    assert [inbox.receive()[1] for _ in expected] == expected


def test_an_answer_that_finds_no_room_waits_and_does_not_hold_the_inbox(
    inbox: Inbox, dealer: Connect, listener: Listener
) -> None:
    """A reply of a megabyte is larger than what a socket takes; others are served meanwhile."""
    large, tally = Reply(1, "", bytes(MAX_FRAME // 2)), Tally("control", "x")
    slow, other = dealer("slow"), dealer("other")
    slow.send(b"ask")
    assert inbox.receive() == (b"slow", b"ask")
    sent = 0
    while inbox.send(b"slow", large, CONTROL_ANSWER, tally):
        sent += 1
        assert sent < 1000
    assert sent >= QUEUE and tally.sent[Reply] == sent
    other.send(b"ask")
    assert inbox.receive() == (b"other", b"ask")
    taken = 0
    while taken < sent:
        assert inbox.receive_within(0.0) is None
        while slow.poll(0):
            assert CONTROL_ANSWER.decode(slow.recv()) == large
            taken += 1
    assert inbox.send(b"slow", Reply(2, "", None), CONTROL_ANSWER, tally), "there is room again"


def test_to_who_is_gone_nothing_is_sent_and_his_last_words_are_heard(inbox: Inbox, listener: Listener) -> None:
    tally = Tally("trap", "x")
    assert not inbox.send(b"peer", TrapValue(0), TRAP_ANSWER, tally)
    for _ in range(2):  # the name is free again
        channel = Channel("peer", listener.address, TRAP, TRAP_ANSWER, Tally("trap", "peer"))
        assert inbox.receive_within(0.0) is None, "it shakes hands"
        for number in range(3):
            channel.post(TrapRead(number, 4))
        channel.close()
        assert [TRAP.decode(inbox.receive()[1]) for _ in range(3)] == [TrapRead(number, 4) for number in range(3)]
        assert inbox.receive_within(0.1) is None
        assert not inbox.send(b"peer", TrapValue(0), TRAP_ANSWER, tally)
    assert not tally.as_dict()["sent"]


def test_a_name_that_is_taken_is_refused_and_none_at_all_too(
    inbox: Inbox, dealer: Connect, raw: Callable[[], socket.socket]
) -> None:
    dealer("peer").send(b"first")
    assert inbox.receive() == (b"peer", b"first")
    for name in (b"peer", b""):
        thief = raw()
        thief.sendall(GREETING + ready(name) + b"\0\x05steal")
        assert closed_by(inbox, thief)


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n".ljust(64),
        GREETING[:10] + b"\x01" + GREETING[11:],
        GREETING + b"\x04\x06\x05ERROR",
        GREETING + b"\x04\x10\x05READY\x08Identity\0",
        GREETING + b"\x04\x13\x05READY\x08Identity\xff\xff\xff\xff",
    ],
    ids=["http", "ZMTP 1", "error", "cut short", "longer than it is"],
)
def test_who_speaks_no_zmtp_is_let_go(inbox: Inbox, raw: Callable[[], socket.socket], words: bytes) -> None:
    stranger = raw()
    stranger.sendall(words)
    assert closed_by(inbox, stranger)


def test_connections_that_say_nothing_are_not_kept_without_end(
    inbox: Inbox, dealer: Connect, raw: Callable[[], socket.socket]
) -> None:
    silent = []
    for _ in range(100):
        silent.append(raw())
        assert inbox.receive_within(0.0) is None
    dealer("peer").send(b"word")
    assert inbox.receive() == (b"peer", b"word")
    assert sum(closed_by(inbox, each) for each in silent[:10]) == 10


def test_one_who_comes_while_no_more_files_can_be_open_is_let_in_later_and_holds_up_nobody(
    inbox: Inbox, dealer: Connect, listener: Listener
) -> None:
    peer = dealer("peer")
    peer.send(b"word")
    assert inbox.receive() == (b"peer", b"word")
    late = Channel("late", listener.address, TRAP, TRAP_ANSWER, Tally("trap", "late"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(listener.fd)
    os.close(free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        for _ in range(3):
            peer.send(b"word")
            assert inbox.receive() == (b"peer", b"word")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert inbox.receive_within(0.0) is None, "it shakes hands"
    with closing(late):
        late.post(TrapRead(1, 4))
        assert inbox.receive() == (b"late", TRAP.encode(TrapRead(1, 4)))


def test_whoever_connects_before_the_inbox_is_there_waits_for_it(listener: Listener, poller: select.epoll) -> None:
    """As the actors of a large topology do while its host starts."""
    channels = [
        Channel(f"peer{number}", listener.address, TRAP, TRAP_ANSWER, Tally("trap", "x")) for number in range(200)
    ]
    with closing(Inbox(Listener(os.dup(listener.fd), listener.address), poller)) as inbox:
        while len(inbox._named) < len(channels):
            assert inbox.receive_within(0.0) is None
        for number, channel in enumerate(channels):
            channel.post(TrapRead(number, 4))
        heard = {inbox.receive() for _ in channels}
    assert heard == {(f"peer{number}".encode(), TRAP.encode(TrapRead(number, 4))) for number in range(200)}
    for channel in channels:
        channel.close()


def test_a_handshake_byte_by_byte_holds_up_nobody(
    inbox: Inbox, dealer: Connect, raw: Callable[[], socket.socket]
) -> None:
    peer, slow = dealer("peer"), raw()
    for byte in GREETING + ready(b"slow") + b"\0\x04":
        slow.sendall(bytes((byte,)))
        peer.send(b"word")
        assert inbox.receive() == (b"peer", b"word")
    slow.sendall(b"late")
    assert inbox.receive() == (b"slow", b"late")


def test_a_number_of_a_descriptor_that_is_anothers_now_is_not_taken_for_the_one_before(
    inbox: Inbox, poller: select.epoll, raw: Callable[[], socket.socket]
) -> None:
    """One poll may tell of one that hangs up and of one that comes, and what it told of may be gone meanwhile."""
    first = raw()
    first.sendall(GREETING + ready(b"first"))
    while b"first" not in inbox._named:
        assert inbox.receive_within(0.0) is None
    [number] = inbox._peers
    first.close()
    assert inbox.receive_within(0.1) is None and not inbox._peers
    inbox.note(number, select.EPOLLIN | select.EPOLLHUP)
    assert inbox.take() is None
    second = raw()
    second.sendall(GREETING + ready(b"first") + b"\0\x05again")
    inbox.note(number, select.EPOLLIN)  # whoever called: he is let in
    assert list(inbox._peers) == [number]
    inbox.note(number, select.EPOLLOUT | select.EPOLLHUP)
    assert inbox.receive() == (b"first", b"again")


def test_who_hangs_up_while_answers_wait_for_him_is_forgotten_with_them(
    inbox: Inbox, poller: select.epoll, raw: Callable[[], socket.socket]
) -> None:
    peer, tally = raw(), Tally("control", "x")
    peer.sendall(GREETING + ready(b"peer"))
    while b"peer" not in inbox._named:
        assert inbox.receive_within(0.0) is None
    while inbox.send(b"peer", Reply(1, "", bytes(MAX_FRAME // 2)), CONTROL_ANSWER, tally):
        pass
    peer.close()
    assert inbox.receive_within(0.1) is None
    assert not (inbox._peers or inbox._named or inbox._crowded or inbox.behind)
    assert not inbox.send(b"peer", Reply(1, "", None), CONTROL_ANSWER, tally)
    assert poller.poll(0) == []


def test_who_polls_for_more_than_an_inbox_notes_what_belongs_to_it(
    inbox: Inbox, poller: select.epoll, dealer: Connect
) -> None:
    near, far = socket.socketpair()
    with near, far:
        poller.register(near.fileno(), select.EPOLLIN)
        dealer("peer").send(b"word")
        far.send(b"x")
        heard, message = False, None
        while message is None or not heard:
            for fd, events in poller.poll(5):
                if fd == near.fileno():
                    heard = near.recv(1) == b"x"
                else:
                    inbox.note(fd, events)
            message = message or inbox.take()
        assert message == (b"peer", b"word") and not inbox.behind


def test_it_waits_no_longer_than_it_is_told(inbox: Inbox) -> None:
    assert inbox.receive_within(0.0) is None
    assert inbox.receive_within(0.02) is None
