"""Which port a MAC address is behind, as it was last seen (Open vSwitch, lib/mac-learning.c)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

#: Entries, and the seconds after which one that was not seen again is forgotten: Open vSwitch's defaults.
CAPACITY: Final = 8192
IDLE: Final = 300.0

Port = TypeVar("Port", bound=Hashable)


class MacTable(Generic[Port]):
    """Bounded. When it is full a new address takes the place of the one that was not seen for longest, of those behind
    the port that has most: who makes up addresses makes his own ones forgotten."""

    def __init__(self, capacity: int = CAPACITY, idle: float = IDLE) -> None:
        self._capacity = capacity
        self._idle = idle
        self._ports: dict[bytes, Port] = {}
        #: port -> address -> when it was seen, the longest ago first
        self._seen: dict[Port, dict[bytes, float]] = {}

    def __len__(self) -> int:
        return len(self._ports)

    def learn(self, mac: bytes, port: Port, now: float) -> None:
        """A frame from `mac` came in at `port`; `now` in seconds of any clock that does not go back."""
        before = self._ports.get(mac)
        if before is not None:
            del self._seen[before][mac]
        elif len(self._ports) >= self._capacity:
            self._evict()
        self._ports[mac] = port
        self._seen.setdefault(port, {})[mac] = now

    def find(self, mac: bytes, now: float) -> Port | None:
        """The port that it is behind; None where it is not known, or no more."""
        port = self._ports.get(mac)
        if port is None:
            return None
        if now - self._seen[port][mac] > self._idle:
            self._forget(mac)
            return None
        return port

    def _evict(self) -> None:
        most = max(self._seen.values(), key=len)
        self._forget(next(iter(most)))

    def _forget(self, mac: bytes) -> None:
        del self._seen[self._ports.pop(mac)][mac]
