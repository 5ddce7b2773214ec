"""From the stamps of all wire ends to messages, chains and a Chrome trace.

A wire is FIFO: the n-th message sent at one end is the n-th received at the other. So stamps taken since the same
quiet moment pair up by their order, and no message carries an id.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple


class Crossing(NamedTuple):
    """One message: who sent it and who received it when, in nanoseconds of the monotonic clock."""

    wire: str
    kind: str
    sender: str
    receiver: str
    sent: int
    received: int


class Hop(NamedTuple):
    """A part of a chain: work of an actor, or the way between two."""

    name: str
    nanoseconds: int


class Chain(NamedTuple):
    """A synchronous request of a guest: its trap, the calls that it made on the way, and its answer."""

    kind: str
    began: int
    ended: int
    hops: tuple[Hop, ...]

    @property
    def nanoseconds(self) -> int:
        return self.ended - self.began


#: Wires of blocking requests; on the others messages go one way or are answered much later.
_SYNCHRONOUS = ("trap", "vfio")
#: Threads of an actor's track: slices of one thread must not overlap.
_REQUESTS, _ONE_WAY = 1, 2
#: Length of a slice for a message that goes one way, in microseconds: an arrow needs one to end at.
_INSTANT = 0.2


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


def chains(messages: Iterable[Crossing]) -> list[Chain]:
    """Each trap with all that happened between it and its answer. Their hops add up to the whole."""
    found = []
    for trap, inner, answer in _requests([each for each in messages if _name(each.wire) in _SYNCHRONOUS], "trap"):
        hops: list[Hop] = []
        at, where = trap.sent, trap.sender
        for message in (trap, *inner, answer):
            if message.sent > at:
                hops.append(Hop(where, message.sent - at))
            hops.append(Hop(f"{message.sender} → {message.receiver}", message.received - max(message.sent, at)))
            at, where = message.received, message.receiver
        found.append(Chain(trap.kind, trap.sent, answer.received, tuple(hops)))
    return found


def _requests(messages: list[Crossing], wire: str) -> Iterator[tuple[Crossing, list[Crossing], Crossing]]:
    """(request, what its receiver sent and received meanwhile, answer) of each request on the wires of that name."""
    for name in {each.wire for each in messages if _name(each.wire) == wire}:
        mine = [each for each in messages if each.wire == name]
        server = mine[0].receiver
        others = [each for each in messages if each.wire != name and server in (each.sender, each.receiver)]
        position = 0
        for request, answer in zip(mine[::2], mine[1::2], strict=False):
            while position < len(others) and others[position].sent < request.sent:
                position += 1
            start = position
            while position < len(others) and others[position].sent < answer.received:
                position += 1
            yield request, others[start:position], answer


def _name(wire: str) -> str:
    return wire.partition(":")[0]


def _pairs(stamps: bytes) -> list[tuple[int, int]]:
    """(kind, time) pairs."""
    values = array("q", stamps)
    return list(zip(values[::2], values[1::2], strict=True))


def chrome_trace(messages: list[Crossing]) -> dict[str, Any]:
    """A trace that Perfetto and chrome://tracing open: a track for each actor, an arrow for each message.

    Synchronous requests are slices on both sides; reads of a device that wait for their completion are asynchronous
    events, since they overlap. Times are in microseconds from the first message.
    """
    if not messages:
        return {"traceEvents": []}
    zero = messages[0].sent
    actors = sorted({each.sender for each in messages} | {each.receiver for each in messages})
    tracks = {actor: number for number, actor in enumerate(actors, start=1)}
    events: list[dict[str, Any]] = []
    for actor, number in tracks.items():
        events.append({"ph": "M", "pid": number, "name": "process_name", "args": {"name": actor}})
        for thread, name in ((_REQUESTS, "requests"), (_ONE_WAY, "one way")):
            events.append({"ph": "M", "pid": number, "tid": thread, "name": "thread_name", "args": {"name": name}})

    def event(phase: str, actor: str, at: int, name: str, thread: int, **more: Any) -> None:
        place = {"pid": tracks[actor], "tid": thread, "ts": (at - zero) / 1000}
        events.append({"ph": phase, "name": name, "cat": "message"} | place | more)

    for number, each in enumerate(messages):
        thread = _REQUESTS if _name(each.wire) in _SYNCHRONOUS else _ONE_WAY
        if thread == _ONE_WAY:
            event("X", each.sender, each.sent, f"send {each.kind}", thread, dur=_INSTANT)
            event("X", each.receiver, each.received, f"take {each.kind}", thread, dur=_INSTANT)
        event("s", each.sender, each.sent, each.kind, thread, id=number)
        event("f", each.receiver, each.received, each.kind, thread, id=number, bp="e")
    for wire in _SYNCHRONOUS:
        for request, _, answer in _requests(messages, wire):
            whole, served = answer.received - request.sent, answer.sent - request.received
            event("X", request.sender, request.sent, request.kind, _REQUESTS, dur=whole / 1000)
            event("X", request.receiver, request.received, request.kind, _REQUESTS, dur=served / 1000)
    for number, (read, completion) in enumerate(_outstanding(messages)):
        event("b", read.sender, read.sent, "DMA read", _ONE_WAY, id=f"dma{number}")
        event("e", read.sender, completion.received, "DMA read", _ONE_WAY, id=f"dma{number}")
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def _outstanding(messages: list[Crossing]) -> Iterator[tuple[Crossing, Crossing]]:
    """Each read of a device with its completion: a root port completes them in order, one completion each.

    A link whose reads are split over several completions is left out.
    """
    for wire in {each.wire for each in messages if _name(each.wire) == "link"}:
        reads = [each for each in messages if each.wire == wire and each.kind == "MemRead"]
        answers = [
            each for each in messages if each.wire == wire and each.kind == "Completion" and each.sender == "host"
        ]
        if len(reads) == len(answers):
            yield from zip(reads, answers, strict=True)
