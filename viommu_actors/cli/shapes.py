"""`viommu shapes [NUMBER…]`: the shapes of published results, published against observed."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from viommu_actors.cli.exits import Exit
from viommu_actors.measure.costs import CostTable, shipped
from viommu_actors.measure.flush import FlushCosts, measure_flushes
from viommu_actors.measure.shapes import SHAPES, TABLES, Observations, judge
from viommu_actors.report.progress import Progress
from viommu_actors.report.report import shown
from viommu_actors.report.shapes import all_passed, shapes_json, shapes_report
from viommu_actors.supervise.shapes import Counted, count, with_operations
from viommu_actors.topology.errors import TopologyError
from viommu_actors.topology.load import load
from viommu_actors.topology.resolve import resolve
from viommu_actors.topology.values import MAX_OPERATIONS

HELP = "run what published results are about, and print their shapes, published against observed"
TOPOLOGY = Path(__file__).resolve().parents[2] / "configs" / "shapes.toml"
_ENDS = {"died": Exit.DIED, "failed": Exit.DIFFERS, "interrupted": Exit.INTERRUPTED}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    numbers = [shape.number for shape in SHAPES]
    only = f"only these shapes, {numbers[0]} to {numbers[-1]} (default: all)"
    parser.add_argument("number", nargs="*", type=int, default=[], help=only)
    parser.add_argument("--json", action="store_true", help="print the shapes as one JSON object, and nothing else")
    parser.add_argument("--operations", type=int, default=64, help="of each device (default: %(default)s)")
    parser.add_argument("--probes", type=int, default=32, help="rounds of a rogue's probes (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=40, help="interleaved rounds of what is timed (default: %(default)s)"
    )
    parser.add_argument("--run-dir", type=Path, help="folder of the run (default: runs/<time>-shapes-<pid>)")


def run(options: argparse.Namespace) -> int:
    """See `cli.exits`; differs where a shape is out of tolerance."""
    if problem := _problem(options):
        print(problem, file=sys.stderr)
        return Exit.REFUSED
    chosen = [shape for shape in SHAPES if not options.number or shape.number in options.number]
    needs = {need for shape in chosen for need in shape.needs}
    try:
        tables = {name: shipped(name) for name in TABLES}
        topology = with_operations(resolve(load(TOPOLOGY)), options.operations)
    except TopologyError as error:
        print(error, file=sys.stderr)
        return Exit.REFUSED
    counted: Counted | None = None
    flushes: FlushCosts | None = None
    with Progress(sys.stderr) as progress:
        if needs & {"io", "probes"}:
            try:
                counted = count(topology, options.run_dir, options.probes, progress.tell)
            except OSError as error:
                print(f"{error.filename}: {error.strerror}; name a place that can be written", file=sys.stderr)
                return Exit.REFUSED
        if "flushes" in needs and (counted is None or counted.ended.how == "finished"):
            progress.tell(f"domain and page flushes, {options.rounds} interleaved rounds")
            try:
                flushes = measure_flushes(options.rounds, time.perf_counter_ns)
            except KeyboardInterrupt:
                return Exit.INTERRUPTED
    if counted is not None:
        print(f"run folder: {counted.folder}", file=sys.stderr)
        if counted.ended.how != "finished":
            print(counted.ended.text, file=sys.stderr)
            return _ENDS[counted.ended.how]
    outcomes = [judge(shape, _observations(tables, counted, flushes)) for shape in chosen]
    print(shapes_json(outcomes) if options.json else shown(shapes_report(outcomes), sys.stdout), flush=True)
    return Exit.AS_EXPECTED if all_passed(outcomes) else Exit.DIFFERS


def _observations(tables: Mapping[str, CostTable], counted: Counted | None, flushes: FlushCosts | None) -> Observations:
    if counted is None:
        return Observations({}, tables, flushes=flushes)
    return Observations(counted.io, tables, counted.batching_refused, flushes, counted.probes)


def _problem(options: argparse.Namespace) -> str | None:
    """What is wrong with the options, in one line."""
    known = {shape.number for shape in SHAPES}
    if wrong := sorted(set(options.number) - known):
        return f"there is no shape {wrong[0]}; name some of {min(known)} to {max(known)}"
    for name, most in (("operations", MAX_OPERATIONS), ("probes", 100_000), ("rounds", 100_000)):
        if not 1 <= getattr(options, name) <= most:
            return f"--{name}: {getattr(options, name)} is out of range; give 1 to {most}"
    return None
