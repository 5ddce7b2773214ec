"""A run's folder belongs to one run, and what becomes of it meanwhile is told in a line."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.topologies.launcher import SMALL, assert_gone, launch, launched, write

pytestmark = pytest.mark.topology

QUIET = SMALL.replace("rogue", "#rogue")
BUSY = QUIET.replace("operations = 8", "operations = 1000000")


@pytest.mark.long
def test_a_folder_that_is_used_again_keeps_nothing_of_the_run_before(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert launch(write(tmp_path, QUIET.replace("nic0", "nic9")), folder, "--json").status == 0
    (folder / "mine.log").write_text("")
    (folder / "rogue-2.json").write_text("")
    with (folder / "events.jsonl").open("ab") as events:
        events.write(b'\xff{"event": "started", "actor": 1}\n1\n{"event": "started", "actor": "../secret"}\n')
    (tmp_path / "secret.log").write_text("")
    with launched(write(tmp_path, BUSY), folder) as running:
        running.wait_for("1000000 operations")
        running.process.kill()
        assert_gone(running.pids())
    names = {path.name for path in folder.iterdir()}
    assert (tmp_path / "secret.log").exists()
    assert names == {
        "topology.json",
        "control.json",
        "events.jsonl",
        "host.log",
        "nic0.log",
        "vm0.guest.log",
        "vm0.hypervisor.log",
        "mine.log",
    }
    assert launch(write(tmp_path, QUIET), folder, "--json").status == 0, "a lock outlived its launcher"


def test_a_folder_has_one_live_run(tmp_path: Path) -> None:
    config = write(tmp_path, QUIET)
    with launched(config, tmp_path / "run", "--json", "--stay") as running:
        running.wait_for_file("results.json")
        with launched(config, tmp_path / "run", "--json") as second:
            refused = second.finish()
        assert (refused.status, refused.stdout) == (2, "")
        [line] = refused.stderr.splitlines()
        assert "another live run has it" in line and str(tmp_path / "run") in line
        running.process.send_signal(signal.SIGINT)
        assert running.finish().results["ok"] is True


def test_what_cannot_be_removed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "results.json").mkdir(parents=True)
    with launched(write(tmp_path, QUIET), tmp_path / "run") as running:
        finished = running.finish()
    assert finished.status == 2
    [line] = finished.stderr.splitlines()
    assert "results.json: Is a directory" in line


@pytest.mark.long
@pytest.mark.parametrize("harm", ["deleted", "directory"])
def test_a_folder_that_is_harmed_meanwhile_ends_the_run_in_one_line(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "run"
    with launched(write(tmp_path, QUIET.replace("operations = 8", "operations = 400")), folder, "--json") as running:
        running.wait_for("400 operations")
        pids = running.pids()
        if harm == "deleted":
            shutil.rmtree(folder)
        else:
            (folder / "results.json").mkdir()
        finished = running.finish()
        assert_gone(pids)
    assert finished.status == 1 and "Traceback" not in finished.stderr
    assert "results.json" in finished.stderr.splitlines()[-2]
    assert json.loads(finished.stdout)["ok"] is True


def test_a_folder_that_is_deleted_before_an_interrupt(tmp_path: Path) -> None:
    with launched(write(tmp_path, BUSY), tmp_path / "run") as running:
        running.wait_for("1000000 operations")
        shutil.rmtree(tmp_path / "run")
        running.process.send_signal(signal.SIGINT)
        finished = running.finish()
    assert finished.status == 130 and "Traceback" not in finished.stderr
    assert "ended by SIGINT" in finished.stderr and "No such file or directory" in finished.stderr
