"""What every actor process does first and last: read its configuration, bind its life to the launcher's.

The configuration is one JSON object on standard input. Two independent means end an actor whose
launcher is gone: the parent-death signal, and the hang-up of a lifeline pipe, which raises SIGIO.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import signal
import sys
import time
from typing import Any

from viommu_actors.memory import Slot
from viommu_actors.wire.sockets import Listener

_PR_SET_PDEATHSIG = 1


def read_configuration() -> dict[str, Any]:
    """The object that the launcher wrote for this actor."""
    configuration: dict[str, Any] = json.load(sys.stdin)
    return configuration


def end_with_launcher(launcher_pid: int, lifeline_fd: int) -> None:
    """From now on this process does not outlive its launcher; exits at once where it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Opened anew: who is signalled is said for each opening of a file, and all actors inherited the same one.
    own = os.open(f"/proc/self/fd/{lifeline_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.dup2(own, lifeline_fd, inheritable=False)
    os.close(own)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, os.O_RDONLY | os.O_NONBLOCK | os.O_ASYNC)
    # Between the fork and the calls above the launcher may have died: its pid tells.
    if os.getppid() != launcher_pid:
        os._exit(1)


def settle(cpus: list[int] | None) -> None:
    """Runs on these CPUs alone, the threads that come later too; None leaves it to the scheduler."""
    if cpus is not None:
        os.sched_setaffinity(0, cpus)


def ignore_terminal() -> None:
    """A Ctrl-C reaches the whole process group; only the launcher answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def log(line: str) -> None:
    """A line of this actor's log, stamped with the monotonic clock in seconds."""
    print(f"[{time.monotonic():12.6f}] {line}", file=sys.stderr, flush=True)


def inbox_listener(configuration: dict[str, Any], key: str = "inbox") -> Listener:
    """The inherited listening descriptor under `key`."""
    return Listener(configuration[key]["fd"], configuration[key]["address"])


def open_slots(descriptions: list[dict[str, Any]], base: str) -> list[Slot]:
    """Maps memory slots {"name", "fd", "size", base} and closes their descriptors.

    `base` names the key of the address at which this actor sees the slot: "gpa" or "hpa".
    """
    slots = []
    for slot in descriptions:
        mapping = mmap.mmap(slot["fd"], slot["size"])
        os.close(slot["fd"])
        slots.append(Slot(slot["name"], slot[base], memoryview(mapping)))
    return slots


def anonymous_slot(name: str, base: int, size: int) -> Slot:
    """RAM that no other process can have."""
    return Slot(name, base, memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)))
