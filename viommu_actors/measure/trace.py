"""From the stamps of all wire ends to messages.

A wire is FIFO: the n-th message sent at one end is the n-th received at the other. So stamps taken since the same
quiet moment pair up by their order, and no message carries an id.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Crossing(NamedTuple):
    """One message: who sent it and who received it when, in nanoseconds of the monotonic clock."""

    wire: str
    kind: str
    sender: str
    receiver: str
    sent: int
    received: int


def crossings(taken: Iterable[Mapping[str, Any]]) -> list[Crossing]:
    """All messages that both ends have seen, by the time they were sent.

    `taken` is what the control command `stamps` of each actor returned.
    """
    ends: dict[str, list[tuple[str, list[str], Mapping[str, bytes]]]] = {}
    for actor in taken:
        for end in actor["wires"]:
            ends.setdefault(end["wire"], []).append((end["end"], list(actor["kinds"]), end))
    found: list[Crossing] = []
    for wire, pair in ends.items():
        if len(pair) == 2:
            for (sender, kinds, sent), (receiver, _, received) in (pair, pair[::-1]):
                times = zip(_pairs(sent["sent"]), _pairs(received["received"]), strict=False)
                found += [Crossing(wire, kinds[kind], sender, receiver, at, to) for (kind, at), (_, to) in times]
    return sorted(found, key=lambda crossing: crossing.sent)


def _pairs(stamps: bytes) -> list[tuple[int, int]]:
    """(kind, time) pairs."""
    values = array("q", stamps)
    return list(zip(values[::2], values[1::2], strict=True))
