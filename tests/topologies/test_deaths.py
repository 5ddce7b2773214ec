"""Whoever is killed, whenever: the run ends in time, says who it was, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import zmq

from tests.topologies.launcher import SMALL, Finished, Launch, assert_gone, launched, write
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve

pytestmark = pytest.mark.topology

ACTORS = ("host", "vm0.hypervisor", "vm0.guest", "nic0")
#: Long enough that whoever is to be killed is killed before the end.
BUSY = SMALL.replace("operations = 8", "operations = 1000000")


def _kill(running: Launch, actor: str) -> Finished:
    pids = running.pids()
    os.kill(pids[actor], signal.SIGKILL)
    began = time.monotonic()
    finished = running.finish()
    assert time.monotonic() - began < 5
    assert_gone(pids)
    return finished


def _names(finished: Finished, actor: str) -> None:
    assert finished.status == 3
    [died] = [row for row in finished.events() if row["event"] == "died"]
    assert died["actor"] == actor
    assert f"{actor} (pid " in finished.stderr and "killed by SIGKILL; it last" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert json.loads((finished.folder / "results.json").read_text())["ok"] is False


@pytest.mark.parametrize("actor", ACTORS)
def test_killed_while_it_works(tmp_path: Path, actor: str) -> None:
    with launched(write(tmp_path, BUSY), tmp_path / "run") as running:
        running.wait_for("1000000 operations")
        _names(_kill(running, actor), actor)


@pytest.mark.parametrize("actor", ACTORS)
def test_killed_while_it_boots(tmp_path: Path, actor: str) -> None:
    with launched(write(tmp_path, SMALL), tmp_path / "run") as running:
        running.wait_for(f'"actor": "{actor}", "event": "started"')
        _names(_kill(running, actor), actor)


@pytest.mark.parametrize("actor", ACTORS)
def test_killed_while_it_stays(tmp_path: Path, actor: str) -> None:
    with launched(write(tmp_path, SMALL), tmp_path / "run", "--stay", "--json") as running:
        running.wait_for_file("results.json")
        pids = running.pids()
        os.kill(pids[actor], signal.SIGKILL)
        finished = running.finish()
        assert_gone(pids)
        assert finished.status == 3 and finished.results["ok"] is True


@pytest.mark.parametrize("moment", ["started", "did boot", pytest.param("1000000 operations", marks=pytest.mark.long)])
def test_the_launcher_is_killed(tmp_path: Path, moment: str) -> None:
    with launched(write(tmp_path, BUSY), tmp_path / "run") as running:
        running.wait_for(moment)
        pids = running.pids()
        running.process.kill()
        running.finish()
        assert_gone(pids)


def test_the_lifeline_alone_ends_every_actor(tmp_path: Path) -> None:
    """Where the parent-death signal would not: the launcher lives, and lets go of its end."""
    topology = resolve(parse(SMALL))
    folder, plan = RunFolder(topology, tmp_path / "run"), make_plan(topology)
    with Supervisor(plan, folder) as supervisor:
        supervisor.commands(ACTORS, "ping")
        with open(os.devnull) as other:
            os.dup2(other.fileno(), supervisor._lifeline[1])
        deadline = time.monotonic() + 5
        while {actor.exit_status() for actor in supervisor.actors.values()} != {-signal.SIGIO}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    folder.close()


def test_the_launchers_only_children_are_actors(tmp_path: Path) -> None:
    with launched(write(tmp_path, BUSY), tmp_path / "run") as running:
        running.wait_for("1000000 operations")
        children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
        assert {int(pid) for pid in children} == set(running.pids().values())


def test_no_path_leads_to_a_running_topology(tmp_path: Path) -> None:
    """Abstract sockets and anonymous memory alone: a kill has nothing to leave behind."""
    before = set(Path("/dev/shm").iterdir())
    with launched(write(tmp_path, BUSY), tmp_path / "run") as running:
        running.wait_for("1000000 operations")
        names = [line.split()[7] for line in Path("/proc/net/unix").read_text().splitlines() if "viommu" in line]
        ours = [name for name in names if re.fullmatch("@viommu-[0-9a-f]{32}", name)]
        assert ours and not [name for name in names if "/" in name]
        assert set(Path("/dev/shm").iterdir()) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_before_the_verdicts(tmp_path: Path, number: signal.Signals) -> None:
    with launched(write(tmp_path, BUSY), tmp_path / "run", "--json") as running:
        running.wait_for("1000000 operations")
        pids = running.pids()
        running.process.send_signal(number)
        began = time.monotonic()
        finished = running.finish()
        assert time.monotonic() - began < 5
        assert finished.status == 130 and finished.stdout == "" and f"ended by {number.name}" in finished.stderr
        results = json.loads((finished.folder / "results.json").read_text())
        assert results["ok"] is False and len(results["processes"]) == 4
        assert_gone(pids)


def test_ctrl_c_after_the_verdicts_ends_a_topology_that_stays(tmp_path: Path) -> None:
    with launched(write(tmp_path, SMALL), tmp_path / "run", "--json", "--stay") as running:
        running.wait_for_file("results.json")
        time.sleep(0.2)
        assert running.process.poll() is None
        pids = running.pids()
        running.process.send_signal(signal.SIGINT)
        finished = running.finish()
        assert finished.status == 0 and finished.results["ok"] is True
        assert_gone(pids)


def test_status_and_stop_by_the_control_socket(tmp_path: Path) -> None:
    with launched(write(tmp_path, SMALL), tmp_path / "run", "--json", "--stay") as running:
        running.wait_for_file("results.json")
        control = json.loads((tmp_path / "run" / "control.json").read_text())
        assert control["pid"] == running.process.pid
        assert {row["name"] for row in _ask(control["address"], b'{"command": "status"}')["processes"]} == set(ACTORS)
        for nonsense in (b"", b"[" * 5000, b"1", b'{"command": []}', b"\xff"):
            assert "error" in _ask(control["address"], nonsense)
        assert _ask(control["address"], b'{"command": "stop"}') == {"stopping": True}
        assert running.finish().status == 0
        assert not (tmp_path / "run" / "control.json").exists()


CONTAINED = (
    SMALL.replace('name = "small"', 'name = "small"\non_death = "contain"').replace("rogue", "#rogue")
    + """
