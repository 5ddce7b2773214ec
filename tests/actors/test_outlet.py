"""One-way messages to a peer that takes none for a while: they coalesce, and arrive once it does."""

from __future__ import annotations

import os
import select
import threading
import time
from itertools import cycle

from viommu_actors.actors.outlet import Outlet, poll_with
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.messages import INJECT, Inject
from viommu_actors.wire.sockets import Listener
from viommu_actors.wire.tally import Tally


def test_what_waits_is_sent_as_soon_as_there_is_room_though_nothing_else_happens() -> None:
    listener = Listener.create()
    poller, others = select.epoll(), select.epoll()
    inbox = Inbox(Listener(os.dup(listener.fd), listener.address), poller)
    outlet = Outlet("host", listener.address, INJECT, Tally("inject", "host"))
    try:
        for vector in cycle(range(0x30, 0xF0)):
            outlet.post(Inject(vector))
            if outlet.waits and poll_with(others, 0.1, [outlet]) == [] and outlet.waits:
                break
        last = Inject(0xFE)
        outlet.post(last)
        outlet.post(last)
        taken: list[bytes] = []

        def take() -> None:
            while not taken or INJECT.decode(taken[-1]) != last:
                taken.append(inbox.receive()[1])

        guest = threading.Thread(target=take, daemon=True)
        guest.start()
        while outlet.waits:
            assert poll_with(others, 10, [outlet]) == []
        guest.join(10)
        assert not guest.is_alive()
        assert taken.count(INJECT.encode(last)) == 1
    finally:
        outlet.close()
        inbox.close()
        poller.close()
        others.close()
        os.close(listener.fd)


def test_it_waits_for_a_receiver_that_is_not_up_yet_and_not_for_one_that_has_died() -> None:
    listener = Listener.create()
    poller, others = select.epoll(), select.epoll()
    tally = Tally("inject", "host")
    early = Outlet("host", listener.address, INJECT, tally)
    try:
        early.post(Inject(0x30))
        assert poll_with(others, 0.05, [early]) == [] and early.waits
        inbox = Inbox(Listener(os.dup(listener.fd), listener.address), poller)
        assert inbox.receive_within(0.0) is None, "it shakes hands"
        while early.waits:
            assert poll_with(others, 10, [early]) == []
        assert inbox.receive()[1] == INJECT.encode(Inject(0x30))
        inbox.close()
        deadline, sent = time.monotonic() + 10, 0
        while early.waits or sent != tally.sent[Inject]:
            sent = tally.sent[Inject]
            early.post(Inject(0x30))
            assert time.monotonic() < deadline
    finally:
        early.close()
        poller.close()
        others.close()
        os.close(listener.fd)
    late = Outlet("host", listener.address, INJECT, tally)
    late.post(Inject(0x30))
    late.flush()
    assert not late.waits
