"""Fills `.venv`: with uv where there is one, else with venv and pip, else with pip's own wheel from the index."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Dict, FrozenSet, List, Optional

from _bootstrap import OPTIONAL, Environment, Stamp, Unable, say
from _pip_wheel import fetch_pip

#: Words by which pip and uv tell that the index did not answer.
NO_NETWORK = (
    "No matching distribution found",
    "Could not find a version",
    "error sending request",
    "Failed to fetch",
    "NameResolutionError",
    "NewConnectionError",
)


class Installer:
    """Runs uv or pip on one environment. `lock` is handed on, so that it outlives this process with them."""

    def __init__(self, environment: Environment, lock: int) -> None:
        self.environment = environment
        self.lock = lock
        self.uv = shutil.which("uv")

    def make(self) -> None:
        """An empty environment with something in it that can install. Raises Unable."""
        path = self.environment.path
        if self.uv is not None:
            if self._run([self.uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, path]) is None:
                return
            self.uv = None
        has_pip = importlib.util.find_spec("ensurepip") is not None
        if has_pip and self._run([sys.executable, "-m", "venv", path]) is None:
            return
        failure = self._run([sys.executable, "-m", "venv", "--without-pip", path])
        if failure is not None:
            raise Unable("cannot make .venv: %s" % failure)
        with tempfile.TemporaryDirectory(prefix="viommu-pip-") as folder:
            wheel = fetch_pip(folder)
            failure = self._run([self.environment.python, os.path.join(wheel, "pip"), "install", "--quiet", wheel])
        if failure is not None:
            raise Unable("cannot install pip into .venv: %s" % failure)

    def install(self, extras: FrozenSet[str]) -> None:
        """Installs the project, editable, with all of `extras` but the optional ones that fail. Raises Unable."""
        if self._install(extras) is None:
            return
        failure = self._install(extras - OPTIONAL)
        if failure is not None:
            if any(words in failure for words in NO_NETWORK):
                failure = "the package index does not answer (%s); connect once, then launches work offline" % failure
            raise Unable("cannot install the project: %s" % failure)
        for extra in sorted(extras & OPTIONAL):
            failure = self._install(frozenset([extra]))
            if failure is not None:
                say("going on without the extra %s: %s" % (extra, failure))

    def _install(self, extras: FrozenSet[str]) -> Optional[str]:
        what = "%s[%s]" % (self.environment.root, ",".join(sorted(extras))) if extras else self.environment.root
        if self.uv is not None:
            command = [self.uv, "pip", "install", "--quiet", "--python", self.environment.python]
        else:
            command = [self.environment.python, "-m", "pip", "install", "--quiet", "--no-input", "--retries", "1"]
            command += ["--disable-pip-version-check"]
        return self._run([*command, "--editable", what])

    def _run(self, command: List[str]) -> Optional[str]:
        """None when the command succeeded, else the line that says why not."""
        run = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[self.lock],
            env=_environ(),
        )
        if run.returncode == 0:
            return None
        return _reason(run.stdout.decode("utf-8", "replace")) or "%s ended with %d" % (command[0], run.returncode)


def install(environment: Environment, wanted: FrozenSet[str], lock: int) -> None:
    """Makes the environment ready, anew or from what is there. Raises Unable."""
    installer = Installer(environment, lock)
    before = environment.stamp()
    if before is not None and environment.is_sound():
        _update(environment, installer, wanted, before)
        return
    if os.path.exists(environment.stamp_path) or not os.path.exists(environment.python):
        os.makedirs(environment.path, exist_ok=True)
        environment.write_stamp("")
        _clear(environment)
        installer.make()
    else:
        say("using the .venv that is there")
        environment.write_stamp("")
    installer.install(wanted)
    environment.write_stamp(environment.wanted(wanted).text())


def _update(environment: Environment, installer: Installer, wanted: FrozenSet[str], before: Stamp) -> None:
    """Adds what a finished environment lacks; where that fails and only pyproject.toml changed, it still serves."""
    extras = wanted | before.extras
    environment.write_stamp("")
    try:
        installer.install(extras)
    except Unable as error:
        environment.write_stamp(before.text())
        if not before.extras >= wanted:
            raise
        say("going on with .venv as it was: %s" % error)
    else:
        environment.write_stamp(environment.wanted(extras).text())


def _clear(environment: Environment) -> None:
    """Removes all but the stamp, which goes on telling whose the folder is."""
    for entry in os.scandir(environment.path):
        if entry.path == environment.stamp_path:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _environ() -> Dict[str, str]:
    """The caller's, less what would send packages elsewhere than into `.venv`."""
    kept = dict(os.environ)
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"):
        kept.pop(name, None)
    kept["PIP_USER"] = "0"
    return kept


def _reason(output: str) -> str:
    """The last line that tells an error of its own, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"([\w.]*Error|ERROR|error): (?!subprocess-exited)", line)]
    return (errors or lines or [""])[-1]
