"""Placement: the rule, and what the processes really run on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.topologies.launcher import SMALL, launched, write
from viommu_actors.supervise.placement import Seat, place

#: three devices, a host with a hypervisor and its guest, and a hypervisor with its guest in that
SEATS = [*[Seat(False, 3)] * 3, Seat(True, None), Seat(True, 3), Seat(True, 4), Seat(True, 5), Seat(True, 6)]


def test_packed_chains_share_the_first_cpu_and_devices_take_the_others() -> None:
    assert place(SEATS, "pack", [4, 5, 6]) == [[5], [6], [5], [4], [4], [4], [4], [4]]
    assert place(SEATS, "pack", [0]) == [[0]] * 8


@pytest.mark.parametrize("cpus", [[0, 1], [0, 1, 2], [3, 5, 7, 9], [*range(16)]])
def test_spread_has_nobody_beside_whom_it_asks(cpus: list[int]) -> None:
    placed = place(SEATS, "spread", cpus)
    for seat, own in zip(SEATS, placed, strict=True):
        assert own is not None and own[0] in cpus
        assert seat.asks is None or own != placed[seat.asks]
    assert len({own[0] for own in placed if own}) == min(len(cpus), len(SEATS))


def test_one_cpu_is_for_all_and_free_for_none() -> None:
    assert place(SEATS, "spread", [2]) == [[2]] * 8
    assert place(SEATS, "free", [0, 1]) == [None] * 8


@pytest.mark.long
@pytest.mark.topology
@pytest.mark.parametrize("placement", ["pack", "spread", "free"])
def test_every_thread_of_an_actor_runs_where_it_was_placed(tmp_path: Path, placement: str) -> None:
    text = SMALL.replace('name = "small"', f'name = "small"\nplacement = "{placement}"')
    available = os.sched_getaffinity(0)
    with launched(write(tmp_path, text), tmp_path / "run", "--stay") as running:
        running.wait_for("turns hostile")
        seen = {}
        for name, pid in running.pids().items():
            threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
            [seen[name]] = {frozenset(os.sched_getaffinity(thread)) for thread in threads}
    if placement == "free":
        assert set(seen.values()) == {frozenset(available)}
    else:
        assert all(len(cpus) == 1 for cpus in seen.values())
    if placement == "spread" and len(available) > 1:
        assert seen["host"] != seen["vm0.hypervisor"] != seen["vm0.guest"] and seen["nic0"] != seen["host"]
    if placement == "pack":
        assert seen["host"] == seen["vm0.hypervisor"] == seen["vm0.guest"]
        assert len(available) == 1 or seen["nic0"] != seen["host"]
