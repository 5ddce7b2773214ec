"""Commands that are under way, and their answers."""

from __future__ import annotations

from typing import Any, NamedTuple

from viommu_actors.wire.messages import Reply


class Question(NamedTuple):
    """A command: its number means something only in the mouth of the actor that was asked."""

    actor: str
    number: int


class Asked(NamedTuple):
    """A command by its name, that may be answered by now."""

    question: Question
    name: str


class Answer(NamedTuple):
    """A reply, and the launcher's counts of that wire when it came."""

    reply: Reply
    counts: dict[str, Any]
