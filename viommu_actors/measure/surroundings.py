"""What a latency figure is worthless without: where it ran, on what, with which libraries, how long nobody worked."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version

import zmq

from viommu_actors.measure.bench import GAP
from viommu_actors.supervise.layout import can_fix_layout


def surroundings(cpus: Mapping[str, list[int] | None]) -> dict[str, object]:
    """`cpus` are those of each process of the measured chain, None where the scheduler decides."""
    return {
        "cpus": dict(cpus),
        "cpus_available": len(os.sched_getaffinity(0)),
        #: Of device processes; a random one each has caches serve many of them badly.
        "device_layout": "fixed" if can_fix_layout() else "random",
        #: Between operations of a batch; a posted write is not answered, so a gap stands behind each.
        "idle_gap_us": 0,
        "idle_gap_posted_us": round(GAP * 1e6),
        "versions": {
            "python": platform.python_version(),
            "pyzmq": zmq.pyzmq_version(),
            "libzmq": zmq.zmq_version(),
            "msgpack": version("msgpack"),
            "kernel": platform.release(),
        },
    }
