"""Honest work of a million operations: told in slices, counted as one."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from viommu_actors.supervise import work
from viommu_actors.supervise.owner import Owner
from viommu_actors.supervise.work import Work
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve


class FakeSupervisor:
    """Kernels and a hypervisor that count two traps for each operation, and what they were told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, dict[str, Any]]] = []
        self.traps = dict.fromkeys(("guest", "peer", "hypervisor", "host"), 0)

    def command(self, actor: str, name: str, **arguments: Any) -> Any:
        self.told.append((actor, name, arguments))
        if name == "counters":
            return {"traps": self.traps[actor], "pte_writes": self.traps[actor]}
        if name == "netdev":
            return {"mac": bytes(6), "max_frame": 4096 if actor == "guest" else 4084, "mapping": "dynamic"}
        done = arguments.get("operations", arguments.get("count", 0))
        self.traps["hypervisor" if actor == "guest" else actor] += 2 * done
        if name == "receive":
            return {"verified": True, "repeated": 0}
        if name == "send":
            return array("q", [1500] * done).tobytes()
        return {
            "operations": done,
            "bytes": done * 4096,
            "verified": True,
            "mapping": "dynamic",
            "seconds": 0.5 * done,
            "failed": "",
        }


NIC = resolve(parse('name = "work"\n[[device]]\nname = "nic0"\nmodel = "nic"\n')).device("nic0")
GUEST = Owner("guest", "hypervisor", "00:03.0")


def test_no_driver_is_told_more_than_a_slice_and_the_counts_are_exact() -> None:
    supervisor, lines = FakeSupervisor(), list[str]()
    row = Work(supervisor, NIC, GUEST, lines.append).alone(1_000_000)  # type: ignore[arg-type]
    asked = [arguments["operations"] for _, name, arguments in supervisor.told if name == "io"]
    assert max(asked) <= 1000 and not any(each % 2 for each in asked)
    assert (row.operations, row.bytes, row.traps) == (1_000_000, 4096 * 1_000_000, 2_000_000)
    assert row.setup.traps == 4 and row.verified
    # Half a second an operation, two operations a packet.
    assert row.packets_per_second == 1.0
    assert row.per_packet is not None and row.per_packet.traps == 4.0


def test_what_is_wrong_in_one_slice_is_wrong_in_all() -> None:
    class Corrupting(FakeSupervisor):
        def command(self, actor: str, name: str, **arguments: Any) -> Any:
            result = super().command(actor, name, **arguments)
            # The first is the warm-up.
            if name == "io" and sum(told == "io" for _, told, _ in self.told) == 3:
                result["verified"] = False
            return result

    supervisor = Corrupting()
    assert not Work(supervisor, NIC, GUEST, print).alone(10_000).verified  # type: ignore[arg-type]


def test_a_long_piece_of_work_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_TOLD_EVERY", -1.0)
    lines: list[str] = []
    Work(FakeSupervisor(), NIC, GUEST, lines.append).alone(2500)  # type: ignore[arg-type]
    assert lines == ["nic0: 1000 of 2500 operations done", "nic0: 2000 of 2500 operations done"]


def test_both_ends_of_a_cable_are_counted() -> None:
    supervisor = FakeSupervisor()
    peer = Owner("peer", None, "01:00.0")
    row = Work(supervisor, NIC, GUEST, print).send_to(peer, 20)  # type: ignore[arg-type]
    assert (row.operations, row.bytes, row.traps, row.pte_writes) == (20, 20 * 4084, 40, 0)
    assert row.send_us == 1.5
    assert row.receiver is not None
    assert (row.receiver.traps, row.receiver.pte_writes) == (0, 40)
