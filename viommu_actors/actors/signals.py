"""The sleep of a user process: signals of its descriptors arrive in its inbox, among the launcher's commands."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection

from viommu_actors.actors.control import LAUNCHER
from viommu_actors.actors.runtime import log
from viommu_actors.wire import messages as m
from viommu_actors.wire.codec import MalformedMessage
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.tally import Tally


class Signals:
    """What the process's kernel has signalled and nobody has read yet."""

    def __init__(self, inbox: Inbox, tally: Tally) -> None:
        """`tally` is that of the notify wire."""
        self._inbox = inbox
        self._tally = tally
        self._signalled: set[int] = set()
        #: commands that came meanwhile
        self._backlog: deque[bytes] = deque()
        #: how often the process has slept, or looked whether it has to
        self.waits = 0

    def command(self) -> bytes:
        """Waits for the next frame of the launcher."""
        while not self._backlog:
            self._take(*self._inbox.receive())
        return self._backlog.popleft()

    def wait(self, descriptors: Collection[int], seconds: float) -> list[int]:
        """See `app.system.System.wait`."""
        self.waits += 1
        deadline = time.monotonic() + seconds
        left = 0.0  # what has come already
        while True:
            while (came := self._inbox.receive_within(left)) is not None:
                self._take(*came)
                left = 0.0
            ready = [descriptor for descriptor in descriptors if descriptor in self._signalled]
            left = deadline - time.monotonic()
            if ready or left <= 0:
                return ready

    def read(self, descriptor: int) -> None:
        """What was signalled has been read; whatever is signalled later comes later."""
        self._signalled.discard(descriptor)

    def _take(self, peer: bytes, frame: bytes) -> None:
        if peer == LAUNCHER:
            self._backlog.append(frame)
            return
        try:
            signal = m.NOTIFY.decode(frame)
        except MalformedMessage as error:
            self._tally.rejected[error.defect] += 1
            log(f"notify: {error}")
            return
        self._tally.received[type(signal)] += 1
        self._signalled.add(signal[0])
