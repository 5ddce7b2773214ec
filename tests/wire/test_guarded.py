"""The launcher's channel to a device: an inbox understands it, and who owns the inbox cannot hold it up."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from viommu_actors.wire import guarded
from viommu_actors.wire.codec import MAX_FRAME, Defect, MalformedMessage
from viommu_actors.wire.guarded import GuardedChannel
from viommu_actors.wire.messages import CONTROL, CONTROL_ANSWER, Command, Reply
from viommu_actors.wire.sockets import Inbox, Listener, PeerGone, make_context
from viommu_actors.wire.tally import Tally, disagreements


class Ends:
    """A listener, the channel to it, and the end of the process that would own it."""

    def __init__(self) -> None:
        self.listener = Listener.create()
        self.ended, self._process = os.pipe()
        self.tally = Tally("control:nic0", "launcher")
        self.channel = GuardedChannel(
            "launcher", self.listener.address, CONTROL, CONTROL_ANSWER, self.tally, self.ended
        )
        self._context: zmq.Context[Any] = make_context()
        self._inboxes: list[Inbox] = []

    def inbox(self) -> Inbox:
        made = Inbox(self._context, Listener(os.dup(self.listener.fd), self.listener.address))
        self._inboxes.append(made)
        return made

    def end_process(self) -> None:
        os.write(self._process, b"x")

    def close(self) -> None:
        self.channel.close()
        self._context.destroy(linger=0)
        for fd in (self.listener.fd, self.ended, self._process):
            os.close(fd)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def test_an_inbox_knows_it_by_name_and_answers(ends: Ends) -> None:
    inbox, far = ends.inbox(), Tally("control:nic0", "nic0")
    command = Command(1, "attack", {"steps": (bytes(MAX_FRAME // 2),)})
    sending = threading.Thread(target=ends.channel.post, args=(command,))
    sending.start()
    peer, frame = inbox.receive()
    sending.join(10)
    assert (peer, CONTROL.decode(frame)) == (b"launcher", command)
    far.received[Command] += 1
    assert inbox.send(peer, Reply(1, "", bytes(MAX_FRAME // 2)), CONTROL_ANSWER, far)
    while True:
        try:
            assert ends.channel.receive() == Reply(1, "", bytes(MAX_FRAME // 2))
            break
        except zmq.Again:
            select.select([ends.channel.socket], [], [], 5)
    assert disagreements([ends.tally.as_dict(), far.as_dict()]) == []


def test_to_a_process_that_has_ended_nothing_is_posted(ends: Ends) -> None:
    ends.end_process()
    ends.channel.post(Command(1, "ping", None))
    assert not ends.tally.as_dict()["sent"]


def test_who_never_shakes_hands_is_not_waited_for_without_end(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "_PATIENCE", 0.05)
    with pytest.raises(PeerGone):
        ends.channel.post(Command(1, "ping", None))


def test_several_frames_are_malformed_and_a_message_without_an_end_is_the_end(ends: Ends) -> None:
    inbox = ends.inbox()
    ends.channel.post(Command(1, "ping", None))
    peer, _ = inbox.receive()
    inbox.socket.send_multipart([peer, b"a", b"b"])
    inbox.socket.send_multipart([peer, *[b""] * 5000])
    seen: list[Defect] = []
    while ends.channel.lost is None:
        try:
            ends.channel.receive()
        except MalformedMessage as error:
            seen.append(error.defect)
        except zmq.Again:
            if ends.channel.lost is None:
                select.select([ends.channel.socket], [], [], 5)
    # Each further frame is told of, so that whoever drains the channel is never held by it; a message counts once.
    assert set(seen) == {Defect.FRAMES} and len(seen) > 2
    assert ends.tally.malformed == 2
