"""What a process may give up: linux/prctl.h, linux/capability.h and linux/personality.h."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

PR_SET_NAME: Final = 15
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38

#: Of what is executed: not placed at random.
ADDR_NO_RANDOMIZE: Final = 0x004_0000
#: No execution domain: changes nothing.
PERSONALITY_ASK: Final = 0xFFFF_FFFF

#: struct __user_cap_header_struct: version, pid.
CAPABILITY_HEADER: Final = struct.Struct("=Ii")
CAPABILITY_VERSION_3: Final = 0x2008_0522
#: Two of struct __user_cap_data_struct: effective, permitted, inheritable, for 32 capabilities each.
CAPABILITY_DATA: Final = struct.Struct("=6I")
CAPABILITY_LIMIT: Final = 64


class Capability(IntEnum):
    """Of a process's capabilities those that a kernel here asks for."""

    #: Opens files whatever their mode: what is left to root in /dev and /sys.
    DAC_OVERRIDE = 1
    SYS_RAWIO = 17
    SYS_ADMIN = 21
