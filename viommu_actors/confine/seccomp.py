"""Seccomp: the system calls that this process can no longer make."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from viommu_actors.confine.calls import syscall
from viommu_actors.confine.policy import Policy
from viommu_actors.confine.program import ARCHITECTURES, Architecture, encode, program
from viommu_actors.spec import seccomp


def architecture() -> Architecture:
    """This machine's. Raises OSError where its system calls are not known."""
    machine = os.uname().machine
    if machine not in ARCHITECTURES or sys.maxsize < 1 << 32:
        width = struct.calcsize("P") * 8
        raise OSError(errno.ENOSYS, f"seccomp: the system calls of a {width}-bit process on {machine} are not known")
    return ARCHITECTURES[machine]


def probe() -> None:
    """Raises OSError, the text of which says why there are no seccomp filters."""
    number = architecture().numbers["seccomp"]
    try:
        syscall(number, seccomp.GET_ACTION_AVAIL, 0, struct.pack("=I", seccomp.RET_ERRNO))
    except OSError as error:
        raise OSError(error.errno, f"this kernel has no seccomp filters ({error.strerror})") from None


def restrict(policy: Policy) -> None:
    """All threads of this process keep the calls of this policy only. It must have no_new_privs. Raises OSError."""
    probe()
    here = architecture()
    instructions = program(policy, here)
    code = ctypes.create_string_buffer(encode(instructions))
    filter_program = seccomp.PROGRAM.pack(len(instructions), ctypes.addressof(code))
    flags = seccomp.FILTER_FLAG_TSYNC | seccomp.FILTER_FLAG_SPEC_ALLOW
    other = syscall(here.numbers["seccomp"], seccomp.SET_MODE_FILTER, flags, filter_program)
    if other:
        raise OSError(errno.ESRCH, f"seccomp: thread {other} cannot take the filter")
