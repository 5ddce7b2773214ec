"""Two guests on a virtual switch of the host, as real processes: frames both ways, an uplink, the switch's death."""

from __future__ import annotations

import json
import os
import signal
import time
from array import array
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import CONFIGS, assert_gone, launch, launched, write
from tests.topologies.rogue import attack, staying
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import ActorDied, ActorGone, Supervisor
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve
from viommu_actors.topology.resolved import ResolvedTopology

pytestmark = pytest.mark.topology

#: Two kernels, and nothing besides.
PLAIN = """
name = "plain"

[[vswitch]]
name = "ovs"
on_death = "restart"

[[vm]]
name = "vm0"
memory = "16M"
[vm.viommu]
[[vm.virtio_net]]
name = "vnet0"
vswitch = "ovs"

[[vm]]
name = "vm1"
memory = "16M"
[vm.viommu]
[[vm.virtio_net]]
name = "vnet1"
vswitch = "ovs"
"""
#: The second is an application's.
WITH_APP = PLAIN.replace('memory = "16M"', 'memory = "32M"') + """
[[vm.app]]
name = "testpmd"
[[vm.app.port]]
device = "vnet1"
"""
SIZE = 2000
FRAMES = 64


@contextmanager
def booted(folder: Path, text: str) -> Iterator[tuple[Supervisor, ResolvedTopology]]:
    topology = resolve(parse(text))
    run, plan = RunFolder(topology, folder / "run"), make_plan(topology)
    with closing(run), Supervisor(plan, run, contain=topology.on_death == "contain") as supervisor:
        Scenario(topology, plan, supervisor, lambda _: None).boot()
        yield supervisor, topology


class Card:
    """A card in the hands of its guest's kernel, or of the application that has it."""

    def __init__(self, supervisor: Supervisor, topology: ResolvedTopology, name: str) -> None:
        vm = topology.machine_of(name)
        assert vm is not None
        card = topology.card(name)
        self.guest, self.bdf = f"{vm.name}.{card.app or 'guest'}", card.bdf
        self.supervisor = supervisor
        if card.app is not None:
            assert not supervisor.command(self.guest, "start", drivers={self.bdf: "vfio"})["refused"]
        self.mac = self.do("netdev")["mac"]
        self.do("listen")

    def do(self, name: str, **arguments: Any) -> Any:
        return self.supervisor.command(self.guest, name, bdf=self.bdf, **arguments)

    def ask(self, name: str, **arguments: Any) -> Any:
        return self.supervisor.ask(self.guest, name, bdf=self.bdf, **arguments)

    def wait_for_link(self, up: bool) -> None:
        deadline = time.monotonic() + 10
        while self.do("link_up") is not up:
            assert time.monotonic() < deadline, f"link is {'down' if up else 'up'}"
            self.supervisor.poll(0.01)


