"""One actor as the launcher holds it: a child process and the control channel to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

from viommu_actors.supervise.actor_plan import ActorPlan
from viommu_actors.supervise.layout import fixed_layout
from viommu_actors.wire.messages import CONTROL, CONTROL_ANSWER
from viommu_actors.wire.polled import PolledChannel
from viommu_actors.wire.tally import Tally

#: What the interpreter of an actor runs.
PROGRAM = ("-m", "viommu_actors.actors")
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


class Actor:
    """A running actor; `pidfd` becomes readable when it ends."""

    def __init__(self, plan: ActorPlan, name: str, lifeline: int, log: IO[bytes], since: int) -> None:
        """Commands up to number `since` were not for it, but for whoever had its name before."""
        self.plan = plan
        self.since = since
        self.role = plan.role
        #: by which the launcher knows it; its wires go by the plan's
        self.name = name
        self.vms = plan.vms
        self.last_did = "was started"
        #: how often it has said something unasked
        self.heard = 0
        self._log = log.name
        configuration = plan.configuration | {"launcher": os.getpid(), "lifeline": lifeline}
        with fixed_layout() if plan.fixed_layout else nullcontext():
            self._process = _spawn(configuration, [*plan.fds, lifeline], log)
        self.pidfd = os.pidfd_open(self._process.pid)
        self.tally = Tally(f"control:{plan.name}", "launcher")
        self.channel = PolledChannel("launcher", plan.inbox.address, CONTROL, CONTROL_ANSWER, self.tally)

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def last_words(self) -> str:
        """The last line of its log."""
        try:
            lines = Path(self._log).read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def kill(self) -> None:
        """Its end is told by `pidfd`."""
        self._process.kill()

    def end(self) -> None:
        """Kills the process if it still runs, reaps it, and lets go of everything."""
        self._process.kill()
        self._process.wait()
        os.close(self.pidfd)
        self.channel.close()


def _spawn(configuration: dict[str, Any], fds: list[int], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """A fresh interpreter whose standard input is the configuration."""
    paths = [_PACKAGE_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    with os.fdopen(os.memfd_create("configuration"), "w+b") as memory:
        memory.write(json.dumps(configuration).encode())
        memory.seek(0)
        return subprocess.Popen(
            [sys.executable, *PROGRAM],
            stdin=memory,
            stdout=log,
            stderr=log,
            pass_fds=fds,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
