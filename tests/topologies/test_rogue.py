"""A rogue in another terminal: it takes over a device, attacks, leaves, and the topology goes on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import SMALL, Launch, assert_gone, launched, write
from tests.topologies.rogue import attack, attacking, status, staying, wait_for_attached
from viommu_actors.supervise.client import DoorClient, JobFailed
from viommu_actors.supervise.requests import Attack, DeviceAdd
from viommu_actors.supervise.runs import find_run

pytestmark = pytest.mark.topology

#: Long enough that whoever is to be interrupted is interrupted before the end.
LONG = ("--attacks", "A1", "--repeat", "1000")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    with staying(tmp_path_factory.mktemp("staying")) as launch:
        yield launch


@pytest.fixture
def run(running: Launch) -> Path:
    return running.folder


def _observed(results: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(row["attack"], row["target"], row["observed"]) for row in results["verdicts"]}


def _honest(run: Path, *names: str) -> None:
    """A rogue's attack was followed by honest work of these, every byte verified."""
    last = max(run.glob("rogue-*.json"), key=lambda path: int(path.stem.partition("-")[2]))
    rows = {row["device"]: row for row in json.loads(last.read_text())["io"]}
    assert set(rows) == set(names) and all(row["verified"] and row["operations"] for row in rows.values())


def test_it_takes_over_a_device_behind_a_viommu_and_is_stopped(run: Path) -> None:
    finished = attack(run, "--as", "nic0", "--attacks", "A1,A2,A12", "--json")
    assert finished.status == 0, finished.stderr
    assert _observed(finished.results) == {
        ("A1", "guest memory", "blocked"),
        ("A1", "host memory", "blocked"),
        ("A2", "guest memory", "blocked"),
        ("A2", "host memory", "blocked"),
        ("A12", "other guest", "blocked"),
    }
    assert all(row["device"] == "nic0" and row["evidence"]["control"] for row in finished.results["verdicts"])
    assert finished.results["process"]["name"] == "nic0" and "sandbox" in finished.results["process"]
    _honest(run, "edu0", "nic1")
    assert status(run)["attached"] == []


def test_without_a_viommu_it_gets_at_its_guest_alone(run: Path) -> None:
    finished = attack(run, "--as", "edu0", "--attacks", "A2,A12", "--json")
    assert finished.status == 0, finished.stderr
    assert ("A2", "guest memory", "corrupted") in _observed(finished.results)
    assert ("A12", "other guest", "blocked") in _observed(finished.results)
    _honest(run, "nic0", "nic1")


@pytest.mark.long
def test_the_device_works_again_and_can_be_taken_again(run: Path) -> None:
    """Another rogue's report tells of honest work of the device that was a rogue before."""
    for _ in range(2):
        assert attack(run, "--as", "nic1", "--attacks", "A2").status == 0
    assert attack(run, "--as", "edu0", "--attacks", "A24").status == 0
    _honest(run, "nic0", "nic1")


def test_nobody_saw_a_link_go_down(running: Launch, run: Path) -> None:
    assert attack(run, "--as", "nic0", "--attacks", "A2").status == 0
    log = (run / "host.log").read_text()
    assert "removed" not in log and log.count("BAR 0: assigned") == 3


def test_it_is_plugged_into_a_free_slot_while_all_is_up(running: Launch, run: Path) -> None:
    for model in ("nic", "edu"):
        finished = attack(run, "--slot", "--model", model, "--attacks", "A1,A2,A12,A24", "--json")
        assert finished.status == 0, finished.stderr
        assert {observed for _, _, observed in _observed(finished.results)} == {"blocked"}
        assert all(row["device"] == "rogue1" and row["driver"] == "host" for row in finished.results["verdicts"])
        _honest(run, "nic0", "edu0", "nic1")
    log = (run / "host.log").read_text()
    assert log.count("pciehp: Slot(4): Card present") == log.count("pciehp: Slot(4): Link Down") == 2
    assert "nic1 0000:04:00.0" not in log and status(run)["attached"] == []


