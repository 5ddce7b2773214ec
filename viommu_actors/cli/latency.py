"""`viommu latency [CONFIG]`: what a trap, a map and a DMA cost, hop by hop, beside the floor of bare ZeroMQ."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from viommu_actors.cli.exits import Exit
from viommu_actors.measure import soak
from viommu_actors.measure.laboratory import ROUNDS, Laboratory
from viommu_actors.measure.rows import result_of, to_csv
from viommu_actors.measure.settings import Settings, quiet, settings_of
from viommu_actors.measure.trace import Crossing
from viommu_actors.report.bar import ProgressBar
from viommu_actors.report.latency import Latencies
from viommu_actors.report.latency_text import render
from viommu_actors.report.soak import Soak, soak_text
from viommu_actors.supervise.confined import refuse_unconfined
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.page import write_measured, write_trace
from viommu_actors.supervise.supervisor import ActorDied, CommandFailed, Interrupted
from viommu_actors.topology.errors import Refusal, TopologyError
from viommu_actors.topology.load import load
from viommu_actors.topology.resolved import ResolvedTopology
from viommu_actors.topology.values import Placement

HELP = "measure what a trap, a map and a DMA cost, hop by hop, beside the floor of bare ZeroMQ"
DEFAULT = Path(__file__).resolve().parents[2] / "configs" / "latency.toml"
#: Seconds for everything; a busy machine may overrun it a little.
_TIME = 39.0
#: Seconds that a placement takes beside its rounds (processes, boots, hops), until the first one has shown it.
_BESIDE = 6.0
_MOST_ROUNDS = 10_000
_PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
_DURATION = re.compile(r"([1-9][0-9]{0,6})(s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", type=Path, default=DEFAULT, help="a topology file (default: %(default)s)")
    parser.add_argument(
        "--placement",
        choices=[*_PLACEMENTS, "all"],
        help="CPUs of each chain: packed on one, spread, left free, or one after another (default: the topology's)",
    )
    parser.add_argument("--vm", metavar="NAME", help="the VM that is measured (default: the first that drives a nic)")
    parser.add_argument("--rounds", type=_rounds, help=f"at most so many rounds (default: {ROUNDS}, as time allows)")
    parser.add_argument(
        "--soak", type=_duration, metavar="TIME", help="instead, work for so long, say 10m, and watch every process"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print the results as one JSON object, and nothing else")
    output.add_argument("--csv", action="store_true", help="print the rows as CSV, and nothing else")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace of the traced operations")
    parser.add_argument("--run-dir", type=Path, help="folder of this run (default: runs/<time>-<topology>-<pid>)")


def run(options: argparse.Namespace) -> int:
    """See `cli.exits`. A goal that is missed is told, and no failure."""
    try:
        topology = load(options.config)
        refuse_unconfined(topology.sandbox)
        chosen: Sequence[Placement] = [options.placement or topology.placement]
        if options.placement == "all":
            chosen = _PLACEMENTS
        made = {}
        if options.soak is None:
            made = {placement: settings_of(topology, placement, options.vm) for placement in chosen}
        first = made[chosen[0]].topologies["strict"] if made else quiet(topology, chosen[0])
    except TopologyError as error:
        print(error, file=sys.stderr)
        return Exit.REFUSED
    except Refusal as refusal:
        print(TopologyError(str(options.config), refusal), file=sys.stderr)
        return Exit.REFUSED
    problem = _contradiction(options)
    if problem:
        print(problem, file=sys.stderr)
        return Exit.REFUSED
    try:
        if options.trace is not None:
            options.trace.open("w").close()
        folder = RunFolder(first, options.run_dir)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}; name a place that can be written", file=sys.stderr)
        return Exit.REFUSED
    bar = ProgressBar(sys.stderr)
    try:
        if options.soak is not None:
            return _soak(options, first, folder, bar)
        return _measure(options, made, folder, bar)
    except OSError as error:
        bar.clear()
        print(": ".join(filter(None, (error.filename, error.strerror))), file=sys.stderr)
        return Exit.DIFFERS
    except (ActorDied, CommandFailed, Interrupted) as error:
        bar.clear()
        print(error, file=sys.stderr)
        return {"died": Exit.DIED, "failed": Exit.DIFFERS, "interrupted": Exit.INTERRUPTED}[error.how]
    finally:
        bar.clear()
        folder.close()
        print(f"run folder: {folder.path}", file=sys.stderr)


def _measure(
    options: argparse.Namespace,
    settings: dict[Placement, Settings],
    folder: RunFolder,
    bar: ProgressBar,
) -> Exit:
    ends = time.monotonic() + _TIME
    beside = _BESIDE
    runs: list[dict[str, Any]] = []
    seen: list[Crossing] = []
    for number, (placement, made) in enumerate(settings.items()):

        def progress(part: float, what: str, number: int = number, placement: str = placement) -> None:
            bar.show((number + part) / len(settings), f"{placement}: {what}")

        started = time.monotonic()
        progress(0.0, "starting the processes")
        with Laboratory(made, folder, placement) as laboratory:
            left = len(settings) - number
            spare = ends - started - beside * left
            try:
                measured = laboratory.measure(options.rounds or ROUNDS, spare / left, progress)
            except (ActorDied, CommandFailed, Interrupted) as error:
                if laboratory.rounds:
                    runs.append(result_of(laboratory.unfinished(), made.subject, placement))
                if runs:
                    _leave(folder, settings, {**_together(runs), "ended": str(error)}, str(error))
                raise
        beside = max(beside, time.monotonic() - started - measured.seconds)
        runs.append(result_of(measured, made.subject, placement))
        seen = seen or measured.crossings
    result = _together(runs)
    _leave(folder, settings, result)
    bar.clear()
    if options.json:
        print(json.dumps(result), flush=True)
    elif options.csv:
        print(to_csv(result["rows"]), end="", flush=True)
    else:
        print("\n\n".join(render(msgspec.convert(each, Latencies)) for each in runs), flush=True)
    if options.trace is not None:
        write_trace(options.trace, seen)
    return Exit.AS_EXPECTED if all(each["as_on_the_host"]["equal"] for each in runs) else Exit.DIFFERS


def _leave(
    folder: RunFolder,
    settings: dict[Placement, Settings],
    result: dict[str, Any],
    ended: str = "",
) -> None:
    """The run's files; `ended` is why it did not just finish."""
    folder.write("latency.json", json.dumps(result, indent=1) + "\n")
    folder.write("latency.csv", to_csv(result["rows"]))
    write_measured(folder, next(iter(settings.values())).topologies["strict"], ended)


