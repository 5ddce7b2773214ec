"""The vhost wire: what its messages hold at most, and what a back end may not say."""

from __future__ import annotations

import pytest

from viommu_actors.spec.vhost import MAX_ACCESS, MAX_TAGS
from viommu_actors.wire import vhost as v
from viommu_actors.wire.codec import Codec, MalformedMessage, Message

EVERYTHING = (1 << 64) - 1


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        (v.VHOST_UP, v.MemoryRead(MAX_TAGS - 1, EVERYTHING, MAX_ACCESS)),
        (v.VHOST_UP, v.MemoryWrite(EVERYTHING, bytes(MAX_ACCESS))),
        (v.VHOST_DOWN, v.ReadCompletion(MAX_TAGS - 1, 0, bytes(MAX_ACCESS))),
        (v.VHOST_DOWN, v.IotlbUpdate(0, EVERYTHING, 0, 3)),
        (v.VHOST_DOWN, v.SetVring(1, 32768, EVERYTHING, EVERYTHING, EVERYTHING, 65535)),
    ],
)
def test_the_largest_messages_fit_into_a_frame(codec: Codec, message: Message) -> None:
    frame = codec.encode(message)
    assert len(frame) <= v.VHOST_FRAME
    assert codec.decode(frame) == message


@pytest.mark.parametrize(
    "message",
    [
        v.MemoryRead(0, 0, 0),
        v.MemoryRead(0, 0, MAX_ACCESS + 1),
        v.MemoryRead(MAX_TAGS, 0, 1),
        v.MemoryWrite(0, b""),
        v.MemoryWrite(0, bytes(MAX_ACCESS + 1)),
        v.IotlbMiss(0, 0),
        v.IotlbMiss(0, 4),
        v.IotlbAccessFail(0, 0, 1),
        v.Call(2),
        v.VringBase(-1, 0),
    ],
    ids=repr,
)
def test_a_back_end_that_says_what_cannot_be_is_malformed(message: Message) -> None:
    with pytest.raises(MalformedMessage):
        v.VHOST_UP.decode(v.VHOST_UP.encode(message))