@pytest.mark.long
def test_a_slot_holds_one_device(run: Path) -> None:
    assert attack(run, "--slot", "4", "--attacks", "A2", "--detach").status == 0
    [attached] = status(run)["attached"]
    assert attached["device"] == "rogue1" and attached["slot"] == 4
    for options in (("--slot", "4"), ("--slot",), ("--slot", "1")):
        finished = attack(run, *options)
        assert finished.status == 2 and "spare_slots" in finished.stderr
    assert attack(run, "--remove", "rogue1").status == 0
    assert_gone({"rogue": attached["pid"]})


def test_a_rogue_in_a_slot_is_killed(run: Path) -> None:
    with attacking(run, "--slot", *LONG) as rogue:
        [attached] = wait_for_attached(run, 1)
        os.kill(attached["pid"], signal.SIGKILL)
        finished = rogue.finish()
    assert finished.status == 3 and "rogue1 (pid" in finished.stderr
    assert attack(run, "--slot", "--attacks", "A2").status == 0
    _honest(run, "nic0", "edu0", "nic1")


def test_a_slot_without_an_iommu_in_use(tmp_path: Path) -> None:
    """What comes into a slot of a host that translates nothing gets at everything."""
    text = SMALL.replace("intel_iommu=on", "intel_iommu=off").partition("[[vm]]")[0].replace("rogue", "#rogue")
    text = text.replace('memory = "32M"', 'memory = "32M"\ncmdline = "intel_iommu=off"\nspare_slots = 2')
    with staying(tmp_path, text) as running:
        finished = attack(running.folder, "--slot", "3", "--attacks", "A1,A2", "--json")
        assert finished.status == 0, finished.stderr
        assert _observed(finished.results) == {("A1", "host memory", "leaked"), ("A2", "host memory", "corrupted")}


@pytest.mark.long
def test_all_attacks_that_apply_and_why_others_do_not(run: Path) -> None:
    finished = attack(run, "--as", "nic0")
    assert finished.status == 0, finished.stderr
    assert "As expected" in finished.stdout and "A32" in finished.stdout and "blocked, as expected" in finished.stdout
    assert "nic0: A1 scan-read on guest memory" in finished.stderr


def test_repeat(run: Path) -> None:
    finished = attack(run, "--as", "nic0", "--attacks", "A24", "--repeat", "3", "--json")
    assert finished.status == 0 and len(finished.results["verdicts"]) == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--as", "nic9"), 'no device "nic9"; did you mean "nic1"? there are nic0, edu0, nic1'),
        (("--as", "nic0", "--attacks", "A2,A222"), 'no attack "A222"; did you mean "A22"?'),
        (("--as", "UPPER"), "device"),
        (("--remove", "nic0"), 'no rogue is attached as "nic0"'),
        (("--as", "nic0", "--attacks", ","), "--attacks"),
        (("--as", "nic0", "--repeat", "0"), "--repeat"),
        (("--slot", "99"), "'99' is no slot from 1 to 31"),
        (("--as", "nic0", "--seconds", "0"), "'0' is no time"),
    ],
)
def test_what_is_refused(run: Path, options: tuple[str, ...], said: str) -> None:
    finished = attack(run, *options)
    assert finished.status == 2 and finished.stdout == "" and said in finished.stderr
    assert "Traceback" not in finished.stderr
    assert status(run)["attached"] == []


def test_ctrl_c_unplugs_it(run: Path) -> None:
    with attacking(run, "--as", "nic0", *LONG) as rogue:
        [attached] = wait_for_attached(run, 1)
        rogue.process.send_signal(signal.SIGINT)
        finished = rogue.finish()
    assert finished.status == 130 and finished.stdout == "" and "Traceback" not in finished.stderr
    assert status(run)["attached"] == []
    assert_gone({"rogue": attached["pid"]})
    assert attack(run, "--as", "nic0", "--attacks", "A2").status == 0


def test_its_command_is_killed(run: Path) -> None:
    with attacking(run, "--as", "nic0", *LONG) as rogue:
        [attached] = wait_for_attached(run, 1)
        rogue.process.kill()
        wait_for_attached(run, 0)
    assert_gone({"rogue": attached["pid"]})
    assert attack(run, "--as", "nic0", "--attacks", "A2").status == 0


