"""A virtual switch that turns hostile, as real processes: with a vIOMMU, without one, and past it; with the proofs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import CONFIGS, Finished, launch, launch_environment, write
from viommu_actors.attacks.expected import BACK_ENDS
from viommu_actors.confine.sandbox import lacking
from viommu_actors.topology.load import load

pytestmark = pytest.mark.topology

#: The command line and vIOMMU of both guests by setting.
GUESTS = {
    "none": 'cmdline = ""',
    "strict": "[vm.viommu]",
    "passthrough": 'cmdline = "intel_iommu=on iommu=pt"\n[vm.viommu]',
}


def topology(setting: str, *attacks: str) -> str:
    text = 'name = "hostile"\n[[vswitch]]\nname = "ovs"\n'
    for number in range(2):
        text += f'[[vm]]\nname = "vm{number}"\nmemory = "16M"\n{GUESTS[setting]}\n'
        text += f'[[vm.virtio_net]]\nname = "vnet{number}"\nvswitch = "ovs"\noperations = 4\n'
        text += "" if number else f"rogue = {json.dumps(attacks)}\n"
    return text


def proven(finished: Finished) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Verdicts by device, attack and target: all as expected, and none "blocked" without its three proofs."""
    assert finished.status == 0, finished.stderr
    results = finished.results
    assert results["ok"] and all(row["verified"] for row in results["io"])
    for row in results["verdicts"]:
        evidence = row["evidence"]
        assert row["observed"] == row["expected"] and row["driver"] in BACK_ENDS.values(), row
        assert evidence["control"] and evidence["attempts"] and evidence["source"] == "00:03.0", row
        if row["observed"] == "blocked":
            assert evidence["canary_before"] == evidence["canary_after"] != "", row
            assert evidence["fault"]["source"] == "00:03.0" and not evidence["reached"], row
    [switch] = [process for process in results["processes"] if process["name"] == "ovs"]
    assert switch["sandbox"] == "full" or lacking()
    return {(row["device"], row["attack"], row["target"]): row for row in results["verdicts"]}


def test_behind_a_viommu_it_is_blocked_there_and_the_guests_kernel_has_the_record(tmp_path: Path) -> None:
    config = write(tmp_path, topology("strict", "A2", "A17", "A18", "A55"))
    finished = launch(config, tmp_path / "run", "--json")
    verdicts = proven(finished)
    for attack, target in (("A2", "guest memory"), ("A17", "driver's buffer")):
        evidence = verdicts["vnet0", attack, target]["evidence"]
        fault = evidence["fault"]
        assert (fault["kind"], fault["unit"], fault["reason"]) == ("remapping", "vm0 viommu", "0x5")
        assert evidence["attempts"] == evidence["refused"] == 2 * evidence["aimed"], "without a miss, and with one"
        assert f"Request device [00:03.0] fault addr {fault['address']}" in finished.log("vm0.guest")
    cut_off = verdicts["vnet0", "A18", "service to others"]["evidence"]["fault"]
    assert (cut_off["unit"], cut_off["count"]) == ("vm0.hypervisor", 1)
    assert "did not acknowledge an invalidation in time" in finished.log("vm0.hypervisor")
    assert "link is down" in finished.log("vm0.guest") and "link is up" in finished.log("vm0.guest")
    lies = verdicts["vnet0", "A55", "service to others"]["evidence"]["fault"]
    assert (lies["unit"], lies["count"]) == ("vm0.guest", 3)


