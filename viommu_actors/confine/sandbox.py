"""The steps by which a process confines itself, in their order.

Before its sockets: descriptors, capabilities, limits, and Landlock, which holds for a thread and those that it starts,
so that libzmq's threads, of a virtual switch, inherit it. After them: seccomp, for all threads, without what making a
socket takes.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Literal

from viommu_actors.confine import landlock, privileges, seccomp
from viommu_actors.confine.level import Confinement, Unconfined
from viommu_actors.confine.policy import policy

#: "auto": as far as the kernel allows; "require": all of it, or not at all; "off": none.
Mode = Literal["auto", "require", "off"]

_OFF = 'sandbox = "off"'
#: Directories on `sys.path` that hold modules alone.
_MODULES = ("lib-dynload", "site-packages", "dist-packages")
#: Where the system keeps the shared objects that extension modules load.
_SHARED_OBJECTS = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")


class Sandbox:
    """Confines this process: `enter`, then make the sockets, then `seal`."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._landlock = 0
        self._why: list[str] = []
        #: /proc/self/task, which Landlock keeps from being opened later
        self._tasks = -1

    def enter(self, keep: Collection[int]) -> None:
        """All but the system calls. Of the descriptors these stay. Raises Unconfined where "require" is not met."""
        if self._mode == "off":
            return
        self._try(lambda: privileges.close_others(keep))
        self._tasks = os.open("/proc/self/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._try(privileges.drop_capabilities)
        self._try(privileges.forgo_new_privileges)
        self._try(privileges.limit_resources)
        self._try(self._restrict_files)

    def seal(self) -> Confinement:
        """The system calls. Raises Unconfined where "require" is not met."""
        if self._mode == "off":
            return Confinement(0, False, _OFF)
        self._try(privileges.limit_processes)
        rules = policy(self._threads(), files=self._landlock > 0)
        os.close(self._tasks)
        sealed = self._try(lambda: seccomp.restrict(rules))
        return Confinement(self._landlock, sealed, "; ".join(self._why))

    def _restrict_files(self) -> None:
        if others := len(self._threads()) - 1:
            raise OSError(errno.EBUSY, f"Landlock would not hold the {others} other threads of this process")
        self._landlock = landlock.restrict(_libraries())

    def _threads(self) -> list[int]:
        """The threads of this process; the main one has the lowest number only as long as numbers do not wrap."""
        own = os.getpid()
        return [own, *(number for name in os.listdir(self._tasks) if (number := int(name)) != own)]

    def _try(self, step: Callable[[], None]) -> bool:
        try:
            step()
        except OSError as error:
            self._why.append(error.strerror or str(error))
            if self._mode == "require":
                raise Unconfined(f'sandbox = "require": {self._why[-1]}') from None
            return False
        return True


def lacking() -> str:
    """Why this kernel does not allow level full; empty where it does."""
    reasons = []
    for probe in (landlock.abi, seccomp.probe):
        try:
            probe()
        except OSError as error:
            reasons.append(error.strerror or str(error))
    return "; ".join(reasons)


def _libraries() -> Iterator[str]:
    """What an import may still read: modules of this interpreter, of its environment and of this package."""
    yield os.path.dirname(os.__file__)
    yield from (path for path in sys.path if os.path.basename(path) in _MODULES)
    yield os.path.dirname(os.path.dirname(__file__))
    yield from _SHARED_OBJECTS
