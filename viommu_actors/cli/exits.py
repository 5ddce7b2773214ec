"""Exit statuses of every command."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What a command's status means."""

    AS_EXPECTED = 0
    DIFFERS = 1
    REFUSED = 2
    DIED = 3
    INTERRUPTED = 130
