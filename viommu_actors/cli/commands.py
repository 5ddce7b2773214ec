"""The subcommands by name, in the order in which help tells them."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Final

from viommu_actors.cli import inspect, latency, matrix, record, replay, rogue, shapes, topology

#: Each module has HELP, `add_arguments(parser)` and `run(options)`, which returns the exit status.
COMMANDS: Final[Mapping[str, ModuleType]] = {
    "topology": topology,
    "rogue": rogue,
    "latency": latency,
    "replay": replay,
    "record": record,
    "inspect": inspect,
    "matrix": matrix,
    "shapes": shapes,
}
