"""What a run is doing right now, told on a stream: live on a terminal, a line each elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.live import Live


class Progress:
    """A context manager: each `tell` ends the step before it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._start = time.monotonic()
        self._live = _live(stream)
        self._current: str | None = None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rest()

    def tell(self, step: str) -> None:
        """A new step begins."""
        if self._live is None:
            print(f"{self._elapsed()}  {step}", file=self._stream, flush=True)
            return
        from rich.spinner import Spinner
        from rich.text import Text

        self._end_step()
        self._current = step
        self._live.update(Spinner("dots", Text(step)))

    def rest(self) -> None:
        """Leaves the terminal to others; what is told from here on comes as plain lines."""
        self._end_step()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _end_step(self) -> None:
        if self._live is not None and self._current is not None:
            self._live.console.print(f"{self._elapsed()}  {self._current}", style="bright_black", markup=False)
            self._current = None

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._start:6.2f} s"


def _live(stream: TextIO) -> Live | None:
    """None where there is no terminal, or no rich."""
    if not stream.isatty():
        return None
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return None
    console = Console(file=stream, highlight=False)
    return Live(console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
