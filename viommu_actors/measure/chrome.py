"""A Chrome trace of messages, for ui.perfetto.dev and chrome://tracing.

The format is that of Chrome's JSON: microseconds; slices of a thread must nest; an event of a flow belongs to the slice
around it. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from viommu_actors.measure.requests import SYNCHRONOUS, Request, Step, flows, name_of, requests
from viommu_actors.measure.trace import Crossing

#: Threads of an actor's track: slices of one thread must not overlap.
_REQUESTS, _ONE_WAY = 1, 2
#: Length of the slice of a message that nobody waits for, in nanoseconds: an arrow needs one to end at.
_INSTANT: Final = 200
#: What happens at the end of a slice stands so many nanoseconds before it, so that it is still inside.
_INSIDE: Final = 1


def chrome_trace(messages: Sequence[Crossing]) -> dict[str, Any]:
    """A track for each actor, a flow for each request through the actors. `messages` are ordered by their sending.

    A request whose asker waits is a slice there, and one where it is served; any other message an instant at either
    end. Reads of a device that wait for their completion are asynchronous events, since they overlap. Times count from
    the first message.
    """
    if not messages:
        return {"traceEvents": []}
    asked = requests(messages)
    writer = _Writer(messages, asked)
    for each in messages:
        writer.message(each)
    for number, request in enumerate(asked):
        writer.request(number, request)
    for number, way in enumerate(flows(messages, asked)):
        writer.flow(number, way)
    return {"traceEvents": writer.events, "displayTimeUnit": "ns"}


class _Writer:
    def __init__(self, messages: Sequence[Crossing], asked: Sequence[Request]) -> None:
        actors = sorted({each.sender for each in messages} | {each.receiver for each in messages})
        self._tracks = {actor: number for number, actor in enumerate(actors, start=1)}
        self._zero = messages[0].sent
        #: the two ends of a request that its asker waits for: it is a slice there, and no instant
        self._answers = {id(each.answer) for each in asked if each.waits}
        self._waits = self._answers | {id(each.ask) for each in asked if each.waits}
        self.events: list[dict[str, Any]] = []
        for actor, number in self._tracks.items():
            self.events.append({"ph": "M", "pid": number, "name": "process_name", "args": {"name": actor}})
            for thread, name in ((_REQUESTS, "requests"), (_ONE_WAY, "one way")):
                place = {"pid": number, "tid": thread}
                self.events.append({"ph": "M", **place, "name": "thread_name", "args": {"name": name}})

    def message(self, message: Crossing) -> None:
        """Its instants, at the ends where it is part of no slice."""
        if not self._in_slice(message, message.sender):
            self._slice(message.sender, message.sent, _INSTANT, f"send {message.kind}", _ONE_WAY)
        if not self._in_slice(message, message.receiver):
            self._slice(message.receiver, message.received, _INSTANT, f"take {message.kind}", _ONE_WAY)

    def request(self, number: int, request: Request) -> None:
        """Its slices, or the asynchronous event of a device's read."""
        ask, answer, asked, served = request
        if request.waits:
            self._slice(ask.sender, asked, answer.received - asked, ask.kind, _REQUESTS)
        if name_of(ask.wire) in SYNCHRONOUS:
            self._slice(ask.receiver, served, answer.sent - served, ask.kind, _REQUESTS)
        if ask.kind == "MemRead":
            for phase, at in (("b", ask.sent), ("e", answer.received)):
                self._event(phase, ask.sender, at, "DMA read", _ONE_WAY, id=f"dma{number}")

    def flow(self, number: int, way: list[Step]) -> None:
        """An arrow from step to step."""
        name = way[0].message.kind
        for index, (message, actor, at) in enumerate(way):
            phase = "s" if not index else "t" if index < len(way) - 1 else "f"
            inside = self._in_slice(message, actor)
            # An answer is where the slice that waits for it ends.
            at -= _INSIDE if id(message) in self._answers else 0
            self._event(phase, actor, at, name, _REQUESTS if inside else _ONE_WAY, id=number, bp="e")

    def _in_slice(self, message: Crossing, actor: str) -> bool:
        """Whether that end of a message is part of a slice: of who waits, or of who serves it and nothing else."""
        if id(message) not in self._waits:
            return False
        return name_of(message.wire) in SYNCHRONOUS or message.wire.endswith(f":{actor}")

    def _slice(self, actor: str, at: int, length: int, name: str, thread: int) -> None:
        self._event("X", actor, at, name, thread, dur=length / 1000)

    def _event(self, phase: str, actor: str, at: int, name: str, thread: int, **more: Any) -> None:
        place = {"pid": self._tracks[actor], "tid": thread, "ts": (at - self._zero) / 1000}
        self.events.append({"ph": phase, "name": name, "cat": "message"} | place | more)