def test_the_shipped_topology_sends_frames_both_ways_and_by_the_uplink(tmp_path: Path) -> None:
    finished = launch(CONFIGS / "vswitch.toml", tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr
    results = finished.results
    rows = [row for row in results["io"] if row["peer"]]
    assert [(row["device"], row["driver"], row["peer"], row["peer_driver"], row["mapping"]) for row in rows] == [
        ("vnet0", "kernel", "vnet1", "kernel", "dynamic"),
        ("vnet1", "kernel", "vnet0", "kernel", "dynamic"),
        ("vnet0", "kernel", "vnet1", "vfio", "dynamic"),
        ("vnet1", "vfio", "vnet0", "kernel", "static"),
    ]
    assert all(row["verified"] and row["repeated"] == 0 and row["send_us"] > 0 for row in rows)
    for row in rows:
        own = _vhost(row, row["device"])
        # A buffer that is mapped for each packet is missed, and invalidated, once for each; one of a pool never again.
        each = 0 if row["mapping"] == "static" else FRAMES
        assert [own.get(kind, 0) for kind in ("IotlbMiss", "IotlbUpdate", "IotlbInvalidate", "IotlbInvalidated")] == (
            [each] * 4
        )
        assert row["vfio_maps"] == 0, "the host has no part in an emulated device's DMA"
    by_app = _vhost(rows[2], "vnet1")
    assert not by_app.get("IotlbMiss") and not by_app.get("IotlbInvalidate"), "it receives into its pool"
    assert rows[3]["interrupts"] == rows[3]["system_calls"] == 0
    [app] = results["apps"]
    assert app["forwarded"]["verified"] and app["forwarded"]["packets"] == 2 * FRAMES
    assert app["forwarded"]["ends"] == ["vnet0", "nic1"]
    [switch] = results["vswitches"]
    assert {port["device"]: port["statistics"]["rx_errors"] for port in switch["ports"]} == {"vnet0": 0, "vnet1": 0}
    [process] = [process for process in results["processes"] if process["name"] == "ovs"]
    assert process["role"] == "app" and process["sandbox"]
    assert _observed(results) == {
        ("A1", "guest memory", "blocked"),
        ("A1", "host memory", "blocked"),
        ("A2", "guest memory", "blocked"),
        ("A2", "host memory", "blocked"),
        ("A12", "other guest", "blocked"),
    }
    assert {verdict["evidence"]["fault"]["unit"] for verdict in results["verdicts"]} == {"vm0 viommu"}


def _observed(results: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(verdict["attack"], verdict["target"], verdict["observed"]) for verdict in results["verdicts"]}


def _vhost(row: dict[str, Any], card: str) -> dict[str, int]:
    [kinds] = [wire["kinds"] for wire in row["wires"] if wire["wire"] == f"vhost:{card}"]
    found: dict[str, int] = kinds
    return found


@pytest.mark.long
def test_without_a_viommu_nothing_is_missed_and_no_iommu_is_told(tmp_path: Path) -> None:
    finished = launch(CONFIGS / "vswitch-no-viommu.toml", tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr
    rows = finished.results["io"]
    assert len(rows) == 4 and all(row["verified"] for row in rows)
    for row in rows:
        for card in ("vnet0", "vnet1"):
            assert not _vhost(row, card).keys() & {"IotlbMiss", "IotlbInvalidate"}
        assert row["invalidations"] == 0
    assert {("A1", "guest memory", "leaked"), ("A2", "guest memory", "corrupted")} < _observed(finished.results)
    assert ("A12", "other guest", "blocked") in _observed(finished.results)


@pytest.mark.parametrize(
    ("text", "source", "target"),
    [
        pytest.param(PLAIN, "vnet0", "vnet1", id="from kernel to kernel"),
        pytest.param(WITH_APP, "vnet1", "vnet0", id="from an application", marks=pytest.mark.long),
        pytest.param(WITH_APP, "vnet0", "vnet1", id="to an application", marks=pytest.mark.long),
    ],
)
def test_a_switch_that_is_killed_at_work_comes_back_and_no_frame_is_lost(
    tmp_path: Path, text: str, source: str, target: str
) -> None:
    with booted(tmp_path, text) as (supervisor, topology):
        sender, receiver = Card(supervisor, topology, source), Card(supervisor, topology, target)
        told = {"first": 0, "count": 150, "size": SIZE, "destination": receiver.mac}
        sending = sender.ask("send", **told)
        receiving = receiver.ask("receive", **told, source=sender.mac)
        for number in range(2):
            _wait_for_traffic(supervisor, target)
            os.kill(supervisor.actors["ovs"].pid, signal.SIGKILL)
            while supervisor.restarts["ovs"] == number:
                supervisor.poll(0.1)
        taken = array("q", [])
        taken.frombytes(supervisor.answer(sending))
        assert len(taken) == 150
        assert supervisor.answer(receiving)["verified"]
        sender.wait_for_link(up=True)
        receiver.wait_for_link(up=True)
        back = {"first": 0, "count": 4, "size": SIZE, "destination": sender.mac}
        receiver.do("send", **back)
        assert sender.do("receive", **back, source=receiver.mac) == {"verified": True, "repeated": 0}
        assert supervisor.reconcile() == []


def _wait_for_traffic(supervisor: Supervisor, target: str) -> None:
    """Until this process of the switch has passed some frames on to that card."""
    deadline = time.monotonic() + 10
    while not supervisor.command("ovs", "statistics")[target].get("tx_packets", 0) >= 10:
        assert time.monotonic() < deadline, "no traffic"


def test_the_link_is_down_while_there_is_no_switch(tmp_path: Path) -> None:
    with booted(tmp_path, PLAIN.replace('"restart"', '"contain"')) as (supervisor, topology):
        sender, receiver = Card(supervisor, topology, "vnet0"), Card(supervisor, topology, "vnet1")
        assert sender.do("link_up") and receiver.do("link_up")
        os.kill(supervisor.actors["ovs"].pid, signal.SIGKILL)
        sender.wait_for_link(up=False)
        receiver.wait_for_link(up=False)
        while not supervisor.lost:
            supervisor.poll(1)
        assert "ovs (pid " in supervisor.lost["ovs"]
        with pytest.raises(ActorGone):
            supervisor.command("ovs", "statistics")
        assert supervisor.reconcile() == []


def test_one_that_never_stays_up_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("viommu_actors.supervise.supervisor._RESTARTS", 1)
    with booted(tmp_path, PLAIN) as (supervisor, _):
        os.kill(supervisor.actors["ovs"].pid, signal.SIGKILL)
        while not supervisor.restarts:
            supervisor.poll(1)
        os.kill(supervisor.actors["ovs"].pid, signal.SIGKILL)
        with pytest.raises(ActorDied, match=r"ovs \(pid "):
            supervisor.command("ovs", "ping")


def test_a_vms_death_is_no_disagreement_of_the_switchs_wires(tmp_path: Path) -> None:
    text = PLAIN.replace('name = "plain"', 'name = "plain"\non_death = "contain"')
    with booted(tmp_path, text) as (supervisor, _):
        os.kill(supervisor.actors["vm0.hypervisor"].pid, signal.SIGKILL)
        while not supervisor.lost:
            supervisor.poll(1)
        assert supervisor.lost.keys() == {"vm0.hypervisor", "vm0.guest"}
        assert supervisor.command("ovs", "ping") == "pong"
        assert supervisor.reconcile() == []


def test_a_run_goes_on_over_the_death_of_its_switch(tmp_path: Path) -> None:
    text = PLAIN.replace('vswitch = "ovs"\n', 'vswitch = "ovs"\noperations = 300\n')
    with launched(write(tmp_path, text), tmp_path / "run", "--json") as running:
        running.wait_for("300 frames to vnet1")
        first = running.pids()["ovs"]
        os.kill(first, signal.SIGKILL)
        finished = running.finish()
        assert finished.status == 0, finished.stderr
        results = finished.results
        assert [(row["device"], row["operations"], row["verified"]) for row in results["io"]] == [
            ("vnet0", 300, True),
            ("vnet1", 300, True),
        ]
        assert results["vswitches"][0]["restarts"] == 1
        [process] = [process for process in results["processes"] if process["name"] == "ovs"]
        assert process["pid"] == running.pids()["ovs"] != first
        assert finished.log("ovs").count("ovs is up") == 2, "one log, of both"
        assert_gone(running.pids())


@pytest.mark.long
def test_frames_of_many_ports_go_to_their_own(tmp_path: Path) -> None:
    """Whom the switch does not know yet it floods; once it knows, nobody is in another's way."""
    more = "".join(f'[[vm.virtio_net]]\nname = "vnet{number}"\nvswitch = "ovs"\n' for number in (2, 3))
    finished = launch(write(tmp_path, PLAIN + more), tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr
    rows = finished.results["io"]
    assert [(row["device"], row["peer"]) for row in rows] == [
        ("vnet0", "vnet1"),
        ("vnet1", "vnet2"),
        ("vnet2", "vnet3"),
        ("vnet3", "vnet0"),
    ]
    assert all(row["verified"] for row in rows)


@pytest.mark.long
def test_while_it_stays_up_a_rogue_and_a_death_leave_the_cards_at_work(tmp_path: Path) -> None:
    with staying(tmp_path, PLAIN) as running:
        os.kill(running.pids()["ovs"], signal.SIGKILL)
        for number in range(2):
            finished = attack(running.folder, "--slot", "--attacks", "A2", "--json")
            assert finished.status == 0, finished.stderr
            rows = json.loads((running.folder / f"rogue-{number + 1}.json").read_text())["io"]
            assert [(row["device"], row["peer"], row["verified"]) for row in rows] == [
                ("vnet0", "vnet1", True),
                ("vnet1", "vnet0", True),
            ]


def test_by_default_its_death_ends_the_run(tmp_path: Path) -> None:
    text = PLAIN.replace('on_death = "restart"', "")
    text = text.replace('vswitch = "ovs"\n', 'vswitch = "ovs"\noperations = 100000\n')
    with launched(write(tmp_path, text), tmp_path / "run", "--json") as running:
        running.wait_for("100000 frames")
        pids = running.pids()
        os.kill(pids["ovs"], signal.SIGKILL)
        finished = running.finish()
        assert finished.status == 3 and "ovs (pid " in finished.stderr and "SIGKILL" in finished.stderr
        assert_gone(pids)
