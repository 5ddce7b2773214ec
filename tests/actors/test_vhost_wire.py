"""The hypervisor's end of vhost wires over real sockets, where the other end is a switch, or says that it is one."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pytest
import zmq

from tests.hypervisor.virtio_guest import Guest
from viommu_actors.actors import vhost_wire
from viommu_actors.actors.port_wire import PortWire
from viommu_actors.actors.vhost_wire import VhostWires
from viommu_actors.netdev import numbered_frame
from viommu_actors.spec import vhost
from viommu_actors.spec.virtio_net import Queue
from viommu_actors.vswitch.switch import Switch
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.wire.fuzz import hostile
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.sockets import Listener
from viommu_actors.wire.tally import Tally, disagreements
from viommu_actors.wire.vhost import VHOST_FRAME, VHOST_UP
from viommu_actors.wire.zmtp import ZmtpPeer, framed

EVERYTHING = (1 << 64) - 1


class OnSockets(Guest):
    """A guest whose back ends are over sockets: while it waits for an interrupt they are served."""

    wires: VhostWires

    def wait_for_interrupt(self, timeout: float) -> bool:
        while not self.beneath.vectors:
            self.wires.serve(5.0)
        return super().wait_for_interrupt(timeout)


class Rig:
    """Hypervisors' sockets, with an inbox that nobody has but the test."""

    def __init__(self) -> None:
        self.context = zmq.Context[zmq.Socket[bytes]]()
        self._sender: ZmtpPeer | None = None
        self.poller = select.epoll()
        self.inbox_listener = Listener.create()
        self.tallies = {f"vnet{number}": Tally(f"vhost:vnet{number}", "hypervisor") for number in range(2)}
        #: whose sockets stay until the end
        self.back_ends: list[BackEnd] = []
        self.inbox = Inbox(self.inbox_listener, self.poller)
        self.wires = VhostWires(self.poller.fileno(), self.tallies)

    def guest(self, number: int = 0, viommu: UnitConfig | None = None) -> OnSockets:
        guest = OnSockets(viommu, number=number)
        guest.wires = self.wires
        return guest

    def connect(self, guest: Guest, listener: Listener) -> None:
        self.wires.connect(guest.card.name, listener.address, guest.card.front_end)

    def serve_until(self, done: Callable[[], bool]) -> None:
        while not done():
            self.wires.serve(5.0)

    def poke(self) -> None:
        """Something comes to the inbox."""
        self._sender = ZmtpPeer.to(self.inbox_listener.address, 255, b"launcher")
        self._sender.put(framed(b"word"))

    def close(self) -> None:
        for wire in self.wires._wires.values():
            wire.close()
        self.wires._poller.close()
        if self._sender is not None:
            self._sender.close()
        self.inbox.close()
        self.poller.close()
        self.context.destroy(linger=0)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


