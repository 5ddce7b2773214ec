"""A reader of the launcher that is gone, that has stopped, or that never was; and Ctrl-C before anything is up."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.topologies.launcher import ROOT, SMALL, assert_gone, launched, write

pytestmark = [pytest.mark.topology, pytest.mark.long]

QUIET = SMALL.replace("rogue", "#rogue")
SMALLEST_PIPE = 4096


def _redirected(tmp_path: Path, how: str) -> subprocess.CompletedProcess[str]:
    """A launch by a shell."""
    command = f'exec "$0" -m viommu_actors topology "$1" --run-dir "$2" {how}'
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command, sys.executable, write(tmp_path, QUIET), tmp_path / "run"],
        capture_output=True,
        text=True,
        timeout=40,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("how", [">&-", "2>/dev/full", "| head -1", "2>&1 >/dev/null | head -1", "<&- >&- 2>&-"])
def test_nobody_reads_and_the_run_is_as_expected_all_the_same(tmp_path: Path, how: str) -> None:
    done = _redirected(tmp_path, how)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert json.loads((tmp_path / "run" / "results.json").read_text())["ok"] is True


def test_json_is_printed_with_no_standard_error(tmp_path: Path) -> None:
    done = _redirected(tmp_path, "--json 2>&-")
    assert done.returncode == 0 and json.loads(done.stdout)["ok"] is True


def test_results_that_cannot_be_written_are_an_error_in_one_line(tmp_path: Path) -> None:
    done = _redirected(tmp_path, ">/dev/full")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "standard output: No space left on device"


@contextmanager
def _unread_pipe() -> Iterator[int]:
    """The writing end of a pipe that is full, and that nobody reads."""
    reading, writing = os.pipe()
    try:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, SMALLEST_PIPE)
        os.write(writing, bytes(SMALLEST_PIPE))
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_reader_that_stopped_does_not_hold_a_topology_that_stays(tmp_path: Path, number: signal.Signals) -> None:
    with (
        _unread_pipe() as pipe,
        launched(write(tmp_path, QUIET), tmp_path / "run", "--stay", "--json", stdout=pipe) as running,
    ):
        running.wait_for_file("results.json")
        time.sleep(1)
        pids = running.pids()
        assert running.process.poll() is None and pids
        running.process.send_signal(number)
        assert running.process.wait(timeout=4) == 0
        assert_gone(pids)


def test_no_actor_waits_for_a_reader_that_stopped(tmp_path: Path) -> None:
    with (
        _unread_pipe() as pipe,
        launched(write(tmp_path, QUIET), tmp_path / "run", stdout=pipe) as running,
    ):
        running.wait_for_file("results.json")
        assert_gone(running.pids())
        time.sleep(0.5)
        assert running.process.poll() is None
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=4) == 130


def test_progress_that_nobody_reads_does_not_hold_the_run(tmp_path: Path) -> None:
    with (
        _unread_pipe() as pipe,
        launched(write(tmp_path, QUIET), tmp_path / "run", "--stay", stderr=pipe) as running,
    ):
        running.wait_for_file("results.json")
        time.sleep(0.5)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=4) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_imports(tmp_path: Path, number: signal.Signals) -> None:
    with launched(write(tmp_path, QUIET), tmp_path / "run") as running:
        maps = Path(f"/proc/{running.process.pid}/maps")
        while "msgspec" not in maps.read_text():
            assert running.process.poll() is None
        running.process.send_signal(number)
        finished = running.finish()
    assert (finished.status, finished.stdout, finished.stderr) == (130, "", "")
