"""The asker's end of a run's door: sends jobs, hears of their progress, gets their results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

from viommu_actors.supervise.requests import MAX_REQUEST, Cancel, DeviceDel, Request, Status
from viommu_actors.supervise.runs import LiveRun
from viommu_actors.text import printable


class JobFailed(Exception):
    """The launcher could not do what it was asked for; `how` is refused, failed, died or interrupted."""

    def __init__(self, how: str, text: str) -> None:
        super().__init__(text)
        self.how = how


class DoorClient:
    """A connection to a run, as a context manager: what was attached through it goes when it ends."""

    def __init__(self, run: LiveRun, tell: Callable[[str], None] = lambda text: None) -> None:
        """`tell` gets each word of progress. Raises OSError where the run has ended."""
        self._tell = tell
        self._number = 0
        self._launcher = os.pidfd_open(run.pid)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(1)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
        self._socket.connect(run.address)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._launcher, zmq.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._context.destroy(linger=1000)
        os.close(self._launcher)

    def status(self) -> dict[str, Any]:
        """What the run says of itself. Raises JobFailed."""
        return self._ask(Status())

    def cancel(self) -> None:
        """Gives up every job of this connection."""
        self._send(Cancel())

    def do(self, request: Request) -> dict[str, Any]:
        """Has a job done, and waits for its result. Raises JobFailed."""
        result: dict[str, Any] = self._ask(request)["result"]
        return result

    def remove(self, device: str) -> None:
        """Unplugs a rogue, if it is still there to be unplugged."""
        with suppress(JobFailed):
            self.do(DeviceDel(device=device))

    def _ask(self, request: Request) -> dict[str, Any]:
        number = self._send(request)
        while True:
            answer = self._receive()
            # One without a number is of a request that could not even be read.
            if answer.get("id", number if "error" in answer else 0) != number:
                continue
            if "error" in answer:
                raise JobFailed(str(answer.get("how", "failed")), printable(str(answer["error"])))
            if "progress" not in answer:
                return answer
            self._tell(str(answer["progress"]))

    def _send(self, request: Request) -> int:
        self._number += 1
        frame = msgspec.json.encode(msgspec.structs.replace(request, id=self._number))
        if len(frame) > MAX_REQUEST:
            raise JobFailed("refused", f"a request of {len(frame)} bytes; {MAX_REQUEST} are taken")
        self._socket.send(frame)
        return self._number

    def _receive(self) -> dict[str, Any]:
        while True:
            ready = dict(self._poller.poll())
            if self._socket in ready:
                answer: dict[str, Any] = json.loads(self._socket.recv())
                return answer
            if self._launcher in ready:
                raise JobFailed("interrupted", "the topology has ended")
