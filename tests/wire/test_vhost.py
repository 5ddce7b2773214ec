"""The vhost wire: what its messages hold at most, and what a back end may not say."""

from __future__ import annotations

import pytest

from viommu_actors.spec import vhost
from viommu_actors.spec.vhost import MAX_ACCESS, MAX_TAGS
from viommu_actors.wire import vhost as v
from viommu_actors.wire.codec import Codec, MalformedMessage, Message

EVERYTHING = (1 << 64) - 1


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        (v.VHOST_UP, vhost.MemoryRead(MAX_TAGS - 1, EVERYTHING, MAX_ACCESS)),
        (v.VHOST_UP, vhost.MemoryWrite(EVERYTHING, bytes(MAX_ACCESS))),
        (v.VHOST_DOWN, vhost.ReadCompletion(MAX_TAGS - 1, 0, bytes(MAX_ACCESS))),
        (v.VHOST_DOWN, vhost.IotlbUpdate(0, EVERYTHING, 0, 3)),
        (v.VHOST_DOWN, vhost.SetVring(1, 32768, EVERYTHING, EVERYTHING, EVERYTHING, 65535)),
    ],
)
def test_the_largest_messages_fit_into_a_frame(codec: Codec, message: Message) -> None:
    frame = codec.encode(message)
    assert len(frame) <= v.VHOST_FRAME
    assert codec.decode(frame) == message


@pytest.mark.parametrize(
    "message",
    [
        vhost.MemoryRead(0, 0, 0),
        vhost.MemoryRead(0, 0, MAX_ACCESS + 1),
        vhost.MemoryRead(MAX_TAGS, 0, 1),
        vhost.MemoryWrite(0, b""),
        vhost.MemoryWrite(0, bytes(MAX_ACCESS + 1)),
        vhost.IotlbMiss(0, 0),
        vhost.IotlbMiss(0, 4),
        vhost.IotlbAccessFail(0, 0, 1),
        vhost.Call(2),
        vhost.VringError(2),
        vhost.VringBase(-1, 0),
    ],
    ids=repr,
)
def test_a_back_end_that_says_what_cannot_be_is_malformed(message: Message) -> None:
    with pytest.raises(MalformedMessage):
        v.VHOST_UP.decode(v.VHOST_UP.encode(message))
