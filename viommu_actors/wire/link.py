"""Frames of a link; its messages are TLPs, and stand in `spec.tlp`."""

from __future__ import annotations

from viommu_actors.spec import tlp
from viommu_actors.wire.codec import Codec

#: Bytes of the longest frame on a link, with room for a payload that is too long to be told as such.
LINK_FRAME = 2 * tlp.PAGE
LINK_UP = Codec(
    {
        1: tlp.MemRead,
        2: tlp.MemWrite,
        3: tlp.Atomic,
        4: tlp.Completion,
        5: tlp.ConfigRequest,
        7: tlp.InvalidateCompletion,
        8: tlp.IntxMessage,
    }
)
LINK_DOWN = Codec(
    {
        1: tlp.Completion,
        2: tlp.MmioRead,
        3: tlp.MmioWrite,
        4: tlp.CfgRead,
        5: tlp.CfgWrite,
        6: tlp.HotReset,
        7: tlp.InvalidateRequest,
    }
)
