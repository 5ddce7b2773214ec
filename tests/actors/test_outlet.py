"""One-way messages to a peer that takes none for a while: they coalesce, and arrive once it does."""

from __future__ import annotations

import os
import threading
import time
from itertools import cycle

import zmq

from viommu_actors.actors.outlet import Outlet, poll_with
from viommu_actors.wire.messages import INJECT, Inject
from viommu_actors.wire.sockets import Inbox, Listener, make_context
from viommu_actors.wire.tally import Tally


def test_what_waits_is_sent_as_soon_as_there_is_room_though_nothing_else_happens() -> None:
    context = make_context()
    listener = Listener.create()
    inbox = Inbox(context, Listener(os.dup(listener.fd), listener.address))
    outlet = Outlet("host", listener.address, INJECT, Tally("inject", "host"))
    try:
        for vector in cycle(range(0x30, 0xF0)):
            outlet.post(Inject(vector))
            if outlet.waits and poll_with(zmq.Poller(), 100, [outlet]) == [] and outlet.waits:
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
            assert poll_with(zmq.Poller(), 10_000, [outlet]) == []
        guest.join(10)
        assert not guest.is_alive()
        assert taken.count(INJECT.encode(last)) == 1
    finally:
        outlet.close()
        inbox.socket.close(0)
        context.term()
        os.close(listener.fd)


def test_it_waits_for_a_receiver_that_is_not_up_yet_and_not_for_one_that_has_died() -> None:
    context, listener = make_context(), Listener.create()
    tally = Tally("inject", "host")
    early = Outlet("host", listener.address, INJECT, tally)
    try:
        early.post(Inject(0x30))
        assert poll_with(zmq.Poller(), 50, [early]) == [] and early.waits
        inbox = Inbox(context, Listener(os.dup(listener.fd), listener.address))
        while early.waits:
            assert poll_with(zmq.Poller(), 10_000, [early]) == []
        assert inbox.receive()[1] == INJECT.encode(Inject(0x30))
        inbox.socket.close()
        deadline, sent = time.monotonic() + 10, 0
        while early.waits or sent != tally.sent[Inject]:
            sent = tally.sent[Inject]
            early.post(Inject(0x30))
            assert time.monotonic() < deadline
    finally:
        early.close()
        context.term()
        os.close(listener.fd)
    late = Outlet("host", listener.address, INJECT, tally)
    late.post(Inject(0x30))
    late.flush()
    assert not late.waits
