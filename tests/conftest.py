"""Every test must leave nothing behind: no child process, no open descriptor, no shared memory."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

SHARED_MEMORY = Path("/dev/shm")
#: A killed child takes a moment until it is gone, and ZeroMQ's I/O thread until it has closed a socket.
PATIENCE = 2.0


class SkipWithoutHypothesis(MetaPathFinder):
    """The suite also runs with pytest and pytest-timeout alone: a module that needs more is skipped, and says so."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "hypothesis":
            pytest.skip("hypothesis is not installed", allow_module_level=True)
        return None


if importlib.util.find_spec("hypothesis") is None:
    sys.meta_path.append(SkipWithoutHypothesis())
else:
    from hypothesis import HealthCheck, settings

    # How long an example takes says how busy the machine is.
    settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    children, descriptors, shared = _children(), _descriptors(), _shared_memory()
    yield
    left: list[str] = []
    deadline = time.monotonic() + PATIENCE
    while True:
        left = [f"process {pid}: {what}" for pid, what in _children().items() if pid not in children]
        left += [f"descriptor {fd}: {what}" for fd, what in _descriptors().items() if descriptors.get(fd) != what]
        left += [f"/dev/shm/{name}" for name in _shared_memory() - shared]
        if not left:
            return
        if time.monotonic() > deadline:
            break
        gc.collect()
        time.sleep(0.02)
    pytest.fail("the test left behind:\n  " + "\n  ".join(left))


def _children() -> dict[int, str]:
    """Processes whose parent is this one, with their command line; a zombie that nobody waited for counts."""
    found: dict[int, str] = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except FileNotFoundError:  # the thread is gone, or the kernel lacks the file
            continue
        for pid in pids:
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                words = []
            found[int(pid)] = b" ".join(words).decode(errors="replace").strip() or "(ended, but not waited for)"
    return found


def _descriptors() -> dict[int, str]:
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that listed the directory
            continue
    return found


def _shared_memory() -> set[str]:
    """Files of this user: other programs of the machine come and go here too."""
    found: set[str] = set()
    for path in SHARED_MEMORY.iterdir() if SHARED_MEMORY.is_dir() else ():
        try:
            if path.stat().st_uid == os.getuid():
                found.add(path.name)
        except FileNotFoundError:
            continue
    return found
