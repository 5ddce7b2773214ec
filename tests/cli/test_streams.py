"""The streams of a command: what goes to one place by both of them."""

from __future__ import annotations

import subprocess
import sys

from tests.topologies.launcher import ROOT

LINES = 2000
PROGRAM = f"""
import sys
from viommu_actors.cli.streams import standard_streams
with standard_streams():
    for number in range({LINES}):
        print(number, file=sys.stderr)
        print(number, flush=True)
"""


def test_what_both_print_to_one_terminal_comes_in_the_order_in_which_it_was_printed() -> None:
    """A line that is wiped on standard error is gone before standard output writes there."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=40,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout.split() == [str(number) for number in range(LINES) for _ in range(2)]


def test_two_places_have_what_was_printed_to_each() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, timeout=40, cwd=ROOT, check=True)
    expected = "".join(f"{number}\n" for number in range(LINES)).encode()
    assert (done.stdout, done.stderr) == (expected, expected)
