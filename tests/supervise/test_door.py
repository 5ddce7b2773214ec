"""The door of a run: what is answered at once, what waits, and what becomes of connections that end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from viommu_actors.supervise.door import ALIVE_EVERY, Asked, Door
from viommu_actors.supervise.requests import MAX_REQUEST, Attack

JOB = b'{"command": "attack", "device": "nic0", "id": 7}'


class Client:
    def __init__(self, context: zmq.Context[Any], door: Door) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(door.address)
        self._door = door
        self.cancelled = False

    def ask(self, *frames: bytes) -> None:
        for frame in frames:
            self.socket.send(frame)
        while self._door.socket.poll(300):
            self.cancelled |= self._door.serve(lambda: {"up": True}, lambda: None)

    def heard(self) -> list[dict[str, Any]]:
        answers = []
        while self.socket.poll(200):
            answers.append(json.loads(self.socket.recv()))
        return answers


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context(1) as made:
        yield made


@pytest.fixture
def door(context: zmq.Context[Any]) -> Iterator[Door]:
    made = Door(context)
    made.refusal = ""
    made.open = True
    yield made
    made.close()


@pytest.fixture
def client(context: zmq.Context[Any], door: Door) -> Iterator[Client]:
    made = Client(context, door)
    yield made
    made.socket.close()


def test_status_is_answered_at_once_and_jobs_wait(door: Door, client: Client) -> None:
    client.ask(JOB, b'{"command": "status", "id": 8}')
    assert client.heard() == [{"up": True, "id": 8}]
    asked = door.next_job()
    assert asked is not None and asked.request == Attack(device="nic0", id=7) and door.next_job() is None
    door.progress(asked, "at it")
    door.answer(asked, {"result": {}})
    assert client.heard() == [{"progress": "at it", "id": 7}, {"result": {}, "id": 7}]


def test_a_run_that_does_not_stay_takes_no_jobs(door: Door, client: Client) -> None:
    door.refusal = "not today"
    client.ask(JOB)
    assert client.heard() == [{"error": "not today", "how": "refused", "id": 7}] and door.next_job() is None


def test_only_so_many_wait(door: Door, client: Client) -> None:
    client.ask(*[JOB] * 17)
    answers = client.heard()
    assert [answer for answer in answers if "error" in answer] == [answers[-1]]
    assert "16 jobs wait already" in answers[-1]["error"]


def test_giving_up_takes_back_what_waits(door: Door, client: Client) -> None:
    client.ask(JOB, b'{"command": "cancel", "id": 9}')
    assert client.heard() == [{"error": "given up", "how": "interrupted", "id": 7}, {"cancelled": True, "id": 9}]
    assert door.next_job() is None and not client.cancelled


def test_the_job_that_is_being_done_is_given_up_where_it_may_be(door: Door, client: Client) -> None:
    client.ask(JOB)
    asked = door.next_job()
    assert asked is not None
    client.ask(b'{"command": "cancel"}')
    assert not client.cancelled
    door.revocable = asked.peer
    client.ask(b'{"command": "cancel"}')
    assert client.cancelled


def test_a_connection_that_ends_is_noticed(door: Door, client: Client) -> None:
    client.ask(JOB)
    asked = door.next_job()
    assert isinstance(asked, Asked) and door.departed() == set()
    door.held = {asked.peer}
    time.sleep(ALIVE_EVERY)
    assert door.departed() == set() and {"alive": True} in client.heard()
    client.socket.close()
    deadline = time.monotonic() + 5
    while not (gone := door.departed()):
        assert time.monotonic() < deadline and door.patience <= ALIVE_EVERY
        time.sleep(0.02)
    assert gone == {asked.peer}


def test_who_does_not_listen_hears_later_how_its_job_ended(door: Door, client: Client) -> None:
    """As a client that was stopped, and goes on."""
    client.ask(JOB)
    asked = door.next_job()
    assert asked is not None
    for number in range(20_000):
        door.progress(asked, f"{number} " + 4096 * "x")
    door.answer(asked, {"result": {}})
    answers = []
    while {"result": {}, "id": 7} not in answers:
        heard = client.heard()
        assert heard or door.patience < float("inf"), "the last word was lost"
        answers += heard
        door.departed()
    assert len(answers) < 20_000 and door.patience == float("inf")


def test_what_is_too_long_is_not_even_heard(door: Door, client: Client) -> None:
    client.socket.send(b" " * (MAX_REQUEST + 1))
    assert not door.socket.poll(300)
