"""How far a long measurement is: one line that is drawn anew on a terminal, a line at every quarter elsewhere."""

from __future__ import annotations

from typing import TextIO

_WIDTH = 30
_STEPS = 4


class ProgressBar:
    """`show` what is being done and which part of all is done (0 to 1); `clear` before anybody else writes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._told: tuple[str, int] | None = None

    def show(self, part: float, what: str) -> None:
        part = min(max(part, 0.0), 1.0)
        if self._live:
            filled = int(_WIDTH * part)
            self._stream.write(f"\r\x1b[K[{'#' * filled}{'-' * (_WIDTH - filled)}] {part:4.0%} {what}")
        else:
            step = what.partition(":")[0], int(_STEPS * part)
            if step == self._told:
                return
            self._told = step
            self._stream.write(f"{part:4.0%}  {what}\n")
        self._stream.flush()

    def clear(self) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
