"""Work that waits: generators which yield what they wait for, and go on as soon as it is over."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial


class Wait:
    """What one task waits for."""

    __slots__ = ("over", "resume")

    def __init__(self) -> None:
        self.over = False
        self.resume: Callable[[], None] | None = None

    def finish(self) -> None:
        """It has come; who waits for it goes on before this returns."""
        self.over = True
        resume, self.resume = self.resume, None
        if resume is not None:
            resume()


Task = Generator[Wait, None, None]


class Tasks:
    """The tasks of one owner, which can be ended wherever they are."""

    def __init__(self) -> None:
        self._running: set[Task] = set()

    def start(self, task: Task) -> Task:
        """Runs it until it waits for the first time."""
        self._running.add(task)
        self._advance(task)
        return task

    def cancel(self, task: Task) -> None:
        """It does not go on; what it waits for may still come. One that runs now ends at its next wait."""
        self._running.discard(task)
        with suppress(ValueError):
            task.close()

    def cancel_all(self) -> None:
        """Ends every one of them, as `cancel` does."""
        for task in list(self._running):
            self.cancel(task)

    def _advance(self, task: Task) -> None:
        for wait in task:
            if task not in self._running:
                task.close()
                return
            if not wait.over:
                wait.resume = partial(self._advance, task)
                return
        self._running.discard(task)
