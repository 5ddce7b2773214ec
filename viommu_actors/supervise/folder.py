"""A run's folder: what the run saw, written as it happens."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec

from viommu_actors.topology.resolved import ResolvedTopology

#: What a run leaves besides its events and the logs of its actors.
_LEFT = ("control.json", "results.json", "report.html", "latency.json", "latency.csv", "soak.json")


class RunFolder:
    """Files of one run, which has the folder for itself as long as it lives; those of an earlier run are removed.

    Raises OSError where the folder cannot be made, or another live run has it.
    """

    def __init__(self, topology: ResolvedTopology, path: Path | None) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self.path = path or Path("runs") / f"{stamp}-{topology.name}-{os.getpid()}"
        self.path.mkdir(parents=True, exist_ok=True)
        self._events = (self.path / "events.jsonl").open("a+", encoding="utf-8", errors="replace")
        try:
            self._lock()
            self._remove_earlier()
        except OSError:
            self._events.close()
            raise
        self._start = time.monotonic()
        self.write("topology.json", msgspec.json.format(msgspec.json.encode(topology)).decode())

    def _lock(self) -> None:
        """The kernel lets go of the lock when the process ends, however it ends."""
        try:
            fcntl.flock(self._events, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "another live run has it", str(self.path)) from None

    def _remove_earlier(self) -> None:
        self._events.seek(0)
        rogues = (path.name for path in self.path.glob("rogue-*.json"))
        for name in (*_LEFT, *rogues, *(f"{actor}.log" for actor in set(_started(self._events)))):
            (self.path / name).unlink(missing_ok=True)
        self._events.truncate(0)

    def write(self, name: str, text: str) -> None:
        """A whole file, in one step: a reader sees all of it or none."""
        part = self.path / f".{name}.part"
        part.write_text(text)
        part.rename(self.path / name)

    def write_control(self, address: str) -> None:
        """`control.json`: how others reach this run while it lives."""
        pid = os.getpid()
        self.write("control.json", json.dumps({"address": address, "pid": pid, "start_time": start_time(pid)}))

    def log(self, actor: str, again: bool = False) -> IO[bytes]:
        """The log of an actor, to be its standard error; `again`: it goes on where another process's ended."""
        return (self.path / f"{actor}.log").open("ab" if again else "wb")

    def event(self, actor: str, name: str, **fields: Any) -> None:
        """One line of `events.jsonl`; `t` is seconds since the run began, on the wall clock."""
        row = {"t": round(time.monotonic() - self._start, 6), "actor": actor, "event": name, **fields}
        self._events.write(json.dumps(row, default=repr) + "\n")
        self._events.flush()

    def close(self) -> None:
        """The run is over: nobody can reach it any more."""
        with suppress(OSError):  # of a folder that is gone nothing is left to be closed
            (self.path / "control.json").unlink(missing_ok=True)
        with suppress(OSError):  # what it could not write it has told when it was to be written
            self._events.close()


def _started(events: IO[str]) -> Iterator[str]:
    """Who started in an earlier run, by what may or may not be its events."""
    for line in events:
        with suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            if row["event"] == "started" and re.fullmatch(r"[a-z0-9.-]{1,64}", row["actor"]):
                yield row["actor"]


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot: tells a pid from its reuse (proc(5), field 22).

    Raises OSError where there is no such process.
    """
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
