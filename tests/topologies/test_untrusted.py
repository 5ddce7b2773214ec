"""What a device sends is never trusted: malformed messages are counted, logged, dropped, and the others go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.topologies.launcher import SMALL
from viommu_actors.spec.tlp import MemRead, MemWrite
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import CommandFailed, Supervisor
from viommu_actors.text import printable
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve
from viommu_actors.wire.link import LINK_UP
from viommu_actors.wire.messages import VFIO, Reply, UnmapDma
from viommu_actors.wire.tally import Tally

pytestmark = pytest.mark.topology

#: Frames that no root port takes for a message, each with how often it is sent.
MALFORMED = [
    b"",
    b"\xc1",
    b"not msgpack at all",
    msgpack.packb([99, 1, 2]),
    msgpack.packb({"tag": 1}),
    msgpack.packb([True] * 8),
    msgpack.packb([1, 0x100, 2000, 0, 0, 1, 15, 0]),
    msgpack.packb([2, 0x100, 0, 0x1000, 15, 15, "text"]),
    msgpack.packb([2, 0x100, 0, -1, 15, 15, b"data"]),
    msgpack.packb([2, 0x100, 0, 2**64 - 1, 15, 15, bytes(5000)])[:4000],
    LINK_UP.encode(MemRead(0x100, 1, 0, 0x1000, 1, 15, 0)) + b"more",
    b"\x91" * 4000,
]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Supervisor, Scenario]]:
    """The small topology, booted and worked."""
    topology = resolve(parse(SMALL))
    folder, plan = RunFolder(topology, tmp_path / "run"), make_plan(topology)
    with Supervisor(plan, folder) as supervisor:
        scenario = Scenario(topology, plan, supervisor, lambda _: None)
        scenario.run()
        yield supervisor, scenario
    folder.close()


def _port(supervisor: Supervisor) -> dict[str, int]:
    ports: dict[str, dict[str, int]] = supervisor.command("host", "ports")
    return ports["slot1"]


def _works(supervisor: Supervisor) -> bool:
    return bool(supervisor.command("vm0.guest", "io", bdf="00:03.0", operations=4)["verified"])


def test_malformed_frames_are_counted_at_both_ends_and_the_others_go_on(
    running: tuple[Supervisor, Scenario], tmp_path: Path
) -> None:
    supervisor, scenario = running
    supervisor.command("nic0", "attack", steps=[{"do": "raw", "data": data} for data in MALFORMED * 20])
    assert _works(supervisor)
    assert _port(supervisor)["malformed"] == len(MALFORMED) * 20
    assert supervisor.reconcile() == []
    assert scenario.results().ok
    log = (tmp_path / "run" / "host.log").read_text()
    assert log.count("dropped a message") == 10, "a flood of them does not flood the log"


def test_well_formed_messages_that_are_no_legal_tlp_are_dropped(running: tuple[Supervisor, Scenario]) -> None:
    supervisor, _ = running
    illegal = [
        MemWrite(0x100, 0, 0x1002, 15, 0, bytes(4)),
        MemWrite(0x100, 0, 0x1FFC, 15, 15, bytes(8)),
        MemWrite(0x100, 0, 0x1000, 15, 15, bytes(6)),
        MemWrite(0x100, 0, 0x1000, 0b0101, 0, b""),
        MemRead(0x100, 3, 0, 0x1FFC, 2, 15, 15),
    ]
    steps = [{"do": "message", "name": type(each).__name__, "fields": tuple(each)} for each in illegal]
    before = _port(supervisor).get("malformed", 0)
    supervisor.command("nic0", "attack", steps=steps)
    assert _works(supervisor)
    assert _port(supervisor)["malformed"] - before == len(illegal)


def test_a_forged_requester_is_stopped_at_the_port(running: tuple[Supervisor, Scenario]) -> None:
    supervisor, _ = running
    supervisor.command("nic0", "attack", steps=[{"do": "write", "address": 0, "data": bytes(4), "requester": 0x0200}])
    assert _works(supervisor)
    assert _port(supervisor)["acs"] == 1


def test_a_message_that_only_the_hypervisor_may_send_does_not_exist_on_a_link(
    running: tuple[Supervisor, Scenario],
) -> None:
    """The link's vocabulary is TLPs: an unmap in the hypervisor's name is one more malformed frame."""
    supervisor, _ = running
    held = supervisor.command("vm0.hypervisor", "counters")
    supervisor.command("nic0", "attack", steps=[{"do": "raw", "data": VFIO.encode(UnmapDma(1, 0, 1 << 32))}])
    assert _works(supervisor)
    assert _port(supervisor)["malformed"] >= 1
    assert supervisor.command("vm0.hypervisor", "counters")["vfio_unmaps"] == held["vfio_unmaps"] + 4


def test_a_bad_plan_is_refused_by_the_device_and_it_lives_on(running: tuple[Supervisor, Scenario]) -> None:
    supervisor, _ = running
    outside = {"do": "read", "address": -1, "length": 4}
    for steps in ([{"do": "nothing"}], [{"do": "read"}], ["text"], "text", [outside]):
        with pytest.raises(CommandFailed):
            supervisor.command("nic0", "attack", steps=steps)
    assert _works(supervisor)


@pytest.mark.long
def test_wires_that_disagree_are_found(running: tuple[Supervisor, Scenario]) -> None:
    """One count too many at one end, as a lost or an invented message would make it."""
    supervisor, _ = running
    tally: Any = supervisor.actors["vm0.guest"].tally
    tally.sent[next(iter(tally.sent))] += 1
    lines = supervisor.reconcile()
    assert len(lines) == 1 and lines[0].startswith("control:vm0.guest")


class _Forger:
    """A device that answers in others' stead; `counted` stands in for its tally."""

    name = "nic0"

    def __init__(self, replies: list[Reply]) -> None:
        self.channel = self
        self.tally = Tally("control:nic0", "launcher")
        self.heard = 0
        self._replies = replies

    def receive(self) -> Reply:
        if not self._replies:
            raise BlockingIOError
        return self._replies.pop(0)


def test_an_answer_counts_only_from_the_actor_that_was_asked(
    running: tuple[Supervisor, Scenario], tmp_path: Path
) -> None:
    supervisor, _ = running
    ahead = supervisor._number + 1
    forger: Any = _Forger([Reply(number, "", {"forged": True}) for number in range(ahead, ahead + 5)])
    supervisor._drain(forger)
    assert "forged" not in supervisor.command("host", "counters")
    assert forger.heard == 5
    assert "answered what it was not asked" in (tmp_path / "run" / "events.jsonl").read_text()


def test_a_flood_of_events_does_not_fill_the_disk(running: tuple[Supervisor, Scenario], tmp_path: Path) -> None:
    supervisor, _ = running
    forger: Any = _Forger([])
    for number in range(5000):
        forger._replies.append(Reply(number + 10**6, "", {b"no": "text"}))
    while forger._replies:
        before = len(forger._replies)
        supervisor._drain(forger)
        assert before - len(forger._replies) <= 64, "the others get their turn"
    assert (tmp_path / "run" / "events.jsonl").read_text().count("answered what it was not asked") == 1000


def test_an_actors_words_cannot_move_the_terminals_cursor() -> None:
    assert printable("a\x1b[2J\nAs expected\u202e") == "a\\x1b[2J\\nAs expected\\u202e"
