"""The channel of who polls: an inbox understands it, and who owns the inbox cannot hold it up."""

from __future__ import annotations

import os
import select
import time
from array import array
from collections.abc import Iterator

import pytest

from viommu_actors.wire.codec import MAX_FRAME, Defect, MalformedMessage
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.libzmq import bind_router, make_context
from viommu_actors.wire.messages import CONTROL, CONTROL_ANSWER, Command, Reply
from viommu_actors.wire.polled import PolledChannel
from viommu_actors.wire.sockets import Listener
from viommu_actors.wire.tally import Tally, disagreements


class Ends:
    """A listener, and the channel to it."""

    def __init__(self) -> None:
        self.listener = Listener.create()
        self.tally = Tally("control:nic0", "launcher")
        self.channel = PolledChannel("launcher", self.listener.address, CONTROL, CONTROL_ANSWER, self.tally)
        self._poller = select.epoll()
        self._inboxes: list[Inbox] = []

    def inbox(self) -> Inbox:
        made = Inbox(self.again(), self._poller)
        self._inboxes.append(made)
        return made

    def again(self) -> Listener:
        """A copy of the descriptor, which whoever listens closes with the socket."""
        return Listener(os.dup(self.listener.fd), self.listener.address)

    def hang_up(self) -> None:
        """Of all inboxes."""
        while self._inboxes:
            self._inboxes.pop().close()

    def received(self, inbox: Inbox) -> tuple[bytes, bytes]:
        """The next message at the inbox, while the channel is flushed as who polls it does."""
        deadline = time.monotonic() + 10
        while (message := inbox.receive_within(0.0)) is None:
            assert time.monotonic() < deadline
            select.select([self.channel.socket], [self.channel.socket] if self.channel.wants_room else [], [], 0.01)
            self.channel.flush()
        return message

    def close(self) -> None:
        self.channel.close()
        self.hang_up()
        self._poller.close()
        os.close(self.listener.fd)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def test_an_inbox_knows_it_by_name_and_answers(ends: Ends) -> None:
    inbox, far = ends.inbox(), Tally("control:nic0", "nic0")
    command = Command(1, "attack", {"steps": (bytes(MAX_FRAME // 2),)})
    ends.channel.post(command)
    peer, frame = ends.received(inbox)
    assert (peer, CONTROL.decode(frame)) == (b"launcher", command)
    far.received[Command] += 1
    assert inbox.send(peer, Reply(1, "", bytes(MAX_FRAME // 2)), CONTROL_ANSWER, far)
    while True:
        try:
            assert ends.channel.receive() == Reply(1, "", bytes(MAX_FRAME // 2))
            break
        except BlockingIOError:
            assert inbox.receive_within(0.0) is None, "it sends what found no room"
            select.select([ends.channel.socket], [], [], 0.01)
    assert disagreements([ends.tally.as_dict(), far.as_dict()]) == []


def test_what_nobody_takes_waits_and_holds_nobody_up(ends: Ends) -> None:
    """Before the peer shakes hands, and while it reads nothing; then it gets all, in order."""
    commands = [Command(number, "attack", {"steps": (bytes(MAX_FRAME // 2),)}) for number in range(4)]
    for command in commands[:2]:
        ends.channel.post(command)
    assert not ends.tally.as_dict()["sent"] and not ends.channel.wants_room
    inbox = ends.inbox()
    assert CONTROL.decode(ends.received(inbox)[1]) == commands[0]
    for command in commands[2:]:
        ends.channel.post(command)
    assert [CONTROL.decode(ends.received(inbox)[1]) for _ in range(3)] == commands[1:]
    assert ends.tally.as_dict()["sent"] == {"Command": 4}


def test_several_frames_are_malformed_and_a_message_without_an_end_is_the_end(ends: Ends) -> None:
    with make_context() as context, bind_router(context, ends.again()) as router:
        ends.channel.post(Command(1, "ping", None))
        while not router.poll(10):
            ends.channel.flush()
        peer, _ = router.recv_multipart()
        router.send_multipart([peer, b"a", b"b"])
        router.send_multipart([peer, *[b""] * 5000])
        seen: list[Defect] = []
        while ends.channel.lost is None:
            try:
                ends.channel.receive()
            except MalformedMessage as error:
                seen.append(error.defect)
            except BlockingIOError:
                if ends.channel.lost is None:
                    select.select([ends.channel.socket], [], [], 5)
    # Each further frame is told of, so that whoever drains the channel is never held by it; a message counts once.
    assert set(seen) == {Defect.FRAMES} and len(seen) > 2
    assert ends.tally.malformed == 2


def test_what_is_offered_to_who_takes_nothing_is_refused_and_leaves_neither_count_nor_stamp(ends: Ends) -> None:
    assert not ends.channel.offer(Command(0, "ping", None)), "nobody is there"
    inbox = ends.inbox()
    ends.channel.post(Command(0, "ping", None))
    ends.received(inbox)
    ends.tally.trace([])
    sent = sum(ends.channel.offer(Command(0, "ping", None)) for _ in range(10_000))
    assert 0 < sent < 10_000
    taken = ends.tally.take_stamps(10_000)
    assert taken is not None and len(array("q", taken["sent"])) == 2 * sent == 2 * (ends.tally.sent[Command] - 1)


def test_who_sends_to_one_that_has_closed_hears_of_it(ends: Ends) -> None:
    inbox = ends.inbox()
    ends.channel.post(Command(0, "ping", None))
    ends.received(inbox)
    ends.hang_up()
    deadline = time.monotonic() + 10
    while ends.channel.lost is None:
        ends.channel.offer(Command(1, "ping", None))
        ends.channel.flush()
        assert time.monotonic() < deadline
    assert not ends.channel.wants_room and not ends.channel.offer(Command(1, "ping", None))
