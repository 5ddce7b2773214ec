"""The topologies that come with the project, as real processes: claims C1 to C6, and their exact counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import CONFIGS, Finished, launch

pytestmark = pytest.mark.topology


def _run(name: str, tmp_path: Path) -> Finished:
    finished = launch(CONFIGS / f"{name}.toml", tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr + finished.stdout[-2000:]
    assert finished.results["ok"] is True
    return finished


def _verdicts(results: dict[str, Any]) -> dict[tuple[str, str, str], str]:
    return {(row["device"], row["attack"], row["target"]): row["observed"] for row in results["verdicts"]}


def _assert_blocked_with_proofs(row: dict[str, Any]) -> None:
    evidence = row["evidence"]
    assert row["observed"] == row["expected"] == "blocked"
    assert evidence["canary_before"] == evidence["canary_after"] != ""
    assert evidence["fault"]["unit"] == "host iommu"
    assert evidence["refused"] == evidence["attempts"] > 0
    assert evidence["control"] is True


def _assert_dynamic(row: dict[str, Any]) -> None:
    operations = row["operations"]
    assert row["mapping"] == "dynamic" and row["verified"] and row["bytes"] == operations * 4096
    assert row["traps"] == row["queue_tail_writes"] == row["invalidations"] == 2 * operations
    assert row["vfio_maps"] == row["vfio_unmaps"] == operations
    assert row["pte_writes"] == 2 * operations


def test_c1_a_device_of_the_host_driver_is_checked_by_the_host_iommu(tmp_path: Path) -> None:
    results = _run("host-driver", tmp_path).results
    for row in results["verdicts"]:
        _assert_blocked_with_proofs(row)
    assert {row["target"] for row in results["verdicts"]} == {"host memory", "page tables"}
    [io] = results["io"]
    # The host's IOMMU has no caching mode: a map costs no invalidation, and nothing of it is a trap.
    assert (io["traps"], io["vfio_maps"], io["invalidations"]) == (0, 0, io["operations"])
    assert {row["role"] for row in results["processes"]} == {"host", "device"}


def test_c2_an_assigned_device_is_exclusive_and_the_guest_sees_the_same_device(tmp_path: Path) -> None:
    results = _run("two-guests", tmp_path).results
    assert len(results["assignments"]) == 2
    for row in results["assignments"]:
        assert row["second_open"] == "EBUSY"
        assert all(difference["why"] for difference in row["differences"])
        assert not {"0x00", "0x08", "0x2c"} & {difference["offset"] for difference in row["differences"]}


def test_c2_the_hypervisor_edits_what_the_guest_sees(tmp_path: Path) -> None:
    results = _run("assigned-viommu", tmp_path).results
    [edu] = [row for row in results["assignments"] if row["device"] == "edu0"]
    assert any("POWER_MANAGEMENT hidden" in difference["why"] for difference in edu["differences"])


def test_c3_without_a_viommu_guest_memory_is_exposed_and_nothing_else(tmp_path: Path) -> None:
    results = _run("assigned-no-viommu", tmp_path).results
    assert _verdicts(results) == {
        ("nic0", "A1", "guest memory"): "leaked",
        ("nic0", "A1", "host memory"): "blocked",
        ("nic0", "A2", "guest memory"): "corrupted",
        ("nic0", "A2", "host memory"): "blocked",
        ("nic0", "A12", "other guest"): "blocked",
    }
    for row in results["verdicts"]:
        if row["observed"] == "blocked":
            _assert_blocked_with_proofs(row)
        elif row["observed"] == "corrupted":
            assert row["evidence"]["canary_before"] != row["evidence"]["canary_after"]
    [io] = results["io"]
    assert (io["traps"], io["vfio_maps"], io["vfio_unmaps"], io["pte_writes"]) == (0, 0, 0, 0)
    # Guest RAM is mapped once, before the guest boots; the other guest has no device.
    assert [(row["vm"], row["build"]["vfio_maps"], row["boot"]["vfio_maps"]) for row in results["machines"]] == [
        ("vm0", 1, 0),
        ("vm1", 0, 0),
    ]


def test_c4_with_a_viommu_only_what_the_driver_mapped_is_reachable(tmp_path: Path) -> None:
    finished = _run("assigned-viommu", tmp_path)
    results = finished.results
    assert {(row["attack"], row["target"]) for row in results["verdicts"]} == {
        ("A1", "guest memory"),
        ("A1", "host memory"),
        ("A2", "guest memory"),
        ("A2", "host memory"),
        ("A31", "page tables"),
        ("A32", "page tables"),
    }
    for row in results["verdicts"]:
        _assert_blocked_with_proofs(row)
        assert row["setting"] == "strict"
    for row in results["io"]:
        _assert_dynamic(row)
    assert results["faults"]
    # Each device has RAM mapped until the guest turns its vIOMMU on, and then what the guest's tables map.
    [machine] = results["machines"]
    assert machine["build"]["vfio_maps"] == machine["boot"]["vfio_unmaps"] == 2
    assert machine["boot"]["vfio_maps"] > 0 and machine["boot"]["traps"] > machine["boot"]["queue_tail_writes"] > 0
    assert [row["role"] for row in results["processes"]].count("device") == 2
    assert "DMAR: IOMMU batching disallowed due to virtualization" in finished.log("vm0.guest")


def test_c5_and_c6_dynamic_costs_two_traps_an_operation_and_static_none(tmp_path: Path) -> None:
    results = _run("dynamic-vs-static", tmp_path).results
    dynamic, static = results["io"]
    _assert_dynamic(dynamic)
    assert static["mapping"] == "static" and static["verified"] and static["operations"] == dynamic["operations"]
    keys = ("traps", "vfio_maps", "vfio_unmaps", "pte_writes", "invalidations")
    assert [static[key] for key in keys] == [0] * len(keys)
    assert static["setup"]["vfio_maps"] > 0
    assert {row["device"] for row in results["verdicts"]} == {static["device"]}
    for row in results["verdicts"]:
        _assert_blocked_with_proofs(row)


def test_two_guests_are_safe_from_each_others_devices(tmp_path: Path) -> None:
    results = _run("two-guests", tmp_path).results
    for row in results["verdicts"]:
        _assert_blocked_with_proofs(row)
    assert ("nic0", "A12", "other guest") in _verdicts(results)
