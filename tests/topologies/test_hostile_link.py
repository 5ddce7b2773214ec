"""A running topology under hostile messages: nobody dies, others' I/O goes on and verifies, memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import alive
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve
from viommu_actors.wire.codec import Defect

pytestmark = pytest.mark.topology

TWO = """
name = "two-devices"

[host]
memory = "32M"

[[device]]
name = "nic0"
model = "nic"
operations = 2

[[device]]
name = "edu0"
model = "edu"
operations = 2

[[vm]]
name = "vm0"
memory = "16M"
cmdline = "intel_iommu=on"

[vm.viommu]

[[vm.assign]]
device = "nic0"

[[vm.assign]]
device = "edu0"
"""
#: Hostile messages, and what the host may grow by meanwhile.
MESSAGES = 100_000
BOUND = 16 << 20
#: Whether a race is lost is a matter of scheduling: one in which nobody looked at the wrong moment is run again.
RACES = 20
ROGUE, HONEST = "nic0", "00:04.0"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Supervisor]:
    """Two devices of one guest, booted and worked."""
    topology = resolve(parse(TWO))
    folder, plan = RunFolder(topology, tmp_path / "run"), make_plan(topology)
    with Supervisor(plan, folder) as supervisor:
        scenario = Scenario(topology, plan, supervisor, lambda _: None)
        scenario.run()
        assert scenario.results().ok
        pids = {actor.name: actor.pid for actor in supervisor.actors.values()}
        yield supervisor
        assert all(alive(pid) for pid in pids.values()), "an actor died"
    folder.close()


def resident(supervisor: Supervisor, actor: str) -> int:
    """Bytes of its memory."""
    pages = Path(f"/proc/{supervisor.actors[actor].pid}/statm").read_text().split()[1]
    return int(pages) * 4096


def works(supervisor: Supervisor, operations: int = 4) -> bool:
    return bool(supervisor.command("vm0.guest", "io", bdf=HONEST, operations=operations)["verified"])


def counts(supervisor: Supervisor, actor: str) -> dict[str, Any]:
    """An actor's count of the rogue's link."""
    ends = supervisor.command(actor, "counts")
    return next(end for end in ends if end["wire"] == f"link:{ROGUE}")


def port(supervisor: Supervisor) -> dict[str, int]:
    ports: dict[str, dict[str, int]] = supervisor.command("host", "ports")
    return next(iter(ports.values()))


def test_a_hundred_thousand_hostile_messages(running: Supervisor, tmp_path: Path) -> None:
    before = resident(running, "host")
    attacking = running.ask(ROGUE, "attack", steps=[{"do": "fuzz", "seed": 4, "times": MESSAGES}])
    rounds = 0
    while attacking.question not in running._answers:
        assert works(running)
        rounds += 1
    running.answer(attacking, 1)
    assert rounds > 3, "honest I/O went on meanwhile"
    assert running.reconcile() == [], "each was counted at both ends, the malformed ones by what is wrong with them"
    sent, received = counts(running, ROGUE)["sent"], counts(running, "host")["received"]
    assert sum(received.values()) >= MESSAGES
    assert {f"malformed: {defect}" for defect in Defect} - sent.keys() == {f"malformed: {Defect.COMMAND}"}
    seen = port(running)
    assert {f"rejected: {kind.removeprefix('malformed: ')}": n for kind, n in sent.items() if "malformed" in kind} == {
        kind: n for kind, n in seen.items() if "rejected" in kind
    }
    assert seen["unexpected completion"] > 100
    assert resident(running, "host") - before < BOUND
    log = (tmp_path / "run" / "host.log").read_text()
    assert log.count("dropped a message") == 10 and "dropped 10000 messages by now" in log
    assert len(log) < 1 << 20


def test_completions_that_a_device_does_not_take_are_not_kept_for_it(running: Supervisor) -> None:
    before = resident(running, "host")
    unread = {"do": "message", "name": "MemRead", "fields": (0x100, 0, 0, 0, 1024, 15, 15), "times": 20_000}
    running.command(ROGUE, "attack", steps=[unread])
    assert works(running)
    assert running.reconcile() == []
    seen = port(running)
    assert seen["fault"] == 20_000
    assert seen["not sent"] > 1000
    assert resident(running, "host") - before < BOUND


def test_a_storm_of_interrupts_is_held_to_a_rate_and_the_others_go_on(running: Supervisor) -> None:
    own = running.command("host", "guard_device", bdf="01:00.0")
    storm = {"do": "interrupt", "address": own["address"], "data": own["data"], "times": 50_000}
    before = running.command("vm0.guest", "counters")["interrupts"]
    attacking = running.ask(ROGUE, "attack", steps=[storm])
    rounds = 0
    while attacking.question not in running._answers:
        assert works(running, 2)
        rounds += 1
    assert rounds > 3
    assert running.reconcile() == []
    counters = running.command("host", "counters")
    assert counters["interrupts_throttled"] > 10
    assert counters["interrupts_coalesced"] > 10_000
    assert running.command("vm0.guest", "counters")["interrupts"] - before < 40_000


def test_a_storm_of_faults_costs_a_bounded_number_of_records(running: Supervisor, tmp_path: Path) -> None:
    running.command("host", "faults")
    before = resident(running, "host")
    flood = {"do": "write", "address": 0x7000_0000, "data": bytes(4), "times": 50_000}
    attacking = running.ask(ROGUE, "attack", steps=[flood])
    rounds = 0
    while attacking.question not in running._answers:
        assert works(running, 2)
        rounds += 1
    assert rounds > 3
    assert running.reconcile() == []
    counters = running.command("host", "counters")
    assert counters["fault_storms"] == 1
    assert counters["iommu_faults"] >= 50_000
    assert len(running.command("host", "faults")["records"]) == 1024
    assert resident(running, "host") - before < BOUND
    assert (tmp_path / "run" / "host.log").stat().st_size < 1 << 20


def test_a_completion_that_never_comes_is_all_ones_and_told_and_counted(running: Supervisor, tmp_path: Path) -> None:
    running.command(ROGUE, "attack", steps=[{"do": "withhold", "times": 1}])
    reading = running.ask("host", "config_space", bdf="01:00.0")
    assert works(running)
    space = running.answer(reading, 10)
    # One request is waited for; those that follow it, until the device has answered again, are not.
    assert space == b"\xff" * len(space)
    assert port(running)["completion timeout"] == 1
    assert "completion timeout" in (tmp_path / "run" / "host.log").read_text()
    assert works(running)
    running.command(ROGUE, "attack", steps=[{"do": "withhold", "times": 0}])
    assert works(running)
    assert running.command("host", "config_space", bdf="01:00.0")[:4] != b"\xff" * 4, "it is asked again"


@pytest.mark.long
@pytest.mark.parametrize(
    ("stream", "times", "told"),
    [
        (b"\x03" + (4096).to_bytes(8, "big") + bytes(4096), 50_000, "link down"),
        (b"\x01\x00" * 4096, 2_000, "link down"),
        (b"\x02" + ((1 << 63) - 1).to_bytes(8, "big") + bytes(4096), 50_000, "link down"),
        (b"\x00\x30" + bytes(16), 1, "completion timeout"),
    ],
    ids=["frames", "empty frames", "one frame", "half a frame"],
)
def test_what_a_device_writes_beneath_its_messages_costs_its_own_link_alone(
    running: Supervisor, tmp_path: Path, stream: bytes, times: int, told: str
) -> None:
    before = resident(running, "host")
    running.command(ROGUE, "attack", steps=[{"do": "stream", "data": stream, "times": times}])
    assert works(running)
    assert resident(running, "host") - before < BOUND
    # The kernel's reads of it end, all-ones, and the others do not wait for that.
    assert running.command("host", "config_space", bdf="01:00.0")[:4] == b"\xff" * 4
    assert works(running)
    assert told in (tmp_path / "run" / "host.log").read_text()


def test_a_guest_that_races_with_its_hypervisor_gets_its_own_page_or_none(running: Supervisor) -> None:
    """Its tables name a page of the host's half of the time, and its device writes through them all the time."""
    told = running.command("host", "guard", what="canaries")
    iova = running.command("vm0.guest", "offer", bdf="00:03.0", kind="both ways")["iova"]
    race = {"bdf": "00:03.0", "iova": iova, "target": told["pages"][0], "times": 300}
    write = {"do": "write", "address": iova, "data": b"\xde\xad\xbe\xef" * 16, "times": 2000}
    for _ in range(RACES):
        racing = running.ask("vm0.guest", "race_entry", **race)
        running.command(ROGUE, "attack", steps=[write])
        running.answer(racing)
        if seen := running.command("vm0.hypervisor", "counters")["sync_rejected"]:
            break
    assert seen > 0, "the host's page was seen in the tables"
    assert running.command("host", "digest") == told["digest"]
    running.command("vm0.guest", "mend_entry", bdf="00:03.0", iova=iova)
    running.command("vm0.guest", "end_offer")
    assert works(running)