[[device]]
name = "nic1"
model = "nic"
operations = 400

[[vm]]
name = "vm1"
memory = "16M"
[vm.viommu]
[[vm.assign]]
device = "nic1"
"""
).replace("operations = 8", "operations = 1000000")


@pytest.mark.long
@pytest.mark.parametrize("victim", ["vm0.hypervisor", "vm0.guest", "nic0"])
def test_a_contained_death_leaves_the_other_guest_at_work(tmp_path: Path, victim: str) -> None:
    with launched(write(tmp_path, CONTAINED), tmp_path / "run", "--json") as running:
        running.wait_for("1000000 operations")
        pids = running.pids()
        os.kill(pids[victim], signal.SIGKILL)
        finished = running.finish()
        assert finished.status == 3 and f"{victim} (pid " in finished.stderr
        rows = {row["device"]: row for row in finished.results["io"]}
        assert rows["nic1"]["verified"] and rows["nic1"]["traps"] == 800
        assert_gone(pids)


@pytest.mark.long
@pytest.mark.parametrize("victim", ["vm0.hypervisor", "vm0.guest"])
@pytest.mark.parametrize("moment", ["started", "did ping"])
def test_a_contained_death_during_the_boot(tmp_path: Path, victim: str, moment: str) -> None:
    with launched(write(tmp_path, CONTAINED), tmp_path / "run", "--json") as running:
        running.wait_for(f'"actor": "{victim}", "event": "{moment}"')
        pids = running.pids()
        os.kill(pids[victim], signal.SIGKILL)
        finished = running.finish()
        assert finished.status == 3 and f"{victim} (pid " in finished.stderr and "Traceback" not in finished.stderr
        assert [row["device"] for row in finished.results["io"] if row["verified"]] == ["nic1"]
        assert_gone(pids)


def test_a_contained_death_of_a_cabled_nic_names_it(tmp_path: Path) -> None:
    """What crossed its cable is counted at one end only from then on, and that is no disagreement."""
    text = CONTAINED.replace('name = "nic0"\nmodel', 'name = "nic0"\npeer = "nic1"\nmodel')
    text = text.replace('name = "nic1"\nmodel', 'name = "nic1"\npeer = "nic0"\nmodel')
    with launched(write(tmp_path, text), tmp_path / "run", "--json") as running:
        running.wait_for("1000000 frames")
        pids = running.pids()
        os.kill(pids["nic1"], signal.SIGKILL)
        finished = running.finish()
        assert finished.status == 3 and "nic1 (pid " in finished.stderr
        assert_gone(pids)


def test_the_hosts_death_is_never_contained(tmp_path: Path) -> None:
    with launched(write(tmp_path, CONTAINED), tmp_path / "run") as running:
        running.wait_for("1000000 operations")
        _names(_kill(running, "host"), "host")


def _ask(address: str, request: bytes) -> dict[str, object]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.linger = 0
        client.connect(address)
        client.send(request)
        assert client.poll(5000)
        answer: dict[str, object] = json.loads(client.recv())
        return answer
