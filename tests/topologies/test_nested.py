"""Claim C11: a device handed on to a guest in a guest, as real processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import CONFIGS, assert_gone, launch, launched, write

pytestmark = pytest.mark.topology

#: What one dynamic map and unmap of a page cost at every level with a vIOMMU, times 64 operations.
CLIMBING = {
    "traps": 128,
    "vfio_maps": 64,
    "vfio_unmaps": 64,
    "pte_writes": 128,
    "invalidations": 128,
    "queue_tail_writes": 128,
    "interrupts": 32,
}
DRIVING = {"dma_maps": 64, "dma_unmaps": 64}


def _run(name: str, folder: Path) -> dict[str, Any]:
    finished = launch(CONFIGS / f"{name}.toml", folder / "run", "--json")
    assert finished.status == 0, finished.stderr + finished.stdout[-2000:]
    assert finished.results["ok"] is True
    return finished.results


def _levels(results: dict[str, Any]) -> dict[str, dict[str, int]]:
    [row] = results["io"]
    assert row["verified"] and row["operations"] == 64
    return {level["vm"]: {key: n for key, n in level["counts"].items() if n} for level in row["levels"]}


def _verdicts(results: dict[str, Any]) -> dict[tuple[str, str], tuple[str, str]]:
    for row in results["verdicts"]:
        assert row["evidence"]["control"] is True
        if row["observed"] == "blocked":
            fault = row["evidence"]["fault"]
            # By the host's IOMMU, whatever the depth, and under the physical requester ID.
            assert fault["unit"] == "host iommu" and fault["source"] == "01:00.0"
            assert row["evidence"]["canary_before"] == row["evidence"]["canary_after"] != ""
    rows = results["verdicts"]
    return {(row["attack"], row["target"]): (row["observed"], row.get("withheld_by", "")) for row in rows}


def test_a_device_is_handed_on_to_l2(tmp_path: Path) -> None:
    results = _run("nested", tmp_path)
    # L1 takes each interrupt and passes it on; nothing traps, and nothing is mapped.
    assert _levels(results) == {"vm0": {"interrupts": 32}, "vm1": {**DRIVING, "interrupts": 32}}
    assert _verdicts(results) == {
        ("A2", "guest memory"): ("corrupted", ""),
        ("A2", "host memory"): ("blocked", "host"),
        ("A12", "other guest"): ("blocked", "vm0.guest"),
    }
    # Exclusive at each level, and the same device.
    assert [(row["host"], row["vm"], row["guest"], row["second_open"]) for row in results["assignments"]] == [
        ("01:00.0", "vm0", "00:03.0", "EBUSY"),
        ("vm0 00:03.0", "vm1", "00:03.0", "EBUSY"),
    ]


def test_with_a_viommu_in_l2_a_map_climbs_the_tower(tmp_path: Path) -> None:
    results = _run("nested-l2-viommu", tmp_path)
    assert _levels(results) == {"vm0": CLIMBING, "vm1": {**CLIMBING, **DRIVING}}
    assert _verdicts(results) == {
        ("A2", "guest memory"): ("blocked", "vm1.guest"),
        ("A2", "host memory"): ("blocked", "host"),
        ("A12", "other guest"): ("blocked", "vm0.guest"),
    }


def test_a_third_level_by_configuration_alone(tmp_path: Path) -> None:
    results = _run("nested-l3", tmp_path)
    assert _levels(results) == {"vm0": CLIMBING, "vm1": CLIMBING, "vm2": {**CLIMBING, **DRIVING}}
    assert _verdicts(results) == {
        ("A2", "guest memory"): ("blocked", "vm2.guest"),
        ("A2", "host memory"): ("blocked", "host"),
        ("A12", "other guest"): ("blocked", "vm0.guest, vm1.guest"),
    }


def test_without_a_viommu_in_l1_its_vfio_refuses(tmp_path: Path) -> None:
    text = (CONFIGS / "nested.toml").read_text()
    before, _, after = text.partition("[vm.viommu]\n")
    finished = launch(write(tmp_path, before + after.partition("\n")[2]), tmp_path / "run")
    assert finished.status == 2 and not finished.folder.exists()
    assert 'VFIO in "vm0" says: 0000:00:03.0 has no IOMMU group' in finished.stderr


@pytest.mark.parametrize("victim", ["vm1.hypervisor", "vm1.guest"])
def test_when_l2_dies_l1_has_its_device_again(tmp_path: Path, victim: str) -> None:
    text = (CONFIGS / "nested-l2-viommu.toml").read_text()
    text = text.replace('rogue = ["A2", "A12"]', "").replace("operations = 64", "operations = 1000000")
    text = text.replace("\n[[device]]", 'on_death = "contain"\n\n[[device]]', 1)
    with launched(write(tmp_path, text), tmp_path / "run", "--json") as running:
        running.wait_for("1000000 operations")
        pids = running.pids()
        os.kill(pids[victim], signal.SIGKILL)
        finished = running.finish()
        assert finished.status == 3 and f"{victim} (pid " in finished.stderr and "Traceback" not in finished.stderr
        assert "nic0: back with vm0.guest" in finished.stderr
        # By L1's own driver, and mapped by it alone.
        [row] = finished.results["io"]
        assert row["verified"] and row["operations"] == 8
        assert (row["traps"], row["vfio_maps"], row["vfio_unmaps"]) == (16, 8, 8)
        assert_gone(pids)


def test_when_l1_dies_all_in_it_ends(tmp_path: Path) -> None:
    text = (CONFIGS / "nested.toml").read_text()
    text = text.replace('rogue = ["A2", "A12"]', "").replace("operations = 64", "operations = 1000000")
    text = text.replace("\n[[device]]", 'on_death = "contain"\n\n[[device]]', 1)
    with launched(write(tmp_path, text), tmp_path / "run", "--json") as running:
        running.wait_for("1000000 operations")
        pids = running.pids()
        os.kill(pids["vm0.hypervisor"], signal.SIGKILL)
        finished = running.finish()
        assert finished.status == 3 and "Traceback" not in finished.stderr
        assert finished.results["io"] == []
        assert_gone(pids)
