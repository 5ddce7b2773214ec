"""Finds the runs that live, by the folders that they keep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from viommu_actors.supervise.folder import start_time
from viommu_actors.topology.resolved import ResolvedTopology

_HOW = "start one: launch/topology --stay"


class NoRun(Exception):
    """There is no live run; the text says how to start one."""


class LiveRun(NamedTuple):
    """A run whose launcher is there, as process `pid`; `address` is that of its door."""

    folder: Path
    address: str
    pid: int

    def topology(self) -> ResolvedTopology:
        """Raises OSError, and msgspec.DecodeError for what is no resolved topology."""
        return msgspec.json.decode((self.folder / "topology.json").read_bytes(), type=ResolvedTopology)


def find_run(folder: Path | None, where: Path = Path("runs")) -> LiveRun:
    """The run of a folder, or the newest of those in `where`. Raises NoRun."""
    if folder is not None:
        run = _live(folder)
        if run is None:
            raise NoRun(f"{folder}: no live run; {_HOW} --run-dir {folder}")
        return run
    runs = sorted(_folders(where), reverse=True)
    for _, each in runs:
        run = _live(each)
        if run is not None:
            return run
    raise NoRun(f"{where}: no live run; {_HOW} (or name its folder: --run DIR)")


def _folders(where: Path) -> Iterator[tuple[int, Path]]:
    """(when it began, folder) of each run that was not closed in order."""
    with suppress(OSError):
        for folder in where.iterdir():
            with suppress(OSError):
                yield (folder / "control.json").stat().st_mtime_ns, folder


def _live(folder: Path) -> LiveRun | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        control = json.loads((folder / "control.json").read_bytes())
        pid = int(control["pid"])
        if start_time(pid) == control["start_time"]:
            return LiveRun(folder, str(control["address"]), pid)
    return None
