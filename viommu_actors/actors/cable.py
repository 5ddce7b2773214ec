"""A cable between two nics: a socket pair of which each device process inherited one end."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from viommu_actors.spec.nic import MAX_FRAME
from viommu_actors.wire.tally import Tally

_DRAIN = 64


class Cable:
    """One end. Frames that find no room on the cable are lost, as on a wire that is congested."""

    def __init__(self, configuration: dict[str, Any], end: str) -> None:
        self._socket = socket.socket(fileno=configuration["fd"])
        self._socket.setblocking(False)
        self.tally = Tally(configuration["wire"], end)

    @property
    def fd(self) -> int:
        """To be polled."""
        return self._socket.fileno()

    def transmit(self, frame: bytes) -> None:
        """Sends one Ethernet frame."""
        try:
            self._socket.send(frame)
        except OSError:
            return
        self.tally.sent[bytes] += 1

    def receive(self) -> Iterator[bytes | None]:
        """Frames that have come; None where the other end is gone."""
        for _ in range(_DRAIN):
            try:
                frame = self._socket.recv(MAX_FRAME)
            except BlockingIOError:
                return
            except OSError:
                frame = b""
            if not frame:
                yield None
                return
            self.tally.received[bytes] += 1
            yield frame
