"""`viommu topology [CONFIG]`: boots a topology, does its honest work, plays its attacks, prints the verdicts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from viommu_actors.cli.exits import Exit
from viommu_actors.cli.streams import drop_unread, settle
from viommu_actors.measure.costs import load_costs
from viommu_actors.report.progress import Progress
from viommu_actors.report.report import render
from viommu_actors.report.results import Results, to_json
from viommu_actors.supervise.confined import refuse_unconfined
from viommu_actors.supervise.run import Ended, Run
from viommu_actors.topology.errors import Refusal, TopologyError
from viommu_actors.topology.load import load
from viommu_actors.topology.resolve import resolve
from viommu_actors.topology.resolved import ResolvedTopology

HELP = "boot a topology, let its devices work and its rogues attack, and print what stopped them"
DEFAULT = Path(__file__).resolve().parents[2] / "configs" / "assigned-viommu.toml"

#: Seconds in which whoever reads at all has read the results.
_PROMPT = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", type=Path, default=DEFAULT, help="a topology file (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object, and nothing else")
    parser.add_argument("--stay", action="store_true", help="keep the topology up after its verdicts, until Ctrl-C")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace of every message (Perfetto)")
    parser.add_argument("--run-dir", type=Path, help="folder of this run (default: runs/<time>-<topology>-<pid>)")
    parser.add_argument(
        "--costs",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="also tell the I/O by the modelled clock of this cost table (configs/costs/*.toml); may be repeated",
    )


def run(options: argparse.Namespace) -> int:
    """See `cli.exits`."""
    try:
        topology = resolve(load(options.config))
        refuse_unconfined(topology.sandbox)
        costs = tuple(load_costs(path) for path in options.costs)
    except TopologyError as error:
        print(error, file=sys.stderr)
        return Exit.REFUSED
    except Refusal as refusal:
        print(TopologyError(str(options.config), refusal), file=sys.stderr)
        return Exit.REFUSED
    with Progress(sys.stderr) as progress:
        try:
            if options.trace is not None:
                options.trace.open("w").close()
            live = Run(topology, options.run_dir, progress.tell, costs, options.trace)
        except OSError as error:
            print(f"{error.filename}: {error.strerror}; name a place that can be written", file=sys.stderr)
            return Exit.REFUSED

        def show(results: Results) -> None:
            progress.rest()
            _show(options, topology, results)
            # On a terminal the lines after it shall come after it; who does not read holds nobody up for long.
            settle(_PROMPT)

        ended = live.play(show, options.stay)
    if options.stay or ended.how == "interrupted":
        drop_unread()
    else:
        settle()
    if ended.text:
        print(ended.text, file=sys.stderr)
    print(f"run folder: {live.folder.path}", file=sys.stderr)
    return _status(ended)


def _show(options: argparse.Namespace, topology: ResolvedTopology, results: Results) -> None:
    text = to_json(results) if options.json else render(topology, results, sys.stdout)
    print(text)


def _status(ended: Ended) -> Exit:
    if ended.how == "died":
        return Exit.DIED
    if ended.how == "interrupted":
        return Exit.INTERRUPTED
    held = ended.how == "finished" and ended.results is not None and ended.results.ok
    return Exit.AS_EXPECTED if held else Exit.DIFFERS
