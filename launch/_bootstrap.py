"""Makes the project's own `.venv` where it is missing or stale, then becomes its Python.

Standard library only, and readable by any Python 3.6 or later, so that an old one can say what it lacks.
The environment is ready when `.venv/launch.stamp` says that it was finished for this very `pyproject.toml`, in this
folder, by the interpreter that it still has, with at least the extras asked for. The stamp is emptied before a change
and written after it: whatever is interrupted is done again.
"""

import os
import sys
from typing import FrozenSet, Iterable, List, NamedTuple, NoReturn, Optional

OLDEST = (3, 11)
NEWER = ["python3.%d" % minor for minor in range(16, OLDEST[1] - 1, -1)]
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
#: Wanted, but a machine that cannot have them goes on without.
OPTIONAL = frozenset(["ui"])
REFUSED, INTERRUPTED = 2, 130


class Unable(Exception):
    """Why there is no environment, in one line."""


class Stamp(NamedTuple):
    """What an environment was finished for."""

    root: str
    python: str
    extras: FrozenSet[str]
    project: str

    def text(self) -> str:
        return "\n".join([self.root, self.python, " ".join(sorted(self.extras)), self.project])


class Environment:
    """`.venv` of the project in `root`."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.path = os.path.join(root, ".venv")
        self.python = os.path.join(self.path, "bin", "python")
        self.stamp_path = os.path.join(self.path, "launch.stamp")

    def is_ready(self, extras: Iterable[str]) -> bool:
        stamp = self.stamp()
        return stamp is not None and stamp == self.wanted(stamp.extras) and stamp.extras >= frozenset(extras)

    def is_sound(self) -> bool:
        """Whether a finished environment is there that only lacks an extra or an edit of pyproject.toml."""
        stamp = self.stamp()
        return stamp is not None and stamp[:2] == self.wanted(stamp.extras)[:2]

    def stamp(self) -> Optional[Stamp]:
        """None where there is none, or an empty one."""
        try:
            with open(self.stamp_path, encoding="utf-8") as file:
                root, python, extras, project = file.read().split("\n", 3)
        except (OSError, ValueError):
            return None
        return Stamp(root, python, frozenset(extras.split()), project)

    def wanted(self, extras: Iterable[str]) -> Stamp:
        python = os.path.realpath(self.python)
        with open(os.path.join(self.root, "pyproject.toml"), encoding="utf-8") as file:
            return Stamp(self.root, python if os.path.exists(python) else "", frozenset(extras), file.read())

    def write_stamp(self, text: str) -> None:
        with open(self.stamp_path + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(self.stamp_path + ".new", self.stamp_path)


def launch(arguments: List[str], extras: Iterable[str] = (), cwd: Optional[str] = None) -> NoReturn:
    """Becomes `.venv/bin/python` with these arguments; with `cwd`, in that directory."""
    environment = Environment(ROOT)
    wanted = OPTIONAL | frozenset(extras)
    try:
        if not environment.is_ready(wanted):
            _use_new_python()
            _prepare(environment, wanted)
        if cwd is not None:
            os.chdir(cwd)
        os.execv(environment.python, [environment.python, *arguments])
    except (Unable, OSError) as error:
        say(str(error))
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        say("interrupted; the next launch begins anew")
        sys.exit(INTERRUPTED)


def _use_new_python() -> None:
    """Goes on under a Python that is new enough, or raises Unable."""
    if sys.version_info >= OLDEST:
        return
    import shutil

    for name in NEWER:
        found = shutil.which(name)
        # A pyenv shim is there for every version, and fails for those that are not chosen.
        if found and os.spawnv(os.P_WAIT, found, [found, "-c", ""]) == 0:
            os.execv(found, [found, *sys.argv])
    version = "%d.%d.%d" % sys.version_info[:3]
    raise Unable("Python 3.%d or later is needed; python3 is %s, and no newer is on the PATH" % (OLDEST[1], version))


def _prepare(environment: Environment, wanted: FrozenSet[str]) -> None:
    """Makes or mends the environment, alone: others wait on the lock, and find it ready."""
    import fcntl

    lock_path = os.path.join(environment.root, ".venv.lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise Unable(
            "cannot make .venv: %s: %s; copy the project to a folder of your own" % (environment.root, error.strerror)
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another launch that makes .venv")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not environment.is_ready(wanted):
            from _install import install

            say(
                "making .venv with %s (once; extras: %s)"
                % ("Python %d.%d.%d" % sys.version_info[:3], ", ".join(sorted(wanted)))
            )
            install(environment, wanted, lock)
    finally:
        os.close(lock)


def say(line: str) -> None:
    """One line on stderr."""
    sys.stderr.write("viommu-actors: %s\n" % line)
    sys.stderr.flush()
