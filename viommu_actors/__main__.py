"""Entry point of the command line: `viommu SUBCOMMAND …`, or `python -m viommu_actors SUBCOMMAND …`."""

from __future__ import annotations

import argparse
import sys

from viommu_actors.cli import inspect, latency, record, replay, shapes, topology

_COMMANDS = {
    "topology": topology,
    "latency": latency,
    "replay": replay,
    "record": record,
    "inspect": inspect,
    "shapes": shapes,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="viommu", description="Every box of a virtualised machine's DMA picture as a process."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="SUBCOMMAND")
    for name, module in _COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP))
    options = parser.parse_args(arguments)
    status: int = _COMMANDS[options.command].run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
