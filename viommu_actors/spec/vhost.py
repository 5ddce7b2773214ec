"""The vhost protocol's numbers (https://www.qemu.org/docs/master/interop/vhost-user.html, linux/vhost_types.h)."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


class Access(IntFlag):
    """Leave that a device-IOTLB entry gives, or that a miss asks for (VHOST_ACCESS_RO, WO, RW)."""

    READ = 1 << 0
    WRITE = 1 << 1
    BOTH = READ | WRITE


class ReadStatus(IntEnum):
    """What became of a read of guest memory."""

    DONE = 0
    #: The vIOMMU blocked it, nothing is there, or the front end has cut its back end off.
    FAILED = 1


#: Bytes of one read or write of guest memory.
MAX_ACCESS: Final = 4096
#: Reads that a back end may have on the way at a time, each with a tag of its own below this.
MAX_TAGS: Final = 1024
