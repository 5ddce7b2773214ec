"""Transcripts on disk: which files there are under a path, and their lines."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from viommu_actors.replay.transcript import LINE_LIMIT, SIZE_LIMIT, Malformed

PATTERNS = ("*.jsonl", "*.jsonl.gz")
#: Beside this file the folder is an image of a guest's tables, and its .jsonl no transcript: see `viommu inspect`.
IMAGE_MARK = "state.json"


def find(paths: list[Path]) -> list[Path]:
    """Files as they were named, and in folders what looks like a transcript, sorted. Raises FileNotFoundError."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = {file for pattern in PATTERNS for file in path.rglob(pattern) if file.is_file()}
            found |= dict.fromkeys(sorted(file for file in inside if not (file.parent / IMAGE_MARK).exists()))
        elif path.is_file():
            found[path] = None
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    return list(found)


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Its lines, numbered from 1, blank ones left out. Raises Malformed, and OSError where it cannot be read."""
    size = path.stat().st_size
    if size > SIZE_LIMIT:
        raise Malformed(1, f"{size} bytes; a transcript has at most {SIZE_LIMIT}")
    number = 0
    total = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while True:
            number += 1
            try:
                line = file.readline(LINE_LIMIT + 1)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise Malformed(number, f"broken gzip: {error}") from None
            total += len(line)
            if len(line) > LINE_LIMIT:
                raise Malformed(number, f"longer than {LINE_LIMIT} bytes")
            if total > SIZE_LIMIT:
                raise Malformed(number, f"more than {SIZE_LIMIT} bytes unpacked")
            if not line:
                return
            if line.strip():
                yield number, line