def test_the_rogue_itself_is_killed(run: Path) -> None:
    with attacking(run, "--as", "nic0", *LONG) as rogue:
        [attached] = wait_for_attached(run, 1)
        os.kill(attached["pid"], signal.SIGKILL)
        finished = rogue.finish()
    assert finished.status == 3 and "killed by SIGKILL" in finished.stderr and "Traceback" not in finished.stderr
    wait_for_attached(run, 0)
    assert attack(run, "--as", "edu0", "--attacks", "A24").status == 0
    _honest(run, "nic0", "nic1")


def test_detach_and_remove(run: Path) -> None:
    assert attack(run, "--as", "nic0", "--attacks", "A2", "--detach").status == 0
    [attached] = status(run)["attached"]
    assert attached["device"] == "nic0" and attached["detached"]
    second = attack(run, "--as", "nic0")
    assert second.status == 2 and "is a rogue already" in second.stderr
    assert attack(run, "--remove", "nic0").status == 0
    assert status(run)["attached"] == []
    assert_gone({"rogue": attached["pid"]})


@pytest.mark.long
def test_two_at_a_time_take_turns(run: Path) -> None:
    with attacking(run, "--as", "nic0", "--attacks", "A1") as first:
        wait_for_attached(run, 1)
        with attacking(run, "--as", "edu0", "--attacks", "A2") as second:
            assert first.finish().status == 0
            finished = second.finish()
    assert finished.status == 0 and "waits for its turn" in finished.stderr


def test_a_job_that_waits_can_be_given_up(run: Path) -> None:
    with attacking(run, "--as", "nic0", *LONG) as first:
        wait_for_attached(run, 1)
        with attacking(run, "--as", "edu0", "--attacks", "A2") as second:
            assert second.process.stderr is not None
            while "waits for its turn" not in second.process.stderr.readline():
                assert second.process.poll() is None
            second.process.send_signal(signal.SIGINT)
            assert second.finish().status == 130
        assert [each["device"] for each in status(run)["attached"]] == ["nic0"]
        first.process.send_signal(signal.SIGINT)
        assert first.finish().status == 130


def test_a_connection_that_ends_takes_its_rogue_with_it(run: Path) -> None:
    """Without its process ending: whoever is a library in another program."""
    with DoorClient(find_run(run)) as client:
        client.do(DeviceAdd(place="as", device="nic0"))
        with pytest.raises(JobFailed, match="no attack"):
            client.do(Attack(device="nic0", attacks=("A0",)))
        assert len(status(run)["attached"]) == 1
    wait_for_attached(run, 0)


def test_the_newest_live_run_is_found(running: Launch) -> None:
    runs = running.folder.parent
    assert find_run(None, runs).folder == running.folder


def test_without_a_running_topology(tmp_path: Path) -> None:
    for options in ((), ("--run", str(tmp_path / "nothing"))):
        finished = attack(tmp_path / "nowhere", "--as", "nic0", *options)
        assert finished.status == 2 and "launch/topology --stay" in finished.stderr


def test_a_run_that_does_not_stay_takes_none(tmp_path: Path) -> None:
    busy = SMALL.replace("operations = 8", "operations = 1000000")
    with launched(write(tmp_path, busy), tmp_path / "run") as running:
        running.wait_for("1000000 operations")
        finished = attack(tmp_path / "run", "--as", "nic0")
        assert finished.status == 2 and "start one that stays" in finished.stderr
        running.process.send_signal(signal.SIGINT)
        running.finish()


@pytest.mark.long
def test_the_topology_ends_under_it(tmp_path: Path) -> None:
    with staying(tmp_path) as running, attacking(running.folder, "--as", "nic0", *LONG) as rogue:
        wait_for_attached(running.folder, 1)
        pids = running.pids()
        running.process.send_signal(signal.SIGINT)
        ended, finished = running.finish(), rogue.finish()
        assert ended.status == 0 and ended.results["ok"] is True
        assert finished.status == 130 and "the topology has ended" in finished.stderr
        assert_gone(pids)


# --- a surprise removal, and a newcomer


