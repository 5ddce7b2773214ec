"""Entry point of the command line: `viommu SUBCOMMAND …`, or `python -m viommu_actors SUBCOMMAND …`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType, ModuleType

from viommu_actors.cli.exits import Exit

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    before = [signal.signal(number, _leave) for number in _SIGNALS]
    try:
        # Imported under these handlers: it takes a while, and an exception out of nowhere is not safe in imports.
        from viommu_actors.cli.commands import COMMANDS
        from viommu_actors.cli.streams import settle, standard_streams

        for number in _SIGNALS:
            signal.signal(number, signal.default_int_handler)
        with standard_streams() as output:
            status = _run(COMMANDS, arguments)
            settle()
            if output is not None and output.error is not None and not isinstance(output.error, BrokenPipeError):
                print(f"standard output: {output.error.strerror}", file=sys.stderr)
                return status or Exit.DIFFERS
            return status
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(Exit.INTERRUPTED)


def _run(commands: Mapping[str, ModuleType], arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="viommu", description="Every box of a virtualised machine's DMA picture as a process."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="SUBCOMMAND")
    for name, module in commands.items():
        module.add_arguments(subparsers.add_parser(name, help=module.HELP, description=module.HELP))
    options = parser.parse_args(arguments)
    status: int = commands[options.command].run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
