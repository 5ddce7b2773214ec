"""Landlock: files, and processes outside, that this process can no longer get at."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping

from viommu_actors.confine.calls import syscall
from viommu_actors.spec import landlock, syscalls

_ABSENT = {errno.ENOSYS: "this kernel has no Landlock", errno.EOPNOTSUPP: "Landlock is off on this machine (lsm=)"}


def abi() -> int:
    """The version that the kernel has. Raises OSError, the text of which says why there is none."""
    try:
        return syscall(syscalls.LANDLOCK_CREATE_RULESET, None, 0, landlock.CREATE_RULESET_VERSION)
    except OSError as error:
        raise OSError(error.errno, _ABSENT.get(error.errno or 0, f"Landlock: {error.strerror}")) from None


def restrict(readable: Iterable[str]) -> int:
    """Takes from the calling thread and those it starts all that Landlock can take; returns the ABI.

    What is left is to read in the directories, or the files, of `readable`, as far as they exist. The process must have
    no_new_privs. Raises OSError.
    """
    version = abi()
    attributes = [_until(version, rights) for rights in (landlock.ACCESS_FS, landlock.ACCESS_NET, landlock.SCOPE)]
    packed = landlock.RULESET_ATTR.pack(*attributes)
    ruleset = syscall(syscalls.LANDLOCK_CREATE_RULESET, packed, len(packed), 0)
    try:
        for path in readable:
            _allow(ruleset, path)
        syscall(syscalls.LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _until(version: int, rights: Mapping[int, int]) -> int:
    return sum(bits for since, bits in rights.items() if since <= version)


def _allow(ruleset: int, path: str) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights = landlock.ACCESS_FS_READ_FILE
        if os.path.isdir(path):
            rights |= landlock.ACCESS_FS_READ_DIR
        rule = landlock.PATH_BENEATH_ATTR.pack(rights, place)
        syscall(syscalls.LANDLOCK_ADD_RULE, ruleset, landlock.RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(place)
