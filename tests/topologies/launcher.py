"""Runs `viommu topology` as a process of its own, as a user does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"

#: A small guest with one nic behind a vIOMMU; tests change it by replacing words.
SMALL = """
name = "small"

[host]
memory = "32M"

[[device]]
name = "nic0"
model = "nic"
operations = 8
rogue = ["A2"]

[[vm]]
name = "vm0"
memory = "16M"
cmdline = "intel_iommu=on"

[vm.viommu]

[[vm.assign]]
device = "nic0"
"""


def launch_environment() -> dict[str, str]:
    """That of a process which runs this checkout, installed or not."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


@dataclass
class Finished:
    """How a launch ended."""

    status: int
    stdout: str
    stderr: str
    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        """What `--json` printed."""
        parsed: dict[str, Any] = json.loads(self.stdout)
        return parsed

    def log(self, actor: str) -> str:
        """The log of an actor."""
        return (self.folder / f"{actor}.log").read_text()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]


class Launch:
    """A launch that is under way."""

    def __init__(
        self,
        config: Path,
        folder: Path,
        *options: str,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "viommu_actors", "topology", str(config), "--run-dir", str(folder), *options],
            stdout=stdout,
            stderr=stderr,
            text=True,
            cwd=folder.parent,
            env=launch_environment(),
        )

    def pids(self) -> dict[str, int]:
        """Every actor started so far."""
        try:
            lines = (self.folder / "events.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return {}
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return {row["actor"]: row["pid"] for row in rows if row["event"] == "started"}

    def wait_for(self, text: str, seconds: float = 20) -> None:
        """Waits until an event says so."""
        deadline = time.monotonic() + seconds
        events = self.folder / "events.jsonl"
        while not (events.exists() and text in events.read_text(errors="replace")):
            assert self.process.poll() is None, self.finish().stderr
            assert time.monotonic() < deadline, f"no {text!r} within {seconds} s"
            time.sleep(0.01)

    def wait_for_file(self, name: str, seconds: float = 20) -> None:
        """Waits until the run's folder has this file."""
        deadline = time.monotonic() + seconds
        while not (self.folder / name).exists():
            assert self.process.poll() is None and time.monotonic() < deadline, f"no {name}"
            time.sleep(0.02)

    def finish(self, seconds: float = 40) -> Finished:
        """Waits for its end."""
        stdout, stderr = self.process.communicate(timeout=seconds)
        return Finished(self.process.returncode, stdout, stderr, self.folder)


@contextmanager
def launched(config: Path, folder: Path, *options: str, **streams: int) -> Iterator[Launch]:
    """A launch that is ended with the block, however that ends."""
    launch = Launch(config, folder, *options, **streams)
    try:
        yield launch
    finally:
        if launch.process.poll() is None:
            launch.process.send_signal(signal.SIGKILL)
        launch.process.communicate()


def launch(config: Path, folder: Path, *options: str) -> Finished:
    """Launches, waits for the end, and makes sure that nothing is left of it."""
    with launched(config, folder, *options) as running:
        finished = running.finish()
        assert_gone(running.pids())
        return finished


def write(folder: Path, text: str) -> Path:
    """A topology file of this text."""
    path = folder / "topology.toml"
    path.write_text(text)
    return path


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_gone(pids: dict[str, int], seconds: float = 5) -> None:
    """Every one of these processes ends in time."""
    deadline = time.monotonic() + seconds
    while left := {name: pid for name, pid in pids.items() if alive(pid)}:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)