@pytest.mark.long
@pytest.mark.parametrize("device", ["nic0", "edu0", "nic1"])
def test_a_swap_leaves_the_newcomer_nothing_and_the_others_at_work(tmp_path: Path, device: str) -> None:
    """Whoever has the device, behind a vIOMMU, without one, or the host's own driver."""
    with staying(tmp_path) as running:
        run = running.folder
        finished = attack(run, "--swap", device, "--attacks", "A1,A2,A12", "--json")
        assert finished.status == 0, finished.stderr
        assert {observed for _, _, observed in _observed(finished.results)} == {"blocked"}
        slot = {"nic0": 1, "edu0": 2, "nic1": 3}[device]
        fault = finished.results["verdicts"][0]["evidence"]["fault"]
        assert fault["source"] == f"0{slot}:00.0" and finished.results["verdicts"][0]["driver"] == "host"
        _honest(run, *{"nic0", "edu0", "nic1"} - {device})
        again = attack(run, "--as", device)
        assert again.status == 2 and f'"{device}" is gone' in again.stderr
        assert attack(run, "--slot", str(slot), "--attacks", "A2").status == 0
        assert status(run)["attached"] == []
        hypervisor = {"nic0": "vm0", "edu0": "vm1"}.get(device)
        if hypervisor is not None:
            assert f"0000:0{slot}:00.0 is gone" in (run / f"{hypervisor}.hypervisor.log").read_text()


PROBE = """
from viommu_actors.rogue import Rogue


class Probe(Rogue):
    def run(self):
        for page in {pages}:
            if page != self.targets.own_page and self.dma_read(page, 64) is not None:
                self.report(f"{{page:#x}}")
"""


@pytest.mark.parametrize("device", ["nic0", pytest.param("nic1", marks=pytest.mark.long)])
def test_what_was_mapped_before_stays_with_the_link_and_goes_with_the_device(tmp_path: Path, device: str) -> None:
    """A nic's driver maps its rings when it starts, the first addresses from the top of 4 GiB. Firmware that turns
    hostile has them; what is plugged in at the same place has not, by the same requester ID."""
    script = tmp_path / "probe.py"
    with staying(tmp_path) as running:
        run = running.folder
        script.write_text(PROBE.format(pages=range((1 << 32) - (8 << 12), 1 << 32, 1 << 12)))
        kept = attack(run, "--as", device, "--script", str(script), "--json")
        assert kept.status == 0, kept.stderr
        reached = kept.results["reports"]
        assert len(reached) >= 2
        script.write_text(PROBE.format(pages=f"[{', '.join(reached)}]"))
        swapped = attack(run, "--swap", device, "--model", "edu", "--script", str(script), "--json")
        assert swapped.status == 0 and swapped.results["reports"] == [], swapped.stderr
        faults = [line for line in (run / "host.log").read_text().splitlines() if "fault addr" in line]
        slot = {"nic0": 1, "nic1": 3}[device]
        for page, fault in zip(reached, faults[-len(reached) :], strict=True):
            assert f"Request device [0{slot}:00.0] fault addr {page} " in fault


# --- devices that are not alone

CABLED = """
name = "cabled"

[host]
memory = "32M"

[[device]]
name = "nic0"
model = "nic"
peer = "nic1"
operations = 8

[[device]]
name = "nic1"
model = "nic"
peer = "nic0"
operations = 8

[[device]]
name = "edu0"
model = "edu"
behind = "sw0"
operations = 8

[[device]]
name = "edu1"
model = "edu"
behind = "sw0"
operations = 8

[[switch]]
name = "sw0"
"""


@pytest.mark.long
def test_a_cable_stays_plugged_in_while_firmware_changes(tmp_path: Path) -> None:
    with staying(tmp_path, CABLED) as running:
        run = running.folder
        assert attack(run, "--as", "nic0", "--attacks", "A2").status == 0
        _honest(run, "edu0", "edu1")
        assert attack(run, "--as", "edu0", "--attacks", "A2").status == 0
        _honest(run, "nic0", "nic1", "edu1")
        refused = attack(run, "--swap", "edu0")
        assert refused.status == 2 and '"edu0" is behind sw0' in refused.stderr
        swapped = attack(run, "--swap", "nic0", "--attacks", "A2")
        assert swapped.status == 0, swapped.stderr
        _honest(run, "edu0", "edu1")
