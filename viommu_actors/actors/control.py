"""The control wire's end in an actor: commands of the launcher, answered in order or later."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any

from viommu_actors.actors.runtime import log
from viommu_actors.wire.codec import MAX_FRAME, MalformedMessage
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.messages import CONTROL, CONTROL_ANSWER, Command, Reply
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.zmtp import PeerLost

LAUNCHER = b"launcher"
#: Stamps in one reply: half of what a frame holds.
_STAMPS = MAX_FRAME // 2 // 16

Handler = Callable[..., Any]


class Later:
    """What a handler returns whose answer comes by `Control.answer`."""


LATER = Later()


class Control:
    """Decodes commands and calls their handlers with the command's arguments as keywords."""

    def __init__(self, inbox: Inbox, name: str, tallies: list[Tally]) -> None:
        self._inbox = inbox
        self.tally = Tally(f"control:{name}", name)
        self._tallies = tallies
        self._handlers: dict[str, Handler] = {
            "counts": self._counts,
            "ping": lambda: "pong",
            "trace": self._trace,
            "stamps": self._stamps,
        }
        self._kinds: list[type] = []
        #: number of the command being handled, for handlers that answer later
        self.number = 0

    def register(self, handlers: Mapping[str, Handler]) -> None:
        """Adds commands."""
        self._handlers.update(handlers)

    def decode(self, frame: bytes) -> Command | None:
        """The command of a frame; None, counted and logged, where it is malformed."""
        try:
            command = CONTROL.decode(frame)
        except MalformedMessage as error:
            self.tally.rejected[error.defect] += 1
            log(f"control: {error}")
            return None
        self.tally.received[Command] += 1
        assert isinstance(command, Command)
        return command

    def run(self, command: Command) -> None:
        """Carries out one command; whatever its handler raises becomes the reply's error."""
        self.number = command.number
        handler = self._handlers.get(command.name)
        try:
            if handler is None:
                raise ValueError(f"no command {command.name!r}")
            arguments = command.arguments
            result = handler(**arguments) if isinstance(arguments, dict) else handler()
        except PeerLost:  # the launcher knows, and hears no excuse
            raise
        except Exception as error:  # the boundary: one command's failure must not end the actor
            log(traceback.format_exc())
            self.answer(command.number, None, f"{type(error).__name__}: {error}"[:4000])
            return
        if result is not LATER:
            self.answer(command.number, result)

    def answer(self, number: int, result: Any, error: str = "") -> None:
        """Sends a reply."""
        self._inbox.send(LAUNCHER, Reply(number, error, result), CONTROL_ANSWER, self.tally)

    def _trace(self, on: bool) -> None:
        """Starts or stops noting when each message crosses this actor's ends of its wires."""
        for tally in self._tallies:
            tally.trace(self._kinds if on else None)

    def _stamps(self) -> dict[str, Any]:
        """What was noted since the last call (`Tally.take_stamps`), as far as it fits, and the names of the kinds."""
        limit = _STAMPS // max(1, 2 * len(self._tallies))
        wires = [taken for tally in self._tallies if (taken := tally.take_stamps(limit)) is not None]
        return {"wires": wires, "kinds": [kind.__name__ for kind in self._kinds]}

    def _counts(self) -> list[dict[str, Any]]:
        # The reply that carries these counts is counted by the launcher after it compared them.
        return [tally.as_dict() for tally in [*self._tallies, self.tally]]
