"""What a rogue did is undone when its attack is broken off: by Ctrl-C, by its own death, wherever the attack stood."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.topologies.launcher import Launch, assert_gone
from tests.topologies.rogue import attack, attacking, status, staying, wait_for_attached
from viommu_actors.supervise.runs import find_run

pytestmark = [pytest.mark.topology, pytest.mark.long]

#: A device with address translation services, behind the host's own driver; one behind a vIOMMU; one that works.
TRANSLATING = """
name = "translating"

[host]
memory = "32M"
cmdline = "intel_iommu=on"
spare_slots = 1

[host.iommu]
device_iotlb = true

[[device]]
name = "nic0"
model = "nic"
ats = true
operations = 8

[[device]]
name = "edu0"
model = "edu"
operations = 8

[[device]]
name = "nic1"
model = "nic"
operations = 8

[[vm]]
name = "vm0"
memory = "16M"
[vm.viommu]
[[vm.assign]]
device = "nic1"
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    with staying(tmp_path_factory.mktemp("translating"), TRANSLATING) as launch:
        yield launch


@pytest.fixture
def run(running: Launch) -> Path:
    return running.folder


class Asker:
    """A connection to the run's door that can do more than wait."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket

    def say(self, command: str, **fields: Any) -> None:
        self._socket.send(json.dumps({"command": command, **fields}).encode())

    def hear(self, *keys: str) -> dict[str, Any]:
        """The next answer that has one of these keys."""
        while True:
            assert self._socket.poll(40_000)
            answer: dict[str, Any] = json.loads(self._socket.recv())
            if any(key in answer for key in keys):
                return answer


@contextmanager
def asking(run: Path) -> Iterator[Asker]:
    with zmq.Context(1) as context, context.socket(zmq.DEALER) as socket:
        socket.connect(find_run(run).address)
        yield Asker(socket)


def _times(run: Path, command: str) -> int:
    """How often an actor has done what it was told."""
    return (run / "events.jsonl").read_text().count(f'"did {command}"')


def _wait_for(run: Path, command: str, before: int) -> None:
    deadline = time.monotonic() + 20
    while _times(run, command) <= before:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _works(run: Path, device: str) -> None:
    """Its driver has it again, and every byte that it moved was verified."""
    finished = attack(run, "--as", "edu0", "--attacks", "A24", "--json")
    assert finished.status == 0, finished.stderr
    [row] = [row for row in finished.results["io"] if row["device"] == device]
    assert row["verified"] and row["operations"]


def test_ctrl_c_while_an_invalidation_is_not_answered(run: Path) -> None:
    """A18: the kernel waits for the device-TLB when whoever attacks gives it up."""
    watched = _times(run, "evidence")
    with attacking(run, "--as", "nic0", "--attacks", "A18", "--repeat", "100") as rogue:
        _wait_for(run, "evidence", watched)
        rogue.process.send_signal(signal.SIGINT)
        finished = rogue.finish()
    assert finished.status == 130 and "Traceback" not in finished.stderr
    assert status(run)["attached"] == []
    _works(run, "nic0")


@pytest.mark.parametrize("how", ["given up", "killed"])
def test_broken_off_while_the_driver_is_taken_away(run: Path, how: str) -> None:
    """A48 by a device that has stopped: nothing goes on once it is to play its part."""
    with asking(run) as asker:
        asker.say("device_add", place="as", device="nic1")
        assert "result" in asker.hear("result", "error")
        [attached] = status(run)["attached"]
        os.kill(attached["pid"], signal.SIGSTOP)
        taken = _times(run, "unbind")
        asker.say("attack", device="nic1", attacks=["A48"])
        _wait_for(run, "unbind", taken)
        if how == "killed":
            os.kill(attached["pid"], signal.SIGKILL)
        else:
            asker.say("cancel")
        assert asker.hear("error")["how"] == {"killed": "died", "given up": "interrupted"}[how]
    wait_for_attached(run, 0)
    assert_gone({"rogue": attached["pid"]})
    _works(run, "nic1")


def test_a_guests_entry_is_what_it_was(run: Path) -> None:
    """A33 by a device that has stopped, which is killed: its guest's table does not go on naming the host's page."""
    with asking(run) as asker:
        asker.say("device_add", place="as", device="nic1")
        assert "result" in asker.hear("result", "error")
        [attached] = status(run)["attached"]
        os.kill(attached["pid"], signal.SIGSTOP)
        pointed, mended = _times(run, "point_entry"), _times(run, "mend_entry")
        asker.say("attack", device="nic1", attacks=["A33"])
        _wait_for(run, "point_entry", pointed)
        os.kill(attached["pid"], signal.SIGKILL)
        assert asker.hear("error")["how"] == "died"
    wait_for_attached(run, 0)
    assert _times(run, "mend_entry") == mended + 1
    _works(run, "nic1")


STUCK = """
from viommu_actors.rogue import Rogue


