"""The process of a virtual switch, with front ends at its ports that are played by the test."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vswitch.front_end import BUFFERS, Guest, World, frame, mac
from viommu_actors.spec import vhost
from viommu_actors.spec.virtio_net import Queue
from viommu_actors.supervise.actor_plan import actor_plan, listen
from viommu_actors.supervise.process import Actor
from viommu_actors.wire.messages import Command
from viommu_actors.wire.polled import PolledChannel
from viommu_actors.wire.tally import Tally, disagreements
from viommu_actors.wire.vhost import VHOST_DOWN, VHOST_UP

SECONDS = 20.0


class RemoteGuest(Guest):
    """Whose port is in another process."""

    channel: PolledChannel

    def connect(self) -> None:
        """See `plug`."""

    def plug(self, address: str) -> None:
        self.tally = Tally(f"vhost:{self.name}", "front end")
        self.down.clear()
        self.channel = PolledChannel(self.name, address, VHOST_DOWN, VHOST_UP, self.tally)

    def exchange(self) -> None:
        while self.down:
            self.channel.post(self.down.popleft())
        self.channel.flush()
        while True:
            try:
                self.serve(self.channel.receive())
            except BlockingIOError:
                return


class Rig:
    """A switch process, and its guests."""

    def __init__(self, folder: Path) -> None:
        self.guests = [RemoteGuest(World(), name) for name in ("vnet0", "vnet1")]
        self._log = folder / "ovs.log"
        self._number = 0
        self._lifeline = os.pipe()
        self.actor: Actor | None = None

    def start(self) -> Actor:
        plan = actor_plan("app", "ovs", "vswitch")
        listen(plan, [guest.name for guest in self.guests])
        plan.configuration |= {"sandbox": "auto", "cpus": None}
        with self._log.open("ab") as log:
            self.actor = actor = Actor(plan, "ovs", self._lifeline[0], log, since=0)
        for fd in plan.fds:
            os.close(fd)
        for guest, port in zip(self.guests, plan.configuration["ports"], strict=True):
            guest.plug(port["address"])
            guest.start()
        return actor

    def stop(self) -> None:
        if self.actor is not None:
            self.actor.end()
            self.actor = None
            for guest in self.guests:
                guest.channel.close()

    def close(self) -> None:
        self.stop()
        for fd in self._lifeline:
            os.close(fd)

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < end, self._log.read_text()
            self.exchange()

    def exchange(self, seconds: float = 1.0) -> bool:
        for guest in self.guests:
            guest.exchange()
        if any(guest.channel.behind or guest.down for guest in self.guests):
            return True
        return bool(select.select([guest.channel.socket for guest in self.guests], [], [], seconds)[0])

    def ask(self, name: str) -> Any:
        actor = self.actor
        assert actor is not None
        self._number += 1
        actor.channel.post(Command(self._number, name, {}))
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            self.exchange(0.02)
            actor.channel.flush()
            try:
                answer: Any = actor.channel.receive()
            except BlockingIOError:
                continue
            assert answer.number == self._number and not answer.error
            return answer.result
        raise AssertionError(self._log.read_text())

    def settle(self) -> None:
        """Until the switch is asleep."""
        while self.exchange(0.2):
            pass


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_frames_cross_and_both_ends_count_alike(rig: Rig) -> None:
    rig.start()
    a, b = rig.guests
    sent = [frame(mac(2), mac(1), bytes((number,)) * 4000) for number in range(40)]
    back = [frame(mac(1), mac(2), bytes((number,)) * 60) for number in range(40)]
    got: tuple[list[bytes], list[bytes]] = ([], [])
    a.give(48)
    b.give(48)
    a.send(*sent)
    b.send(*back)

    def all_there() -> bool:
        for guest, frames in zip((a, b), got, strict=True):
            frames += guest.received()
        return all(guest.tx.get(guest.tx.used + 2, 2) == 40 for guest in (a, b))

    rig.until(all_there)
    assert got == (back, sent)
    rig.settle()
    ends = [end for end in rig.ask("counts") if end["wire"].startswith("vhost:")]
    assert disagreements(ends + [guest.tally.as_dict() for guest in rig.guests]) == []
    state = rig.ask("state")
    assert state["macs"] == 2
    for guest in (a, b):
        port = state["ports"][guest.name]
        assert port["started"] == ("receive", "transmit") and not port["broken"]
        statistics = rig.ask("statistics")[guest.name]
        assert statistics["rx_packets"] == statistics["tx_packets"] == 40
        assert not guest.faults
    assert set(rig.ask("confinement")) == {"landlock", "seccomp", "why"}


def test_a_switch_that_is_killed_loses_nothing_that_it_acknowledged(rig: Rig) -> None:
    a, b = rig.guests
    sent = [frame(mac(2), mac(1), number.to_bytes(2, "big") * 300) for number in range(60)]
    b.give(64)
    a.send(*sent)
    got: list[bytes] = []
    acknowledged = 0
    for enough in (20, 40, 60):
        actor = rig.start()
        rig.until(lambda enough=enough: a.tx.get(a.tx.used + 2, 2) >= enough)  # type: ignore[misc]
        if enough < 60:
            actor.kill()
        acknowledged += len(a.tx.reap())
        got += (more := b.received())
        b.give(len(more))
        # In their order, those that were sent twice apart.
        assert list(dict.fromkeys(got))[:acknowledged] == sent[:acknowledged]
        rig.stop()
    assert acknowledged == len(sent)


def test_what_is_no_message_is_dropped(rig: Rig) -> None:
    rig.start()
    a, b = rig.guests
    rig.until(lambda: a.channel.up and b.channel.up)
    a.channel._peer.send(b"\xc1")
    a.channel._peer.send(VHOST_UP.encode(vhost.Call(0)))
    b.give(1)
    a.send(frame(mac(2), mac(1)))
    rig.until(lambda: len(b.rx.reap()) == 1)
    rig.settle()
    received = next(end for end in rig.ask("counts") if end["wire"] == "vhost:vnet0")["received"]
    assert received["malformed: not msgpack"] == 1


def test_notifications_without_end_do_not_pile_up_in_it(rig: Rig) -> None:
    """A guest whose front end reads nothing meanwhile, and whose buffers are not mapped."""
    rig.start()
    a, b = rig.guests
    b.give(48)
    assert a.mapping is not None
    leave = {page: a.mapping.pop(page) for page in range(BUFFERS[Queue.TRANSMIT], BUFFERS[Queue.TRANSMIT] + 64)}
    a.send(*(frame(mac(2), mac(1)) for _ in range(40)))
    rig.settle()
    asked, kicks = a.counts["IotlbMiss"], 6000
    for _ in range(kicks):
        a.channel.post(vhost.Kick(Queue.TRANSMIT))
    end = time.monotonic() + SECONDS
    while not a.channel.offer(vhost.Kick(Queue.TRANSMIT)):
        assert time.monotonic() < end
        a.channel.flush()
    while rig.ask("statistics")["vnet0"]["kicks"] <= kicks:
        assert time.monotonic() < end
    rig.settle()
    # As many as a socket has room for.
    assert a.counts["IotlbMiss"] - asked < 8 * kicks
    a.mapping |= leave
    a.to_switch(vhost.Kick(Queue.TRANSMIT))
    rig.until(lambda: a.tx.get(a.tx.used + 2, 2) == 40)
