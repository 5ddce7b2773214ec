"""How far a process is confined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What holds the process: Landlock and seccomp, one of them, or neither.
Level = Literal["full", "landlock", "seccomp", "none"]


class Unconfined(Exception):
    """The level that was required is not reached; the text says why."""


@dataclass(frozen=True)
class Confinement:
    """`landlock` is the ABI of the Landlock in force, 0 for none; `why` says what is missing, empty at level full."""

    landlock: int
    seccomp: bool
    why: str

    @property
    def level(self) -> Level:
        if self.landlock:
            return "full" if self.seccomp else "landlock"
        return "seccomp" if self.seccomp else "none"

    @property
    def detail(self) -> str:
        """In words: `Landlock ABI 7, seccomp`."""
        there = [f"Landlock ABI {self.landlock}"] * bool(self.landlock) + ["seccomp"] * self.seccomp
        return "; ".join(filter(None, (", ".join(there), self.why)))
