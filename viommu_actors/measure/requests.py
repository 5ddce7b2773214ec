"""Requests with their answers, and the way of each through the actors. Pure, over messages that cross wires.

No message carries an id. Answers of a wire come in the order of the requests; and an actor takes one message at a
time, so that what it sends belongs to what it took last, or to what waits for the answer that it took last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from viommu_actors.measure.trace import Crossing

#: Wires on which every message of one side is a request, every one of the other its answer, and the asker waits.
SYNCHRONOUS: Final = ("trap", "vfio")
#: Kinds of requests on the other wires, each with that of its answer.
_ANSWER: Final = {
    "DirectRead": "DirectValue",
    "MemRead": "Completion",
    "Atomic": "Completion",
    "MmioRead": "Completion",
    "CfgRead": "Completion",
    "CfgWrite": "Completion",
    "InvalidateRequest": "InvalidateCompletion",
    "MemoryRead": "ReadCompletion",
    "IotlbInvalidate": "IotlbInvalidated",
}


class Request(NamedTuple):
    """A request and its answer. Where several wait on one wire, each is asked for, and served, once it is its turn."""

    ask: Crossing
    answer: Crossing
    #: when its asker had nothing else of this wire to wait for; when it began to be served
    asked: int
    served: int

    @property
    def waits(self) -> bool:
        """Whether its asker does nothing else meanwhile."""
        return name_of(self.ask.wire) in SYNCHRONOUS or self.ask.kind == "DirectRead"


class Step(NamedTuple):
    """Where a flow is when: an actor sends or takes that message."""

    message: Crossing
    actor: str
    at: int


def name_of(wire: str) -> str:
    """`vfio` of `vfio:vm0.hypervisor`."""
    return wire.partition(":")[0]


def requests(messages: Iterable[Crossing]) -> list[Request]:
    """Those that are answered, by the time they were asked. `messages` are ordered by when they were sent.

    A wire whose reads are not answered one by one is left out: nobody can tell which answer is whose.
    """
    asked: dict[tuple[str, str, str], list[Crossing]] = {}
    answers: dict[tuple[str, str, str], list[Crossing]] = {}
    for each in messages:
        if name_of(each.wire) in SYNCHRONOUS:
            side = asked if each.wire.endswith(f":{each.sender}") else answers
            side.setdefault((each.wire, each.sender if side is asked else each.receiver, ""), []).append(each)
        elif each.kind in _ANSWER:
            asked.setdefault((each.wire, each.sender, _ANSWER[each.kind]), []).append(each)
        else:
            answers.setdefault((each.wire, each.receiver, each.kind), []).append(each)
    found: list[Request] = []
    for key, own in asked.items():
        theirs = answers.get(key, [])
        if len(own) == len(theirs) or name_of(key[0]) in SYNCHRONOUS:
            free = idle = 0
            for ask, answer in zip(own, theirs, strict=False):
                found.append(Request(ask, answer, max(ask.sent, free), max(ask.received, idle)))
                free, idle = answer.received, answer.sent
    return sorted(found, key=lambda each: each.ask.sent)


def flows(messages: Sequence[Crossing], asked: Sequence[Request]) -> list[list[Step]]:
    """The way of each request that nobody else's has caused, with all that it has caused, and of each other message.

    A message that goes one way goes on in the first one that its receiver then sends to somebody else.
    """
    answers = {id(each.answer): each for each in asked}
    requested = {id(each.ask): each for each in asked}
    causes = _causes(messages, answers, requested)
    ways: dict[int, list[Step]] = {}
    for each in messages:
        if id(each) in answers:
            continue
        request = requested.get(id(each))
        cause = causes.get(id(each))
        way = ways.setdefault(id(each), []) if cause is None else ways[id(cause)]
        ways[id(each)] = way
        if request is None:
            way += [Step(each, each.sender, each.sent), Step(each, each.receiver, each.received)]
        else:
            way += [Step(each, each.sender, request.asked), Step(each, each.receiver, request.served)]
            way.append(Step(request.answer, each.sender, request.answer.received))
    found = {id(way): way for way in ways.values()}
    return [sorted(way, key=lambda step: step.at) for way in found.values()]


def _causes(
    messages: Sequence[Crossing], answers: dict[int, Request], requested: dict[int, Request]
) -> dict[int, Crossing]:
    """What each message was sent for, by the message's identity; nothing where its sender began by itself."""
    ends = [(each.sent, 1, each.sender, each) for each in messages]
    ends += [(each.received, 0, each.receiver, each) for each in messages]
    ends.sort(key=lambda end: end[:2])
    #: what each actor is at; a message that goes one way and has gone on already is nobody's cause any more
    at: dict[str, Crossing | None] = {}
    causes: dict[int, Crossing] = {}
    for _, sends, actor, message in ends:
        if not sends:
            request = answers.get(id(message))
            at[actor] = message if request is None else causes.get(id(request.ask))
        elif id(message) in answers:
            at[actor] = None
        elif (cause := at.get(actor)) is not None:
            if id(cause) in requested:
                # What is sent on the way and not answered is a way of its own: nobody waits for its arrival.
                if id(message) in requested:
                    causes[id(message)] = cause
            else:
                at[actor] = None
                if id(message) not in requested and message.receiver != cause.sender:
                    causes[id(message)] = cause
    return causes
