"""What a run leaves of its results: `results.json`, and `report.html` for a person."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import zmq

from viommu_actors.measure.chrome import chrome_trace
from viommu_actors.measure.trace import Crossing
from viommu_actors.report.html import html
from viommu_actors.report.latency import Latencies, read_latencies
from viommu_actors.report.results import Results, to_json
from viommu_actors.report.soak import Soak, read_soak
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.topology.resolved import ResolvedTopology


def write_results(
    folder: RunFolder,
    topology: ResolvedTopology,
    results: Results,
    ended: str = "",
    sampled: Mapping[str, Any] | None = None,
) -> None:
    """What the run leaves, the results first; `ended` is why it did not just finish, `sampled` its `latency.json`."""
    folder.write("results.json", to_json(results))
    if sampled is not None:
        folder.write("latency.json", json.dumps(sampled, indent=1) + "\n")
    folder.write("report.html", html(topology, results, environment(), _latencies(folder), ended))


def write_measured(folder: RunFolder, topology: ResolvedTopology, ended: str = "") -> None:
    """`report.html` of a run that was there to be measured, from its `latency.json` or `soak.json`."""
    page = html(topology, None, environment(), _latencies(folder), ended, _soak(folder))
    folder.write("report.html", page)


def write_trace(path: Path, messages: Iterable[Crossing]) -> None:
    """A Chrome trace in a file that the user named. Raises OSError, which names the file."""
    try:
        path.write_text(json.dumps(chrome_trace(sorted(messages, key=lambda each: each.sent))))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def environment() -> dict[str, str]:
    """Where and when a run was made, by name."""
    return {
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "viommu-actors": _version("viommu-actors"),
        "Python": platform.python_version(),
        "ZeroMQ": f"{zmq.zmq_version()}, pyzmq {zmq.pyzmq_version()}",
        "msgpack": _version("msgpack"),
        "msgspec": msgspec.__version__,
        "kernel": f"{platform.system()} {platform.release()} on {platform.machine()}",
        "CPUs": str(len(os.sched_getaffinity(0))),
    }


def _latencies(folder: RunFolder) -> Latencies | None:
    try:
        return read_latencies(folder.path / "latency.json")
    except msgspec.DecodeError:
        return None


def _soak(folder: RunFolder) -> Soak | None:
    try:
        return read_soak(folder.path / "soak.json")
    except msgspec.DecodeError:
        return None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
