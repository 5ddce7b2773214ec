"""Frames of the vhost wire; its messages stand in `spec.vhost`."""

from __future__ import annotations

from viommu_actors.spec import vhost
from viommu_actors.wire.codec import Codec

#: Bytes of the longest frame either way, with room for one that is too long to be told as such.
VHOST_FRAME = 2 * vhost.MAX_ACCESS
VHOST_DOWN = Codec(
    {
        1: vhost.GetFeatures,
        2: vhost.SetFeatures,
        3: vhost.SetVring,
        4: vhost.StartVring,
        5: vhost.StopVring,
        6: vhost.Kick,
        7: vhost.IotlbUpdate,
        8: vhost.IotlbInvalidate,
        9: vhost.ReadCompletion,
        10: vhost.Reset,
    }
)
VHOST_UP = Codec(
    {
        1: vhost.Features,
        2: vhost.VringBase,
        3: vhost.IotlbMiss,
        4: vhost.IotlbAccessFail,
        5: vhost.IotlbInvalidated,
        6: vhost.MemoryRead,
        7: vhost.MemoryWrite,
        8: vhost.Call,
        9: vhost.VringError,
    }
)
