"""What a process gives up that no filter has to refuse any more: descriptors, capabilities, resources."""

from __future__ import annotations

import os
import resource
from collections.abc import Collection
from contextlib import suppress

from viommu_actors.confine.calls import capset, prctl
from viommu_actors.spec import privileges

_MIB = 1 << 20
#: An honest device takes a thirtieth of the data and of the addresses, a virtual switch with libzmq's threads a tenth.
#: They write nothing to a file but their log.
_LIMITS = {
    resource.RLIMIT_DATA: 512 * _MIB,
    resource.RLIMIT_AS: 1024 * _MIB,
    resource.RLIMIT_FSIZE: 16 * _MIB,
    resource.RLIMIT_NOFILE: 128,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_MSGQUEUE: 0,
}


def close_others(keep: Collection[int]) -> None:
    """Leaves open the standard streams and these descriptors; standard input becomes empty."""
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, *keep}:
        with suppress(OSError):  # the one that listed the directory is gone
            os.close(fd)
    empty = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(empty, 0, inheritable=False)
    os.close(empty)


def drop_capabilities() -> None:
    """Even root is left with what belongs to its user alone; the ambient ones go with the inheritable."""
    for capability in range(privileges.CAPABILITY_LIMIT):
        # Neither those that the kernel does not know nor, without CAP_SETPCAP, those that are there can be dropped.
        with suppress(OSError):
            prctl(privileges.PR_CAPBSET_DROP, capability)
    header = privileges.CAPABILITY_HEADER.pack(privileges.CAPABILITY_VERSION_3, 0)
    capset(header, privileges.CAPABILITY_DATA.pack(*[0] * 6))


def forgo_new_privileges() -> None:
    """No program that it could execute would give it more than it has; Landlock and seccomp ask for it."""
    prctl(privileges.PR_SET_NO_NEW_PRIVS, 1)


def limit_resources() -> None:
    """Memory, size of its log, number of descriptors; no core file, no message queue."""
    for kind, most in _LIMITS.items():
        _lower(kind, most)


def limit_processes() -> None:
    """Starts no process and no thread any more, unless it is root, who has no such limit."""
    _lower(resource.RLIMIT_NPROC, 0)


def _lower(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (bound, bound))
