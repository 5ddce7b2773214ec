"""Progress is plain lines for a file, and lives on a terminal."""

from __future__ import annotations

import io
import re

import pytest

from viommu_actors.report.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_as_they_come() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.tell("host kernel boots")
        assert re.fullmatch(r" +\d+\.\d\d s  host kernel boots\n", stream.getvalue())
        progress.tell("[done]")
    assert stream.getvalue().endswith("s  [done]\n")


def test_a_terminal_keeps_every_step() -> None:
    pytest.importorskip("rich")
    stream = Terminal()
    with Progress(stream) as progress:
        progress.tell("host kernel boots")
        progress.tell("[done]")
    kept = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert re.search(r"s  host kernel boots", kept)
    assert re.search(r"s  \[done\]", kept)


def test_at_rest_the_terminal_is_left_to_others() -> None:
    pytest.importorskip("rich")
    stream = Terminal()
    with Progress(stream) as progress:
        progress.tell("last step")
        progress.rest()
        written = len(stream.getvalue())
        stream.write("report\n")
        progress.tell("up")
    assert re.fullmatch(r"report\n +\d+\.\d\d s  up\n", stream.getvalue()[written:])
