"""Runs `viommu rogue` as a process of its own, against a topology that stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.topologies.launcher import ROOT, Finished, Launch, launched, write
from viommu_actors.supervise.client import DoorClient
from viommu_actors.supervise.runs import find_run

#: A device behind a vIOMMU, one that passes it, and one that the host drives; none is hostile by itself.
STAYING = """
name = "staying"

[host]
memory = "32M"

[[device]]
name = "nic0"
model = "nic"
operations = 8

[[device]]
name = "edu0"
model = "edu"
operations = 8

[[device]]
name = "nic1"
model = "nic"
operations = 8

[[vm]]
name = "vm0"
memory = "16M"
[vm.viommu]
[[vm.assign]]
device = "nic0"

[[vm]]
name = "vm1"
memory = "16M"
[[vm.assign]]
device = "edu0"
"""


@contextmanager
def staying(folder: Path, text: str = STAYING) -> Iterator[Launch]:
    """A topology that is up, its verdicts in."""
    with launched(write(folder, text), folder / "run", "--stay", "--json") as running:
        running.wait_for("up; Ctrl-C ends it")
        yield running


class Rogue:
    """A `viommu rogue` that is under way."""

    def __init__(self, run: Path, *options: str) -> None:
        self._run = run
        self.process = subprocess.Popen(
            [sys.executable, "-m", "viommu_actors", "rogue", "--run", str(run), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=run.parent,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def finish(self, seconds: float = 40) -> Finished:
        """Waits for its end."""
        stdout, stderr = self.process.communicate(timeout=seconds)
        return Finished(self.process.returncode, stdout, stderr, self._run)


@contextmanager
def attacking(run: Path, *options: str) -> Iterator[Rogue]:
    """A rogue whose command is ended with the block, however that ends."""
    rogue = Rogue(run, *options)
    try:
        yield rogue
    finally:
        if rogue.process.poll() is None:
            rogue.process.send_signal(signal.SIGKILL)
        rogue.process.communicate()


def attack(run: Path, *options: str) -> Finished:
    """Attacks, and waits for the end."""
    with attacking(run, *options) as rogue:
        return rogue.finish()


def status(run: Path) -> dict[str, Any]:
    """What the topology says of itself."""
    with DoorClient(find_run(run)) as client:
        return client.status()


def wait_for_attached(run: Path, count: int, seconds: float = 10) -> list[dict[str, Any]]:
    """Waits until so many rogues are attached, and tells of them."""
    deadline = time.monotonic() + seconds
    while len(attached := status(run)["attached"]) != count:
        assert time.monotonic() < deadline, f"{len(attached)} attached, not {count}"
        time.sleep(0.02)
    found: list[dict[str, Any]] = attached
    return found
