"""Nearest names, for what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(wrong: str, known: Iterable[str]) -> str | None:
    """`did you mean "x"?`, or None where nothing is near."""
    from difflib import get_close_matches  # only ever needed for a file that is refused

    near = get_close_matches(wrong.lower(), {name.lower(): name for name in known}, n=1)
    return next((f'did you mean "{name}"?' for name in known if near and name.lower() == near[0]), None)
