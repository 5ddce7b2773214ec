"""Which system calls a confined process keeps: those of an interpreter that computes, and serves sockets it has.

Everything else is refused, what a later kernel adds too. What matters most is what is not here: `socket`, `connect`,
`bind` and `listen`; `fork`, `clone` and `execve`, so that no thread comes to those that are there; `kill`, `ptrace`,
`process_vm_*`, `pidfd_*`; `prctl` but for a name, and `seccomp`; `mount`, `unshare`, `setns`; `bpf`, `io_uring_*`,
`userfaultfd`, `keyctl`, `memfd_create`; `openat2`, whose flags a filter cannot see.
"""

from __future__ import annotations

import fcntl
import os
import socket
import termios
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from viommu_actors.spec import privileges


class OneOf(NamedTuple):
    """The low 32 bits of an argument, which are all that the kernel takes of an `int`, are one of these."""

    argument: int
    values: tuple[int, ...]


class NoneOf(NamedTuple):
    """An argument has none of these low 32 bits."""

    argument: int
    bits: int


class Null(NamedTuple):
    """All 64 bits of an argument are zero."""

    argument: int


Check = OneOf | NoneOf | Null
#: System call -> what must hold of its arguments.
Policy = Mapping[str, tuple[Check, ...]]

#: What for -> the calls, which are harmless whatever their arguments.
_ALWAYS: Final = {
    "descriptors that it has": "read readv pread64 write writev close fstat lseek fadvise64 dup shutdown",
    "sockets that it has": "accept accept4 recvfrom recvmsg sendto sendmsg getsockopt getsockname getpeername",
    "waiting": "poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2",
    "memory": "mmap munmap mremap mprotect madvise brk membarrier",
    "threads that it has": "futex futex_waitv futex_wake futex_wait futex_requeue set_robust_list rseq"
    " sched_yield sched_getaffinity sched_getparam sched_getscheduler",
    "signals to itself": "rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall",
    "time": "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times",
    "itself": "getpid getppid gettid getuid geteuid getgid getegid getcwd getrusage getrlimit exit exit_group",
    "the machine": "uname sysinfo getrandom",
    # Of a file that Landlock hides they show no more than that it is there.
    "names of files": "stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents64",
}
_NOT_JUST_READING: Final = (
    os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_PATH | os.O_TMPFILE & ~os.O_DIRECTORY
)

#: Not F_SETOWN and F_SETSIG, by which a descriptor sends any signal to any process of the user.
_FCNTL: Final = (fcntl.F_DUPFD, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL, fcntl.F_DUPFD_CLOEXEC)
#: Not TIOCSTI and FIOSETOWN.
_IOCTL: Final = (termios.FIOCLEX, termios.FIONCLEX, termios.FIONBIO, termios.FIONREAD, termios.TCGETS)


def policy(threads: Sequence[int], files: bool) -> Policy:
    """For the process of these threads, the main one first, that may still be on their way into their routines.

    `files`: it may open files, for reading, because Landlock says which.
    """
    checked: dict[str, tuple[Check, ...]] = {
        "fcntl": (OneOf(1, _FCNTL),),
        "ioctl": (OneOf(1, _IOCTL),),
        "setsockopt": (OneOf(1, (socket.SOL_SOCKET,)),),
        # What ZeroMQ's threads, of a virtual switch, do of themselves when they begin.
        "sched_setscheduler": (OneOf(0, tuple(threads[1:])),),
        "prctl": (OneOf(0, (privileges.PR_SET_NAME,)),),
        # abort() signals itself so.
        "tgkill": (OneOf(0, (threads[0],)),),
        # To read its own limits.
        "prlimit64": (OneOf(0, (0, threads[0])), Null(2)),
    }
    if files:
        checked |= {"open": (NoneOf(1, _NOT_JUST_READING),), "openat": (NoneOf(2, _NOT_JUST_READING),)}
    return dict.fromkeys((name for names in _ALWAYS.values() for name in names.split()), ()) | checked
