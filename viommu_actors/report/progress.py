"""What a run is doing right now, told on a stream: live on a terminal, a line each elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status


class Progress:
    """A context manager: each `tell` ends the step before it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._start = time.monotonic()
        self._live = _live(stream)
        self._current: str | None = None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live[1].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live[1].stop()
            self._end_step()

    def tell(self, step: str) -> None:
        """A new step begins."""
        if self._live is None:
            print(f"{self._elapsed()}  {step}", file=self._stream, flush=True)
            return
        self._end_step()
        from rich.markup import escape

        self._current = step
        self._live[1].update(escape(step))

    def _end_step(self) -> None:
        if self._live is not None and self._current is not None:
            self._live[0].print(f"{self._elapsed()}  {self._current}", style="bright_black", markup=False)
            self._current = None

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._start:6.2f} s"


def _live(stream: TextIO) -> tuple[Console, Status] | None:
    """None where there is no terminal, or no rich."""
    if not stream.isatty():
        return None
    try:
        from rich.console import Console
        from rich.status import Status
    except ImportError:
        return None
    console = Console(file=stream, highlight=False)
    return console, Status("starting", console=console)
