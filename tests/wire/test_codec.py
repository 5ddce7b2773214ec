"""The codec against msgspec's tagged array structs, an independent encoder and decoder of the same form."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viommu_actors.spec.fields import Fits, OneOf, Range
from viommu_actors.wire import link, messages, vhost
from viommu_actors.wire.codec import Codec, MalformedMessage, Message, Plain

CODECS = {
    name: value for wires in (link, messages, vhost) for name, value in vars(wires).items() if isinstance(value, Codec)
}
MESSAGES = [(codec, tag, cls) for codec in CODECS.values() for tag, cls in codec.classes.items()]
I64, U64 = 2**63 - 1, 2**64 - 1


def _values(hint: Any) -> st.SearchStrategy[Any]:
    bounds: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        bounds = tuple(rest)
    if any(isinstance(bound, Plain) for bound in bounds):
        return st.dictionaries(st.text(max_size=4), st.integers(0, I64), max_size=3)
    bound = bounds[0] if bounds else None
    if isinstance(bound, OneOf):
        return st.sampled_from(bound.values)
    if isinstance(bound, Fits):
        return st.integers(0, 0xFF)
    if get_origin(hint) is tuple:
        items = get_args(hint)
        if len(items) == 2 and items[1] is Ellipsis:
            low, high = (bound.low, bound.high) if bound else (0, 4)
            return st.lists(_values(items[0]), min_size=low, max_size=max(low, min(4, high))).map(tuple)
        return st.tuples(*map(_values, items))
    if hint is int:
        return st.integers(bound.low, bound.high)
    if hint is bool:
        return st.booleans()
    strategy = st.binary if hint is bytes else st.text
    return strategy(min_size=bound.low, max_size=min(bound.high, bound.low + 40))  # type: ignore[operator]


def _oracle(cls: type[Message], tag: int) -> Any:
    def meta(hint: Any) -> Any:
        if get_origin(hint) is not Annotated:
            if get_origin(hint) is tuple:
                items = get_args(hint)
                return tuple[tuple(item if item is Ellipsis else meta(item) for item in items)]  # type: ignore[misc]
            return hint
        base, bound = get_args(hint)
        if isinstance(bound, Plain):
            return Any
        if isinstance(bound, OneOf):
            return Literal[bound.values]
        if isinstance(bound, Fits):
            return Annotated[base, msgspec.Meta(ge=0)]
        if isinstance(bound, Range):
            high = None if bound.high > I64 else bound.high
            return Annotated[base, msgspec.Meta(ge=bound.low, le=high)]
        return Annotated[meta(base), msgspec.Meta(min_length=bound.low, max_length=bound.high)]

    fields = [
        (name, meta(hint))
        for name, hint in get_type_hints(cls, include_extras=True).items()
        if name in cls._fields  # type: ignore[attr-defined]
    ]
    return msgspec.defstruct(cls.__name__, fields, tag=tag, array_like=True, forbid_unknown_fields=True)


ORACLES = {(id(codec), tag): _oracle(cls, tag) for codec, tag, cls in MESSAGES}


@given(st.data(), st.sampled_from(MESSAGES))
def test_encodes_as_msgspec_does_and_back(data: st.DataObject, entry: tuple[Codec, int, type[Message]]) -> None:
    codec, tag, cls = entry
    hints = get_type_hints(cls, include_extras=True)
    values = [data.draw(_values(hints[name])) for name in cls._fields]  # type: ignore[attr-defined]
    message = cls(*values)
    frame = codec.encode(message)
    assert frame == msgspec.msgpack.encode(ORACLES[id(codec), tag](*values))
    decoded = codec.decode(frame)
    assert type(decoded) is cls
    assert decoded == message


def _values_fit(cls: type[Message], values: list[Any]) -> bool:
    """What msgspec has no word for: an integer has as many bytes as another field says."""
    fields = dict(zip(cls._fields, values, strict=True))  # type: ignore[attr-defined]
    for name, hint in get_type_hints(cls, include_extras=True).items():
        for bound in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
            if isinstance(bound, Fits) and fields[name] >= 1 << 8 * fields[bound.size]:
                return False
    return True


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), U64) | st.binary(max_size=8) | st.text(max_size=4) | st.floats(),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=8,
)


@given(st.data(), st.sampled_from(MESSAGES))
def test_accepts_exactly_what_msgspec_accepts(data: st.DataObject, entry: tuple[Codec, int, type[Message]]) -> None:
    codec, tag, cls = entry
    hints = get_type_hints(cls, include_extras=True)
    values: list[Any] = [data.draw(_values(hints[name])) for name in cls._fields]  # type: ignore[attr-defined]
    for index in range(len(values)):
        if data.draw(st.booleans()):
            values[index] = data.draw(_JUNK)
    values += data.draw(st.lists(_JUNK, max_size=1))
    frame = msgpack.packb([tag, *values])
    try:
        expected = list(msgspec.structs.astuple(msgspec.msgpack.decode(frame, type=ORACLES[id(codec), tag])))
        if not _values_fit(cls, expected):
            expected = None
    except (msgspec.ValidationError, msgspec.DecodeError):
        expected = None
    try:
        observed: Any = codec.decode(frame)
    except MalformedMessage:
        assert expected is None
    else:
        assert expected is not None
        assert msgpack.packb(list(observed)) == msgpack.packb(expected)


@given(st.binary(max_size=64))
def test_random_bytes_never_raise_anything_else(frame: bytes) -> None:
    for codec in CODECS.values():
        with suppress(MalformedMessage):
            codec.decode(frame)


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", b"\x90", msgpack.packb([99]), msgpack.packb([True, 0]), msgpack.packb({1: 2}), b"\x91" * 5000],
    ids=["empty", "reserved", "no tag", "unknown tag", "bool tag", "map", "deep"],
)
def test_what_is_no_message_is_refused(frame: bytes) -> None:
    with pytest.raises(MalformedMessage):
        link.LINK_UP.decode(frame)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("write", [messages.TrapWrite, messages.DirectWrite])
def test_an_access_has_the_size_of_one_and_a_value_of_that_size(write: type[Message], size: int) -> None:
    codec = messages.TRAP if write is messages.TrapWrite else messages.DIRECT
    address = (0xC000_0000,) if write is messages.TrapWrite else (bytes(16), 8)
    for value in (0, 1, (1 << 8 * size) - 1, 1 << 8 * size, (1 << 8 * size) + 0xFF, -1):
        if not -(2**63) <= value <= U64:
            continue
        message = write(*address, size, value)  # type: ignore[call-arg]
        frame = codec.encode(message)
        if size in (1, 2, 4, 8) and 0 <= value < 1 << 8 * size:
            assert codec.decode(frame) == message
        else:
            with pytest.raises(MalformedMessage):
                codec.decode(frame)


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(MalformedMessage):
        messages.INJECT.decode(messages.INJECT.encode(messages.Inject(3)) + b"\0")
