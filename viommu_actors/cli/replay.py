"""`viommu replay PATH…`: transcripts of QEMU's vIOMMU run on the project's own, and where they differ."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple, TextIO

from viommu_actors.cli.exits import Exit
from viommu_actors.cli.transcripts import find, lines
from viommu_actors.replay.judge import Advisory, judge
from viommu_actors.replay.transcript import Malformed, read_header, read_operations

HELP = "run recorded transcripts on the project's VT-d unit and print where they differ"
#: A list of this many files has a progress bar.
LONG_LIST = 20


class FileResult(NamedTuple):
    """`result` is passed, failed, malformed or information."""

    path: Path
    class_: str | None
    result: str
    difference: str | None
    operations: int
    advisory: list[Advisory]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="+", type=Path, help="a transcript, or a folder: its *.jsonl and *.jsonl.gz")
    parser.add_argument(
        "--quirks",
        choices=("spec", "qemu"),
        default="spec",
        help="what the unit is: as specified (default), or with QEMU 7.2's deviations; then all must match",
    )
    parser.add_argument("--advisory", action="store_true", help="print also each difference that does not count")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object, and nothing else")


def run(options: argparse.Namespace) -> int:
    """See `cli.exits`; refused where a file is malformed."""
    try:
        paths = find(options.path)
    except OSError as error:
        print(error, file=sys.stderr)
        return Exit.REFUSED
    if not paths:
        print(f"{options.path[0]}: no *.jsonl or *.jsonl.gz there", file=sys.stderr)
        return Exit.REFUSED
    start = time.monotonic()
    results: list[FileResult] = []
    bar = _Bar(sys.stderr, len(paths))
    try:
        for path in paths:
            bar.show(len(results), path)
            result = replay(path, options.quirks)
            results.append(result)
            if not options.json:
                bar.clear()
                _print(result, options.advisory)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    finally:
        bar.clear()
    seconds = time.monotonic() - start
    if options.json:
        print(json.dumps(_summary(results, seconds)))
    else:
        print(_sentence(results, seconds))
    tally = Counter(result.result for result in results)
    if tally["malformed"]:
        return Exit.REFUSED
    return Exit.DIFFERS if tally["failed"] else Exit.AS_EXPECTED


def replay(path: Path, mode: str) -> FileResult:
    """Runs one file."""
    class_ = None
    count = 0
    try:
        numbered = lines(path)
        number, line = next(numbered, (1, b""))
        if number != 1:
            raise Malformed(1, "blank; the header is to be here")
        header = read_header(line)
        class_ = header.class_
        operations = list(read_operations(header, numbered))
        count = len(operations)
        outcome = judge(header, operations, "qemu" if mode == "qemu" else "spec")
    except Malformed as error:
        return FileResult(path, class_, "malformed", str(error), count, [])
    except OSError as error:
        return FileResult(path, class_, "malformed", f"line 1: {error.strerror or error}", count, [])
    difference = None if outcome.difference is None else str(outcome.difference)
    return FileResult(path, class_, outcome.result, difference, count, outcome.advisory)


def _print(result: FileResult, advisory: bool) -> None:
    if result.result == "information":
        text = "information: " + (result.difference or "no difference")
    elif result.difference is not None:
        text = f"{result.result}: {result.difference}"
    else:
        text = "ok"
    print(f"{result.path}: {text}", flush=True)
    if advisory:
        for difference, why in result.advisory:
            print(f"    advisory: {difference} ({why})")


def _summary(results: list[FileResult], seconds: float) -> dict[str, object]:
    tally = Counter(result.result for result in results)
    return {
        "passed": tally["passed"],
        "failed": tally["failed"],
        "malformed": tally["malformed"],
        "advisory": sum(len(result.advisory) for result in results),
        "operations": sum(result.operations for result in results),
        "seconds": round(seconds, 3),
        "files": [
            {
                "path": str(result.path),
                "class": result.class_,
                "result": result.result,
                "difference": result.difference,
            }
            for result in results
        ],
    }


def _sentence(results: list[FileResult], seconds: float) -> str:
    tally = Counter(result.result for result in results)
    operations = sum(result.operations for result in results)
    parts = [f"{tally[name]} {name}" for name in ("passed", "failed", "malformed", "information") if tally[name]]
    advisory = sum(len(result.advisory) for result in results)
    return f"{', '.join(parts)}; {advisory} advisory; {operations} operations in {seconds:.1f} s"


class _Bar:
    """A line on a terminal that says how far a long list is."""

    def __init__(self, stream: TextIO, total: int) -> None:
        self._stream = stream if stream.isatty() and total >= LONG_LIST else None
        self._total = total

    def show(self, done: int, path: Path) -> None:
        if self._stream is not None:
            filled = 30 * done // self._total
            bar = "#" * filled + "-" * (30 - filled)
            self._stream.write(f"\r\x1b[K[{bar}] {done}/{self._total} {path.name[:40]}")
            self._stream.flush()

    def clear(self) -> None:
        if self._stream is not None:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
