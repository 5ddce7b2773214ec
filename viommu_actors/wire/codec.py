"""Encoder and validating decoder of a wire, both derived from its message classes.

A message is one frame: a msgpack array `[tag, field, ...]`. The classes are `NamedTuple`s whose
annotations carry the bounds (`spec.fields`); nothing else states them. What a decoder hands out
has the right arity, types (a bool is no int), ranges and lengths, values that fit the size which an
earlier field states, and no trailing bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any, NoReturn, get_args, get_origin, get_type_hints

import msgpack

from viommu_actors.spec.fields import Fits, Length, OneOf, Range

_unpack = msgpack.unpackb

Message = tuple[Any, ...]
#: Longest frame of any wire: a 1 MiB payload and its header. MAXMSGSIZE of every socket.
MAX_FRAME = (1 << 20) + 4096


class Defect(StrEnum):
    """What is wrong with a frame that is no message."""

    NOT_MSGPACK = "not msgpack"
    NO_ARRAY = "no array with a tag"
    UNKNOWN_TAG = "unknown tag"
    ARITY = "wrong number of fields"
    FIELD = "field of a wrong type or out of range"
    #: Of the transport: what never becomes a frame.
    FRAMES = "several frames"
    OVERSIZE = "too long a frame"
    COMMAND = "no frame of a message"


class MalformedMessage(ValueError):
    """A frame that is no message of this wire: which `defect` it has, and in the text what is wrong with it."""

    def __init__(self, defect: Defect, text: str) -> None:
        super().__init__(text)
        self.defect = defect


class Plain:
    """Marks a field that holds any tree of maps, lists, numbers, texts and byte strings."""


class Codec:
    """Codec of the message classes of one direction of one wire, each under its tag (1..127)."""

    def __init__(self, classes: Mapping[int, type[Message]]) -> None:
        self.classes = dict(classes)
        self._readers = {tag: _compile_reader(cls) for tag, cls in self.classes.items()}
        #: what stands before the fields of a message
        self._heads = {cls: (tag,) for tag, cls in self.classes.items()}
        self._pack = msgpack.Packer(autoreset=True).pack

    def encode(self, message: Message) -> bytes:
        """Raises KeyError for a class of another wire. Bounds are the sender's promise, checked on arrival."""
        frame: bytes = self._pack(self._heads[type(message)] + message)
        return frame

    def decode(self, frame: bytes) -> Message:
        """Raises MalformedMessage."""
        try:
            fields = _unpack(frame, use_list=False)
        except (ValueError, TypeError) as error:
            raise MalformedMessage(Defect.NOT_MSGPACK, f"not msgpack: {error}") from None
        if type(fields) is not tuple or not fields:
            raise MalformedMessage(Defect.NO_ARRAY, "not an array with a tag")
        tag = fields[0]
        read = self._readers.get(tag) if type(tag) is int else None
        if read is None:
            raise MalformedMessage(Defect.UNKNOWN_TAG, f"unknown tag {tag!r:.40}")
        return read(fields)


def _compile_reader(cls: type[Message]) -> Callable[[Message], Message]:
    """A function from the unpacked array to the message in it. It raises MalformedMessage for the first problem.

    Compiled from the annotations, as `NamedTuple` compiles its constructor: the hot path pays one
    comparison a field.
    """
    annotations = get_type_hints(cls, include_extras=True)
    hints = {name: annotations[name] for name in cls._fields}  # type: ignore[attr-defined]
    fields = "".join(f"f{index}, " for index in range(len(hints)))
    lines = ["def read(m):", f"    try: _, {fields}= m", "    except ValueError: refuse_arity(m)"]
    for index, (name, hint) in enumerate(hints.items()):
        # A rule about an earlier field may rely on that one's own, which stands before it.
        earlier = {field: f"f{at}" for at, field in enumerate(hints) if at < index}
        condition = _condition(f"f{index}", hint, earlier)
        if condition:
            lines.append(f"    if not ({condition}): refuse({name!r})")
    # The class adds nothing but names: its constructor would take the same tuple apart again.
    lines.append(f"    return new(cls, ({fields}))")

    def refuse_arity(values: Message) -> NoReturn:
        text = f"{cls.__name__}: has {len(values) - 1} fields, not {len(hints)}"
        raise MalformedMessage(Defect.ARITY, text) from None

    def refuse(name: str) -> NoReturn:
        raise MalformedMessage(Defect.FIELD, f"{cls.__name__}: bad {name}")

    namespace: dict[str, Any] = {"cls": cls, "new": tuple.__new__, "refuse": refuse, "refuse_arity": refuse_arity}
    exec("\n".join(lines), namespace)
    read: Callable[[Message], Message] = namespace["read"]
    return read


def _condition(value: str, hint: Any, earlier: Mapping[str, str], depth: int = 0) -> str:
    """Source of an expression that is true where `value` fits the annotation; `earlier` has the fields before it."""
    bounds: list[Any] = []
    if get_origin(hint) is Annotated:
        hint, *bounds = get_args(hint)
    if any(isinstance(bound, Plain) for bound in bounds):
        return ""
    if get_origin(hint) is tuple:
        return _tuple_condition(value, get_args(hint), bounds, earlier, depth)
    if hint not in (int, bytes, str, bool):
        raise TypeError(f"no wire form for {hint!r}")
    parts = [f"type({value}) is {hint.__name__}"]
    for bound in bounds:
        if isinstance(bound, Range):
            parts.append(f"{bound.low} <= {value} <= {bound.high}")
        elif isinstance(bound, Length):
            parts.append(f"{bound.low} <= len({value}) <= {bound.high}")
        elif isinstance(bound, OneOf):
            parts.append(f"{value} in {bound.values}")
        elif isinstance(bound, Fits):
            parts.append(f"0 <= {value} < 1 << 8 * {earlier[bound.size]}")
    return " and ".join(parts)


def _tuple_condition(
    value: str, items: tuple[Any, ...], bounds: list[Any], earlier: Mapping[str, str], depth: int
) -> str:
    parts = [f"type({value}) is tuple"]
    if len(items) == 2 and items[1] is Ellipsis:
        parts += [f"{b.low} <= len({value}) <= {b.high}" for b in bounds if isinstance(b, Length)]
        each = f"x{depth}"
        inner = _condition(each, items[0], earlier, depth + 1)
        if inner:
            parts.append(f"all({inner} for {each} in {value})")
    else:
        parts.append(f"len({value}) == {len(items)}")
        for index, item in enumerate(items):
            inner = _condition(f"{value}[{index}]", item, earlier, depth)
            if inner:
                parts.append(inner)
    return " and ".join(parts)