class Stuck(Rogue):
    def run(self):
        while True:
            pass
"""


def test_a_script_that_ends_never_leaves_a_device_that_works(run: Path, tmp_path: Path) -> None:
    """Its device-TLB answers nothing, so that the kernel blocks the device; what comes back is reset."""
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    finished = attack(run, "--as", "nic0", "--script", str(script), "--seconds", "0.5")
    assert finished.status == 1 and "did not end" in finished.stderr
    _works(run, "nic0")


@pytest.mark.parametrize("place", [("--slot",), ("--swap", "edu0")])
def test_ctrl_c_frees_a_slot(tmp_path: Path, place: tuple[str, ...]) -> None:
    with staying(tmp_path, TRANSLATING) as running:
        run = running.folder
        with attacking(run, *place, "--attacks", "A1", "--repeat", "1000") as rogue:
            [attached] = wait_for_attached(run, 1)
            rogue.process.send_signal(signal.SIGINT)
            finished = rogue.finish()
        assert finished.status == 130 and "Traceback" not in finished.stderr
        assert status(run)["attached"] == []
        assert_gone({"rogue": attached["pid"]})
        again = attack(run, "--slot", str(attached["slot"]), "--attacks", "A24", "--json")
        assert again.status == 0, again.stderr
        assert all(row["verified"] for row in again.results["io"]) and again.results["io"]


def test_a_device_that_does_not_work_is_told_of_beside_the_verdicts(tmp_path: Path) -> None:
    """What another device's driver meets is a row of the report; the rogue's verdicts are not lost for it."""
    with staying(tmp_path, TRANSLATING) as running:
        os.kill(running.pids()["edu0"], signal.SIGSTOP)
        finished = attack(running.folder, "--as", "nic0", "--attacks", "A2", "--json")
        assert finished.status == 1 and finished.results["verdicts"], finished.stderr
        rows = {row["device"]: row for row in finished.results["io"]}
        assert rows["nic1"]["verified"] and not rows["edu0"]["verified"] and rows["edu0"]["failed"]


def test_a_device_that_takes_no_commands_holds_nobody_up(run: Path) -> None:
    """A device that has stopped is told more than its socket takes; when it goes on, it gets all of it."""
    text = f"from viommu_actors.rogue import Rogue\n\n\nclass Long(Rogue):\n    pass\n\n\n#{60_000 * 'x'}\n"
    with asking(run) as asker:
        asker.say("device_add", place="as", device="nic1")
        assert "result" in asker.hear("result", "error")
        [attached] = status(run)["attached"]
        os.kill(attached["pid"], signal.SIGSTOP)
        for number in range(1, 9):
            watched = _times(run, "watch_fields")
            asker.say("script", device="nic1", text=text, id=number)
            _wait_for(run, "watch_fields", watched)
            asker.say("cancel")
            assert asker.hear("error")["how"] == "interrupted"
        os.kill(attached["pid"], signal.SIGCONT)
        asker.say("attack", device="nic1", attacks=["A2"], id=9)
        assert asker.hear("result", "error")["result"]["ok"]
    wait_for_attached(run, 0)
    _works(run, "nic1")


def test_a_removal_that_fails_ends_nothing_but_the_device(tmp_path: Path) -> None:
    """There is no place for the log of the process that is to be the device's own firmware again."""
    with staying(tmp_path, TRANSLATING) as running:
        run = running.folder
        with asking(run) as asker:
            asker.say("device_add", place="as", device="nic0")
            assert "result" in asker.hear("result", "error")
            (run / "nic0.2.log").mkdir()
        wait_for_attached(run, 0)
        assert attack(run, "--as", "nic0").status == 2
        finished = attack(run, "--as", "edu0", "--attacks", "A24", "--json")
        assert finished.status == 0 and [row["device"] for row in finished.results["io"]] == ["nic1"]