class SwitchThread(threading.Thread):
    """A switch, as its process runs it."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._poller = zmq.Poller()
        self._switch = Switch(lambda: 0.0)
        self.listeners = [Listener.create() for _ in names]
        self.ports = []
        for name, listener in zip(names, self.listeners, strict=True):
            wire = PortWire(self._context, self._poller, listener, name, "switch")
            self.ports.append((wire, self._switch.add(name, wire.send, lambda wire=wire: wire.waits)))  # type: ignore[misc]
        self._over = threading.Event()
        #: whose turn is next; who works
        self._gate, self._works = threading.Lock(), threading.Lock()

    def run(self) -> None:
        while not self._over.is_set():
            with self._gate:
                pass
            with self._works:
                self._turn()

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """It does nothing meanwhile."""
        with self._gate, self._works:
            yield

    def _turn(self) -> None:
        ready = dict(self._poller.poll(20))
        for wire, port in self.ports:
            if ready.get(wire.socket, 0) & zmq.POLLOUT:
                wire.flush()
                if not wire.waits:
                    port.has_room()
            while wire.ready:
                if (message := wire.receive()) is not None:
                    port.receive(message)

    def end(self) -> None:
        """Its process is gone."""
        self._over.set()
        self.join()
        self._context.destroy(linger=0)


@pytest.mark.parametrize("viommu", [None, UnitConfig()])
def test_frames_cross_a_switch_and_a_switch_that_comes_after_it(rig: Rig, viommu: UnitConfig | None) -> None:
    guests = [rig.guest(number, viommu) for number in range(2)]
    drivers: list[Any] = []
    for _ in range(2):
        switch = SwitchThread([guest.card.name for guest in guests])
        for guest, listener in zip(guests, switch.listeners, strict=True):
            rig.connect(guest, listener)
        switch.start()
        try:
            rig.serve_until(lambda: all(guest.card.link_up for guest in guests))
            drivers = drivers or [guest.boot() for guest in guests]
            for driver in drivers:
                driver.listen()
            for number in range(20):
                source = number % 2
                frame = numbered_frame(number, 4000, drivers[1 - source].mac, drivers[source].mac)
                drivers[source].send(frame)
                assert drivers[1 - source].receive() == frame
        finally:
            switch.end()
        rig.serve_until(lambda: not any(guest.card.link_up for guest in guests))


def test_a_switch_that_was_cut_off_is_given_another_connection_and_forgets_the_one_before(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vhost_wire, "PATIENCE", 0.05)
    monkeypatch.setattr(vhost_wire, "BACK_OFF", 0.02)
    guests = [rig.guest(number, UnitConfig()) for number in range(2)]
    names = [guest.card.name for guest in guests]
    switch = SwitchThread(names)
    for guest, listener in zip(guests, switch.listeners, strict=True):
        rig.connect(guest, listener)
    switch.start()
    try:
        rig.serve_until(lambda: all(guest.card.link_up for guest in guests))
        drivers: list[Any] = [guest.boot() for guest in guests]
        for turn in range(4):
            for driver in drivers:
                driver.listen()
            monkeypatch.setattr(vhost_wire, "PATIENCE", 10.0)
            for number in range(8):
                source = number % 2
                frame = numbered_frame(8 * turn + number, 4000, drivers[1 - source].mac, drivers[source].mac)
                drivers[source].send(frame)
                assert drivers[1 - source].receive() == frame
            monkeypatch.setattr(vhost_wire, "PATIENCE", 0.05)
            with switch.standing_still():
                drivers[turn % 2]._stop()
                assert not guests[turn % 2].card.link_up
                # Reads that nobody will answer, most of those that it may have on the way.
                for page in range(20):
                    switch.ports[turn % 2][1].memory.read(page << 12, 16)
            rig.serve_until(lambda: all(guest.card.link_up for guest in guests))
            drivers[turn % 2].listen()
        for guest in guests:
            assert guest.vmm.counters["virtio_unexpected"] == 0
        ends = [wire.tally.as_dict() for wire, _ in switch.ports] + [tally.as_dict() for tally in rig.tallies.values()]
        while disagreements(ends):
            rig.wires.serve(0.01)
            ends = [wire.tally.as_dict() for wire, _ in switch.ports]
            ends += [tally.as_dict() for tally in rig.tallies.values()]
    finally:
        switch.end()


def test_one_that_was_cut_off_and_does_not_listen_any_more_is_left_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vhost_wire, "BACK_OFF", 0.02)
    guest = rig.guest()
    back_end = BackEnd(rig, guest)
    front_end = guest.card.front_end
    for _ in range(3):
        front_end._cut_off("is tried")
        assert not guest.card.link_up
        back_end.answer()
        assert guest.card.link_up
    front_end._cut_off("is tried")
    back_end.wire.socket.close(0)
    while rig.wires._due or rig.wires._wires["vnet0"].open:
        rig.wires.serve(0.01)
    assert not guest.card.link_up and guest.vmm.counters["virtio_cut_off"] == 4


class BackEnd:
    """Whoever listens for a front end, and sends what a test wants."""

    def __init__(self, rig: Rig, guest: Guest) -> None:
        self._rig, self._guest = rig, guest
        listener = Listener.create()
        self.wire = PortWire(rig.context, zmq.Poller(), listener, guest.card.name, "rogue")
        rig.back_ends.append(self)
        rig.connect(guest, listener)
        self.answer()

    def answer(self) -> None:
        """Whoever connects has its features."""
        while not self.wire.ready:
            self._rig.wires.serve(0.1)
        assert type(self.wire.receive()) is vhost.GetFeatures
        self.wire.send(vhost.Features(EVERYTHING))
        self._rig.serve_until(lambda: self._guest.card.link_up)


def test_whatever_it_sends_is_counted_and_ends_nothing(rig: Rig) -> None:
    guest = rig.guest()
    back_end = BackEnd(rig, guest)
    rejected = rig.tallies["vnet0"].rejected
    for frames in islice(hostile(11, VHOST_UP, VHOST_FRAME), 400):
        for frame in frames[:-1]:
            back_end.wire.socket.send(frame, zmq.SNDMORE)
        back_end.wire.socket.send(frames[-1])
        rig.wires.serve(0.1)
        while back_end.wire.ready:
            back_end.wire.receive()
    back_end.wire.send(vhost.MemoryRead(3, 0, 8))
    before = rejected.total()
    assert before > 50
    while not (back_end.wire.ready and back_end.wire.receive() == vhost.ReadCompletion(3, 1, b"")):
        rig.wires.serve(0.1)
    assert guest.card.link_up and len(rejected) >= 5


def test_one_that_does_not_answer_in_time_is_cut_off(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vhost_wire, "PATIENCE", 0.05)
    guest = rig.guest()
    BackEnd(rig, guest)
    driver = guest.boot()
    driver.listen()
    rig.poke()
    driver._stop()
    assert not guest.card.link_up and guest.vmm.counters["virtio_cut_off"] == 1
    assert [line for line in guest.lines if "did not acknowledge a stop in time" in line]
    # What came to the inbox meanwhile is still there, and told of.
    rig.wires.serve(5.0)
    assert rig.inbox.receive_within(5.0) == (b"launcher", b"word")


def test_a_guest_that_notifies_without_end_takes_no_room_of_answers_and_each_queue_is_told_in_the_end(
    rig: Rig,
) -> None:
    guest = rig.guest()
    back_end = BackEnd(rig, guest)
    driver = guest.boot()
    driver.listen()
    for number in range(50):
        back_end.wire.send(vhost.MemoryRead(number, 0, 4096))
    wire = rig.wires._wires["vnet0"]
    while not wire.waits:
        driver._net.notify(Queue.RECEIVE)
    for _ in range(3000):
        driver._net.notify(Queue.RECEIVE)
    driver._net.notify(Queue.TRANSMIT)
    rig.wires.serve(1.0)
    assert guest.card.link_up and guest.vmm.counters["virtio_cut_off"] == 0
    # It says nothing itself, and reads on.
    heard: list[Any] = []
    while heard[-2:].count(vhost.Kick(Queue.TRANSMIT)) == 0 and guest.card.link_up:
        rig.wires.serve(0.01)
        while back_end.wire.ready:
            heard.append(back_end.wire.receive())
    assert [each.tag for each in heard if type(each) is vhost.ReadCompletion] == list(range(50))
    assert set(heard[-2:]) == {vhost.Kick(Queue.TRANSMIT), vhost.Kick(Queue.RECEIVE)}


def test_a_trap_has_one_patience_for_all_that_a_back_end_owes_of_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vhost_wire, "PATIENCE", 0.05)
    BackEnd(rig, rig.guest())
    wire = rig.wires._wires["vnet0"]
    looks = 0

    def never() -> bool:
        nonlocal looks
        looks += 1
        return False

    wire.wait(never)
    assert looks > 1
    looks = 0
    wire.wait(never)
    assert looks == 1, "nobody was waited for"
    rig.wires.serve(0.0)
    looks = 0
    wire.wait(never)
    assert looks > 1


def test_one_that_asks_and_does_not_listen_is_cut_off(rig: Rig) -> None:
    guest = rig.guest()
    back_end = BackEnd(rig, guest)
    guest.boot().listen()
    asked = 0
    while guest.card.link_up and asked < 100_000:
        # A switch has a limit of its own to what waits for it.
        while asked < 100_000 and not back_end.wire._waiting:
            back_end.wire.send(vhost.MemoryRead(0, 0, 4096))
            asked += 1
        rig.wires.serve(0.1)
        back_end.wire.flush()
    assert not guest.card.link_up
    assert guest.vmm.counters["virtio_cut_off"] == 1


def test_a_back_end_at_an_address_where_nobody_listens_is_a_link_that_is_down(rig: Rig) -> None:
    guest = rig.guest()
    rig.wires.connect("vnet0", "ipc://@nobody-listens-here", guest.card.front_end)
    rig.poke()
    rig.wires.serve(5.0)
    assert not guest.card.link_up
    BackEnd(rig, guest)
