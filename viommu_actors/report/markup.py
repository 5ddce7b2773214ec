"""Elements of HTML and SVG. What is no `Markup` yet is text, and escaped: topology files and logs are not trusted."""

from __future__ import annotations

import html
import re

#: Characters that XML does not have at all, escaped or not.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

#: Elements of HTML that have no end tag.
_VOID = frozenset(["meta"])
#: About what a character of an SVG's text takes, in pixels.
_WIDE = 7.4


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Readable as HTML and as XML, inside of elements and of quoted attributes."""
    return text if isinstance(text, Markup) else Markup(html.escape(_FORBIDDEN.sub("\ufffd", text)))


def join(*parts: str) -> Markup:
    return Markup("".join(escape(part) for part in parts))


def element(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """`class_` is `class`, `stroke_width` is `stroke-width`; an attribute that is None is left out."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{said}/>" if name in _VOID else f"<{name}{said}>{join(*children)}</{name}>")


def svg_text(x: float, y: float, words: str, kind: str, room: float | None = None) -> Markup:
    """Squeezed where it would be wider than `room`, in pixels."""
    squeeze = room is not None and len(words) * _WIDE > room
    length, adjust = (room, "spacingAndGlyphs") if squeeze else (None, None)
    return element("text", escape(words), x=x, y=y, class_=kind, textLength=length, lengthAdjust=adjust)


def _value(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.10g}"
