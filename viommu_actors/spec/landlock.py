"""Landlock: include/uapi/linux/landlock.h and Documentation/userspace-api/landlock.rst, up to ABI 7 (Linux 6.18)."""

from __future__ import annotations

import struct
from typing import Final

CREATE_RULESET_VERSION: Final = 1 << 0
RULE_PATH_BENEATH: Final = 1

#: struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped.
RULESET_ATTR: Final = struct.Struct("=QQQ")
#: struct landlock_path_beneath_attr, packed: allowed_access, parent_fd.
PATH_BENEATH_ATTR: Final = struct.Struct("=Qi")

ACCESS_FS_READ_FILE: Final = 1 << 2
ACCESS_FS_READ_DIR: Final = 1 << 3

#: ABI -> the rights that can be taken away since then: EXECUTE to MAKE_SYM, REFER, TRUNCATE, IOCTL_DEV.
ACCESS_FS: Final = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
#: BIND_TCP and CONNECT_TCP.
ACCESS_NET: Final = {4: 0b11}
#: ABSTRACT_UNIX_SOCKET and SIGNAL: towards processes that are not confined alike.
SCOPE: Final = {6: 0b11}
