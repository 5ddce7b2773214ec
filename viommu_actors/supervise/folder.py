"""A run's folder: what the run saw, written as it happens."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec

from viommu_actors.topology.resolve import ResolvedTopology


class RunFolder:
    """Files of one run; raises OSError where the folder cannot be made."""

    def __init__(self, topology: ResolvedTopology, path: Path | None) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self.path = path or Path("runs") / f"{stamp}-{topology.name}-{os.getpid()}"
        self.path.mkdir(parents=True, exist_ok=True)
        self._events = (self.path / "events.jsonl").open("w")
        self._start = time.monotonic()
        self.write("topology.json", msgspec.json.format(msgspec.json.encode(topology)).decode())

    def write(self, name: str, text: str) -> None:
        """A whole file, in one step: a reader sees all of it or none."""
        part = self.path / f".{name}.part"
        part.write_text(text)
        part.rename(self.path / name)

    def write_control(self, address: str) -> None:
        """`control.json`: how others reach this run while it lives."""
        self.write("control.json", json.dumps({"address": address, "pid": os.getpid(), "start_time": _start_time()}))

    def log(self, actor: str) -> IO[bytes]:
        """The log of an actor, to be its standard error."""
        return (self.path / f"{actor}.log").open("wb")

    def event(self, actor: str, name: str, **fields: Any) -> None:
        """One line of `events.jsonl`; `t` is seconds since the run began, on the wall clock."""
        row = {"t": round(time.monotonic() - self._start, 6), "actor": actor, "event": name, **fields}
        self._events.write(json.dumps(row, default=repr) + "\n")
        self._events.flush()

    def close(self) -> None:
        """The run is over: nobody can reach it any more."""
        (self.path / "control.json").unlink(missing_ok=True)
        self._events.close()


def _start_time() -> int:
    """When this process started, in clock ticks since boot: tells a pid from its reuse (proc(5), field 22)."""
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
