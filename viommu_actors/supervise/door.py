"""The run's control socket: how other commands reach a topology that is up. What may be asked stands in `requests`.

Answers are JSON objects. A connection that ends takes its jobs with it: whoever is served is sent {"alive": true} now
and then, which fails once nobody is there.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import zmq

from viommu_actors.supervise.requests import MAX_REQUEST, Cancel, Request, Status, Stop, read

#: Seconds after which a connection that is served has to prove that it is there.
ALIVE_EVERY = 0.2
_MOST_WAITING = 16
#: Last words to connections that take nothing at the moment, of all together.
_MOST_LATE = 64
NO_STAY = "this run ends by itself; start one that stays: launch/topology --stay"


class Asked(NamedTuple):
    """A request, and the connection that made it."""

    peer: bytes
    request: Request


class Door:
    """A ROUTER at an unguessable abstract name, for processes of the same user."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.address = f"ipc://@viommu-{secrets.token_hex(16)}"
        #: why no job is taken; empty where they are
        self.refusal = NO_STAY
        #: whether jobs are being done, one after another; until then they wait
        self.open = False
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 200)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST)
        self.socket.setsockopt(zmq.RCVHWM, 16)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
        self.socket.bind(self.address)
        self._waiting: deque[Asked] = deque()
        self._busy = False
        #: whose job is being done, while it may be given up
        self.revocable: bytes | None = None
        #: connections that something here depends on
        self.held: set[bytes] = set()
        self._looked = 0.0
        #: how jobs ended whose askers do not take it yet
        self._late: deque[tuple[bytes, dict[str, Any]]] = deque(maxlen=_MOST_LATE)

    def serve(self, status: Callable[[], dict[str, Any]], stop: Callable[[], None]) -> bool:
        """Answers what has come; whether the job that is being done, and may be, was given up by its asker."""
        cancelled = False
        while True:
            try:
                peer, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return cancelled
            try:
                asked = Asked(peer, read(frames[-1]))
            except ValueError as error:
                self._send(peer, {"error": str(error), "how": "refused"})
                continue
            match asked.request:
                case Status():
                    self.answer(asked, status())
                case Stop():
                    stop()
                    self.answer(asked, {"stopping": True})
                case Cancel():
                    cancelled |= self.revocable == peer
                    self._drop(peer)
                    self.answer(asked, {"cancelled": True})
                case _:
                    self._queue(asked)

    def next_job(self) -> Asked | None:
        """The next job to be done; the door counts as busy with it until `done`."""
        if not self._waiting:
            return None
        self._busy = True
        return self._waiting.popleft()

    def done(self) -> None:
        self._busy = False

    def progress(self, asked: Asked, text: str) -> None:
        self.answer(asked, {"progress": text})

    def fail(self, asked: Asked, how: str, text: str) -> None:
        """The job, or what was to be one, came to nothing."""
        self.answer(asked, {"error": text, "how": how})

    def answer(self, asked: Asked, answer: dict[str, Any]) -> None:
        """To a connection that does not read what it is told, the answer is told later, but for mere progress.

        Of one that has ended it is lost.
        """
        number = asked.request.id
        answer = answer | {"id": number} if number else answer
        if self._send(asked.peer, answer) is None and "progress" not in answer:
            self._late.append((asked.peer, answer))

    @property
    def patience(self) -> float:
        """Seconds after which `departed` is to be asked again."""
        return max(0.0, self._looked + ALIVE_EVERY - time.monotonic()) if self._served() or self._late else float("inf")

    def departed(self) -> set[bytes]:
        """Connections that have ended, of those that are held or wait; their waiting jobs are dropped."""
        if time.monotonic() < self._looked + ALIVE_EVERY:
            return set()
        self._looked = time.monotonic()
        self._tell_late()
        gone = {peer for peer in self._served() if self._send(peer, {"alive": True}) is False}
        for peer in gone:
            self._drop(peer)
        return gone

    def close(self) -> None:
        """Whoever waits is told that nothing will come of it."""
        for asked in self._waiting:
            self.fail(asked, "interrupted", "the topology has ended")
        self.socket.close()

    def _queue(self, asked: Asked) -> None:
        if self.refusal:
            self.fail(asked, "refused", self.refusal)
        elif len(self._waiting) >= _MOST_WAITING:
            self.fail(asked, "refused", f"{_MOST_WAITING} jobs wait already; try again later")
        else:
            if not self.open:
                self.progress(asked, "waits until the run's own verdicts are in")
            elif self._busy or self._waiting:
                self.progress(asked, "waits for its turn: another rogue is being served")
            self._waiting.append(asked)

    def _served(self) -> set[bytes]:
        busy = set() if self.revocable is None else {self.revocable}
        return self.held | {asked.peer for asked in self._waiting} | busy

    def _tell_late(self) -> None:
        for _ in range(len(self._late)):
            peer, answer = self._late.popleft()
            if self._send(peer, answer) is None:
                self._late.append((peer, answer))

    def _send(self, peer: bytes, answer: dict[str, Any]) -> bool | None:
        """False where the connection has ended, None where it takes nothing at the moment."""
        try:
            self.socket.send_multipart([peer, json.dumps(answer).encode()], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            return False if error.errno == errno.EHOSTUNREACH else None
        return True

    def _drop(self, peer: bytes) -> None:
        for asked in self._waiting:
            if asked.peer == peer:
                self.fail(asked, "interrupted", "given up")
        self._waiting = deque(asked for asked in self._waiting if asked.peer != peer)
