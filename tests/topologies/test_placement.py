"""Placement: the rule, and what the processes really run on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.topologies.launcher import SMALL, launched, write
from viommu_actors.supervise.placement import place

#: three devices, and a host with a hypervisor and its guest
TRUSTED = [False, False, False, True, True, True]


def test_packed_chains_share_the_first_cpu_and_devices_take_the_others() -> None:
    assert place(TRUSTED, "pack", [4, 5, 6]) == [[5], [6], [5], [4], [4], [4]]
    assert place(TRUSTED, "pack", [0]) == [[0]] * 6


def test_spread_takes_the_cpus_in_turn_and_free_none() -> None:
    assert place(TRUSTED, "spread", [0, 1]) == [[0], [1]] * 3
    assert place(TRUSTED, "free", [0, 1]) == [None] * 6


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
            assert len(threads) > 1, "ZeroMQ has a thread"
            [seen[name]] = {frozenset(os.sched_getaffinity(thread)) for thread in threads}
    if placement == "free":
        assert set(seen.values()) == {frozenset(available)}
    else:
        assert all(len(cpus) == 1 for cpus in seen.values())
    if placement == "pack":
        assert seen["host"] == seen["vm0.hypervisor"] == seen["vm0.guest"]
        assert len(available) == 1 or seen["nic0"] != seen["host"]