@pytest.mark.parametrize("setting", ["none", pytest.param("passthrough", marks=pytest.mark.long)])
def test_without_a_viommu_or_past_it_the_guest_is_exposed_and_nobody_else(tmp_path: Path, setting: str) -> None:
    verdicts = proven(launch(write(tmp_path, topology(setting, "A1", "A2", "A12")), tmp_path / "run", "--json"))
    assert {key[1:]: row["observed"] for key, row in verdicts.items()} == {
        ("A1", "guest memory"): "leaked",
        ("A1", "host memory"): "blocked",
        ("A2", "guest memory"): "corrupted",
        ("A2", "host memory"): "blocked",
        ("A12", "other guest"): "blocked",
    }
    corrupted = verdicts["vnet0", "A2", "guest memory"]["evidence"]
    assert corrupted["canary_before"] != corrupted["canary_after"] and corrupted["reached"] == 32
    for attack, target in (("A2", "host memory"), ("A12", "other guest")):
        fault = verdicts["vnet0", attack, target]["evidence"]["fault"]
        assert (fault["kind"], fault["unit"], fault["text"]) == ("rejected", "vm0.hypervisor", "unclaimed")


@pytest.mark.long
def test_the_shipped_rogue_switch_against_a_kernel_and_an_application(tmp_path: Path) -> None:
    verdicts = proven(launch(CONFIGS / "rogue-switch.toml", tmp_path / "run", "--json"))
    cards = {card.name: card.rogue for vm in load(CONFIGS / "rogue-switch.toml").vm for card in vm.virtio_net}
    assert {(device, attack) for device, attack, _ in verdicts} == {
        (name, attack) for name, attacks in cards.items() for attack in attacks
    }
    assert {row["driver"] for row in verdicts.values()} == {"vhost", "vhost-vfio"}
    assert {attack for (_, attack, _), row in verdicts.items() if row["observed"] != "blocked"} == {"A6", "A9", "A10"}
    by_app = verdicts["vnet1", "A1", "guest memory"]["evidence"]["fault"]
    assert (by_app["kind"], by_app["unit"]) == ("remapping", "vm1 viommu")


@pytest.mark.long
def test_the_shipped_rogue_switch_without_a_viommu(tmp_path: Path) -> None:
    verdicts = proven(launch(CONFIGS / "rogue-switch-no-viommu.toml", tmp_path / "run", "--json"))
    for device, driver in (("vnet0", "vhost"), ("vnet1", "vhost-noiommu")):
        row = verdicts[device, "A2", "guest memory"]
        assert (row["driver"], row["observed"]) == (driver, "corrupted")
        assert verdicts[device, "A12", "other guest"]["observed"] == "blocked"


@pytest.mark.long
@pytest.mark.timeout(150)
def test_the_matrix_of_a_hostile_switch(tmp_path: Path) -> None:
    finished = matrix(tmp_path, "--vswitch", "--json")
    assert finished.returncode == 0, finished.stderr[-2000:]
    told = json.loads(finished.stdout)
    assert told["ok"] is True
    cells = {(row["attack"], row["target"], row["driver"], row["setting"]): row["observed"] for row in told["verdicts"]}
    target, settings = "guest memory", ("none", "strict", "passthrough")
    assert {
        driver: [cells.get(("A2", target, driver, setting)) for setting in settings]
        for driver in ("vhost", "vhost-vfio", "vhost-noiommu")
    } == {
        "vhost": ["corrupted", "blocked", "corrupted"],
        "vhost-vfio": [None, "blocked", "blocked"],
        "vhost-noiommu": ["corrupted", None, None],
    }
    page = (tmp_path / "matrix" / "matrix.md").read_text()
    assert "- **A2 arbitrary write** on guest memory, by a back end (vhost)" in page


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--vswitch", "--dpdk"), "two matrices"),
        (("--vswitch", "--setting", "none"), "leave --setting"),
        (("--vswitch", str(CONFIGS / "matrix.toml")), "no card has a back end that attacks"),
    ],
)
def test_matrices_that_cannot_be_run_are_refused(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    finished = matrix(tmp_path, *options)
    assert finished.returncode == 2 and finished.stdout == ""
    assert finished.stderr.count("\n") == 1 and told in finished.stderr


def matrix(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "viommu_actors", "matrix", "--run-dir", str(folder / "matrix"), *options]
    return subprocess.run(command, capture_output=True, text=True, env=launch_environment(), timeout=140)
