"""`viommu matrix`: every attack under every setting, a device by each way of an application, or a hostile virtual
switch against each way of a guest to its card; with the proofs.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from viommu_actors.attacks.catalogue import Setting
from viommu_actors.attacks.expected import BASE_SETTINGS, SETTINGS, Driver, KernelDriver
from viommu_actors.cli.exits import Exit
from viommu_actors.report.matrix import Matrix
from viommu_actors.report.progress import Progress
from viommu_actors.report.report import shown
from viommu_actors.report.results import Results
from viommu_actors.report.ways import Ways
from viommu_actors.supervise.confined import refuse_unconfined
from viommu_actors.supervise.matrix import Column, columns, columns_of_applications, columns_of_back_ends, play
from viommu_actors.topology.errors import Refusal, TopologyError
from viommu_actors.topology.load import load

HELP = "play every attack under every setting, and print the verdicts, expected against observed"
_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DEFAULT = _CONFIGS / "matrix.toml"
DPDK = _CONFIGS / "dpdk-matrix.toml"
VSWITCH = _CONFIGS / "rogue-switch.toml"
_DRIVERS: tuple[KernelDriver, ...] = ("guest", "host")
_ENDS = {"died": Exit.DIED, "failed": Exit.DIFFERS, "interrupted": Exit.INTERRUPTED}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    beside = f"with --dpdk {DPDK.name}, with --vswitch {VSWITCH.name} beside it"
    parser.add_argument(
        "config", nargs="?", type=Path, help=f"what is strict (default: {DEFAULT}; {beside})"
    )
    parser.add_argument(
        "--dpdk",
        action="store_true",
        help="not all attacks, but all ways of an application to a device: VFIO, VFIO no-iommu and UIO by setting",
    )
    parser.add_argument(
        "--vswitch",
        action="store_true",
        help="not devices, but a virtual switch that turned hostile: each way of a guest to its card by setting",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else")
    parser.add_argument(
        "--setting", action="append", choices=SETTINGS, default=[], help="only this setting; may be repeated"
    )
    parser.add_argument(
        "--driver", choices=get_args(KernelDriver), help="only rogues of this kernel (default: of both)"
    )
    parser.add_argument("--run-dir", type=Path, help="folder of the matrix (default: runs/<time>-matrix-<pid>)")


def run(options: argparse.Namespace) -> int:
    """See `cli.exits`."""
    settings = tuple(setting for setting in SETTINGS if not options.setting or setting in options.setting)
    drivers = _DRIVERS if options.driver is None else (options.driver,)
    config = options.config or (DPDK if options.dpdk else VSWITCH if options.vswitch else DEFAULT)
    special = [name for name, on in (("--dpdk", options.dpdk), ("--vswitch", options.vswitch)) if on]
    if len(special) > 1:
        print(f"{' and '.join(special)} are two matrices; leave one out", file=sys.stderr)
        return Exit.REFUSED
    if special and (options.setting or options.driver):
        print(f"{special[0]} runs all of its settings and drivers; leave --setting and --driver out", file=sys.stderr)
        return Exit.REFUSED
    try:
        topology = load(config)
        refuse_unconfined(topology.sandbox)
        if options.dpdk:
            chosen = columns_of_applications(topology)
        elif options.vswitch:
            chosen, settings = columns_of_back_ends(topology), BASE_SETTINGS
        else:
            chosen = columns(topology, settings, drivers)
    except TopologyError as error:
        print(error, file=sys.stderr)
        return Exit.REFUSED
    except Refusal as refusal:
        print(TopologyError(str(config), refusal), file=sys.stderr)
        return Exit.REFUSED
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = options.run_dir or Path("runs") / f"{stamp}-matrix-{os.getpid()}"
    runs: list[tuple[Setting, Driver, Results]] = []
    try:
        status = _play(chosen, folder, runs)
        whole = len(runs) == len(chosen)
        matrix = Ways(runs, whole) if options.dpdk else Matrix(settings, runs, whole)
        (folder / "matrix.json").write_text(matrix.as_json() + "\n")
        (folder / "matrix.md").write_text(matrix.markdown())
    except OSError as error:
        print(f"{error.filename}: {error.strerror}; name a place that can be written", file=sys.stderr)
        return Exit.REFUSED
    print(matrix.as_json() if options.json else shown(matrix.lines(), sys.stdout), flush=True)
    print(f"matrix.json and matrix.md: {folder}", file=sys.stderr)
    return status if status or matrix.ok else Exit.DIFFERS


def _play(chosen: list[Column], folder: Path, runs: list[tuple[Setting, Driver, Results]]) -> Exit:
    """Fills `runs`; an end that is no finish ends it."""
    with Progress(sys.stderr) as progress:
        for played in play(chosen, folder, progress.tell):
            column, ended = played.column, played.ended
            if ended.results is not None:
                runs.append((column.setting, column.driver, ended.results))
            if ended.how != "finished":
                print(f"{column.topology.name}: {ended.text}", file=sys.stderr)
                return _ENDS[ended.how]
    return Exit.AS_EXPECTED
