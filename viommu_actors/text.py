"""Text of others."""

from __future__ import annotations


def printable(text: str) -> str:
    """As one line that a terminal may show: control characters are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