def _together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    if len(runs) == 1:
        return runs[0]
    rows = [row for each in runs for row in each["rows"]]
    return {"placement": "all", "rows": rows, "goals": _all_goals(runs), "runs": runs}


def _all_goals(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each goal, by the placement that it was reached or missed with."""
    return [{**goal, "name": f"{each['placement']}: {goal['name']}"} for each in runs for goal in each["goals"]]


def _soak(options: argparse.Namespace, topology: ResolvedTopology, folder: RunFolder, bar: ProgressBar) -> Exit:
    def leave(result: dict[str, Any]) -> None:
        folder.write("soak.json", json.dumps(result, indent=1) + "\n")
        write_measured(folder, topology, result["ended"])

    result = soak.run(topology, folder, options.soak, bar.show, leave)
    bar.clear()
    print(json.dumps(result) if options.json else soak_text(msgspec.convert(result, Soak)), flush=True)
    return Exit.AS_EXPECTED if result["ok"] else Exit.DIFFERS


def _contradiction(options: argparse.Namespace) -> str:
    if options.soak is not None:
        for name in ("csv", "trace", "rounds", "vm"):
            if getattr(options, name):
                return f"--{name}: not with --soak, which lets all devices work; leave one of them out"
        if options.placement == "all":
            return "--placement all: not with --soak; name one of pack, spread and free"
    return ""


def _rounds(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= _MOST_ROUNDS or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no number of rounds from 1 to {_MOST_ROUNDS}")
    return int(text)


def _duration(text: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no duration; write 30s, 10m or 2h")
    return float(int(found[1]) * _SECONDS[found[2]])
