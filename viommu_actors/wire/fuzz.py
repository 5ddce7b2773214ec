"""Hostile messages from a seed: what somebody may put on a wire who knows its codec, and means no good.

Bytes of any content, messages with a byte or a field gone wrong, legal ones with extreme values, earlier ones once
more, frames that are too long, messages of several frames. The same seed gives the same messages.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import msgpack

from viommu_actors.spec.fields import Fits, Length, OneOf, Range
from viommu_actors.wire.codec import Codec, Message

#: Frames of the message that has most of them.
MOST_FRAMES: Final = 50
_KEPT = 64
#: Too long a frame costs as much as a thousand others.
_OVERSIZE_IN = 500


def hostile(seed: int, codec: Codec, limit: int) -> Iterator[list[bytes]]:
    """Messages without end, each as its frames; `limit` is how long the other end lets a frame be."""
    rng = random.Random(seed)
    classes = [(cls, _hints(cls)) for cls in codec.classes.values()]
    sent: list[bytes] = []
    while True:
        cls, hints = rng.choice(classes)
        frame = codec.encode(cls(*(_value(rng, hint) for hint in hints)))
        if not rng.randrange(_OVERSIZE_IN):
            frame = bytes(rng.randrange(limit + 1, 4 * limit))
        elif kind := rng.randrange(6):
            frame = _broken(rng, kind, frame, sent)
        sent.append(frame)
        del sent[:-_KEPT]
        frames = [frame]
        if not rng.randrange(20):
            frames += [frame[: rng.randrange(64)] for _ in range(rng.randrange(1, MOST_FRAMES))]
        yield frames


def _broken(rng: random.Random, kind: int, frame: bytes, sent: list[bytes]) -> bytes:
    """A frame with something wrong, or one that was there before."""
    match kind:
        case 1:
            return rng.randbytes(rng.randrange(64))
        case 2:
            at = rng.randrange(len(frame))
            return frame[:at] + rng.randbytes(1) + frame[at + rng.randrange(2) :]
        case 3:
            return frame[: rng.randrange(len(frame))] if rng.random() < 0.5 else frame + rng.randbytes(1)
        case 4:
            fields = list(msgpack.unpackb(frame))
            fields[rng.randrange(len(fields))] = _junk(rng, 3)
            return _pack(fields + [0] * (not rng.randrange(8)))
        case _:
            return rng.choice(sent) if sent else frame


def _pack(tree: Any) -> bytes:
    packed: bytes = msgpack.packb(tree)
    return packed


def _junk(rng: random.Random, depth: int) -> Any:
    numbers = [-1, 0, 1 << 31, (1 << 64) - 1, -(1 << 63), 1.5]
    choices: list[Any] = [None, True, *numbers, "text", b"bytes", bytes(4097), [], {}]
    if depth and rng.random() < 0.3:
        return [_junk(rng, depth - 1) for _ in range(rng.randrange(4))]
    return rng.choice(choices)


def _hints(cls: type[Message]) -> list[Any]:
    return list(get_type_hints(cls, include_extras=True).values())


def _value(rng: random.Random, hint: Any) -> Any:
    """A value within the bounds of a field, at their ends as often as not."""
    bound: Any = None
    if get_origin(hint) is Annotated:
        hint, bound = get_args(hint)[:2]
    if isinstance(bound, OneOf):
        return rng.choice(bound.values)
    if isinstance(bound, Range):
        few = min(bound.high, max(bound.low, rng.randrange(16)))
        return rng.choice((bound.low, bound.high, few, rng.randint(bound.low, bound.high)))
    if isinstance(bound, Fits):
        return rng.randrange(256)
    if get_origin(hint) is tuple:
        items = get_args(hint)
        if items[-1] is Ellipsis:
            items = (items[0],) * rng.choice((0, 1, rng.randrange(20)))
        return tuple(_value(rng, item) for item in items)
    if hint is bool:
        return rng.random() < 0.5
    assert isinstance(bound, Length)
    some = rng.randbytes(rng.choice((bound.low, min(bound.low + 4, bound.high), rng.randint(0, bound.high) & 0x3F)))
    return some if hint is bytes else some.hex()[: max(bound.low, len(some))]
