"""`viommu record`: a real QEMU driven over qtest; what it does becomes a transcript, or is compared with the unit."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from viommu_actors.cli.exits import Exit
from viommu_actors.cli.transcripts import lines
from viommu_actors.recorder.fuzz import Found, fuzz
from viommu_actors.recorder.generate import generate
from viommu_actors.recorder.qtest import PROGRAM, QemuError, version
from viommu_actors.recorder.record import Recorder
from viommu_actors.replay import transcript as t
from viommu_actors.vtd.deviations import Quirk, quirks_of

HELP = "record a transcript from the installed QEMU, or compare QEMU with the project's unit on random ones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("transcript", nargs="?", type=Path, help="its operations are carried out again")
    what.add_argument("--random", type=int, metavar="SEED", help="carry out random operations")
    what.add_argument("--fuzz", type=int, metavar="COUNT", help="compare this many random transcripts with the unit")
    parser.add_argument("--seed", type=int, default=0, help="first seed of --fuzz (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop --fuzz after this long")
    parser.add_argument("--steps", type=int, default=60, help="length of a random transcript (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, help="file to write the transcript to (default: standard output)")
    parser.add_argument("--json", action="store_true", help="--fuzz: print the result as one JSON object")


def run(options: argparse.Namespace) -> int:
    """See `cli.exits`."""
    found = version()
    if found is None:
        print(f"{PROGRAM} is missing: apt-get install qemu-system-x86", file=sys.stderr)
        return Exit.REFUSED
    try:
        if options.fuzz is not None:
            return _fuzz(options, found)
        header, operations = _chosen(options)
        with Recorder(header) as recorder:
            recorded = recorder.record(operations)
        _write(options.output, header, recorded)
    except (QemuError, t.Malformed, OSError) as error:
        print(f"{options.transcript or PROGRAM}: {error}", file=sys.stderr)
        return Exit.REFUSED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return Exit.AS_EXPECTED


def _chosen(options: argparse.Namespace) -> tuple[t.Header, list[t.Operation]]:
    if options.random is not None:
        return generate(options.random, options.steps)
    numbered = lines(options.transcript)
    _, line = next(numbered, (1, b""))
    header = t.read_header(line)
    return header, [operation for _, operation in t.read_operations(header, numbered)]


def _write(path: Path | None, header: t.Header, operations: list[t.Operation]) -> None:
    text = b"".join(t.write(header, operations))
    if path is None:
        sys.stdout.buffer.write(text)
        sys.stdout.flush()
    else:
        path.write_bytes(text)


def _fuzz(options: argparse.Namespace, found: tuple[int, int, int]) -> int:
    """Ends at the first difference, with the shortest transcript that shows it."""
    quirks = quirks_of(found)
    name = ".".join(map(str, found))
    for quirk in Quirk:
        if quirk not in quirks:
            print(f"QEMU {name}: skipped by name: {quirk.id}", file=sys.stderr)
    deadline = time.monotonic() + options.seconds
    compared = 0
    skipped = 0
    difference: Found | None = None
    for seed in range(options.seed, options.seed + options.fuzz):
        if time.monotonic() > deadline:
            break
        try:
            difference = fuzz(seed, quirks, options.steps)
        except QemuError as error:
            skipped += 1
            print(f"seed {seed} skipped: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        compared += 1
        if difference is not None:
            break
    _report(options, name, compared, skipped, difference)
    return Exit.AS_EXPECTED if difference is None else Exit.DIFFERS


def _report(options: argparse.Namespace, name: str, compared: int, skipped: int, found: Found | None) -> None:
    if found is not None and (options.output is not None or not options.json):
        _write(options.output, found.header, found.operations)
    if options.json:
        result = {
            "qemu": name,
            "compared": compared,
            "skipped": skipped,
            "seed": None if found is None else found.seed,
            "difference": None if found is None else str(found.difference),
        }
        print(json.dumps(result))
        return
    text = f"QEMU {name}: {compared} compared, {skipped} skipped"
    if found is not None:
        text += f"; seed {found.seed}: {found.difference}"
    print(text, file=sys.stdout if found is None else sys.stderr)
