"""The protection matrix, as a user runs it: sandboxed device processes at running topologies, every cell proven."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import CONFIGS, launch_environment
from viommu_actors.attacks.catalogue import CATALOGUE, PLAYABLE, Target
from viommu_actors.attacks.expected import SETTINGS, Key
from viommu_actors.attacks.expected import matrix as every_cell
from viommu_actors.confine.sandbox import lacking
from viommu_actors.topology.load import load

pytestmark = pytest.mark.topology
#: The others are of applications.
BY_DEVICES = {attack.id for attack in PLAYABLE.values() if attack.by == "device"}
#: What only devices of the host do in the shipped matrix.
ELSEWHERE = {("guest", "A15"), ("guest", "A28")}
#: Where the host uses no IOMMU there is no guest to attack.
NO_GUEST = {Key("A12", "host", Target.OTHER_GUEST, "none")}


def _key(row: dict[str, Any]) -> Key:
    return Key(row["attack"], row["driver"], Target(row["target"]), row["setting"])


def _matrix(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "viommu_actors", "matrix", "--run-dir", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, env=launch_environment(), timeout=190)


@pytest.mark.long
@pytest.mark.timeout(200)
def test_every_attack_under_every_setting_is_as_expected(tmp_path: Path) -> None:
    matrix = _as_expected(tmp_path / "matrix")
    assert {row["attack"] for row in matrix["verdicts"]} == BY_DEVICES
    assert {row["setting"] for row in matrix["verdicts"]} == set(SETTINGS)
    assert {row["attack"] for row in matrix["waiting"]} == set(CATALOGUE) - BY_DEVICES
    for key, cell in every_cell().items():
        if key.attack in BY_DEVICES and key.driver in ("guest", "host") and (key.driver, key.attack) not in ELSEWHERE:
            there = [row for row in matrix["verdicts"] if _key(row) == key]
            assert len(there) == (cell.verdict is not None and key not in NO_GUEST), key


@pytest.mark.long
@pytest.mark.parametrize(("driver", "settings"), [("guest", ("ir",)), ("host", ("acs-off",))])
def test_some_columns_are_as_expected(tmp_path: Path, driver: str, settings: tuple[str, ...]) -> None:
    chosen = [word for setting in settings for word in ("--setting", setting)]
    matrix = _as_expected(tmp_path / "matrix", "--driver", driver, *chosen)
    assert {(row["driver"], row["setting"]) for row in matrix["verdicts"]} == {(driver, each) for each in settings}


def _as_expected(folder: Path, *options: str) -> dict[str, Any]:
    """The matrix, each cell of which has its proofs."""
    finished = _matrix(folder, "--json", *options)
    assert finished.returncode == 0, finished.stderr[-2000:] + finished.stdout[-2000:]
    matrix: dict[str, Any] = json.loads(finished.stdout)
    assert matrix["ok"] is True
    assert bool(lacking()) or (all("full" in words for words in matrix["sandbox"]) and matrix["sandbox"])
    for row in matrix["verdicts"]:
        evidence = row["evidence"]
        assert row["observed"] == row["expected"], row
        assert evidence["control"] and evidence["attempts"], row
        if row["observed"] == "blocked":
            assert evidence["fault"]["source"] == evidence["source"], row
            assert evidence["canary_before"] == evidence["canary_after"] != "", row
    assert json.loads((folder / "matrix.json").read_text()) == matrix
    page = (folder / "matrix.md").read_text()
    named = {f"| {row['attack']} {CATALOGUE[row['attack']].name} | {row['target']} |" for row in matrix["verdicts"]}
    assert all(each in page for each in named)
    assert "**" not in page.partition("## Proofs")[0]
    return matrix


def test_one_column_as_text(tmp_path: Path) -> None:
    finished = _matrix(tmp_path / "matrix", "--setting", "none", "--driver", "host")
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "A1 scan-read" in finished.stdout and "leaked: 16 hit canary pages" in finished.stdout
    assert finished.stdout.splitlines()[-1].startswith("As expected: ")


def test_a_topology_that_cannot_be_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[[device]]\nname = "nic0"\nmodel = "nic"\nrogue = ["A99"]\n')
    finished = _matrix(tmp_path / "matrix", str(path))
    assert finished.returncode == 2 and finished.stdout == ""
    assert finished.stderr.count("\n") == 1 and "A99" in finished.stderr


def test_the_shipped_matrix_names_every_attack_that_a_device_can_play() -> None:
    assert {attack for device in load(CONFIGS / "matrix.toml").device for attack in device.rogue} == BY_DEVICES


@pytest.mark.long
def test_the_nine_ways_of_an_application_are_as_they_really_are(tmp_path: Path) -> None:
    finished = _matrix(tmp_path / "matrix", "--dpdk", "--json")
    assert finished.returncode == 0, finished.stderr[-2000:] + finished.stdout[-2000:]
    ways = json.loads(finished.stdout)
    assert ways["ok"] is True
    assert {(cell["driver"], cell["setting"]): (cell["outcome"], cell["error"]) for cell in ways["cells"]} == {
        ("vfio", "none"): ("refused", "EINVAL"),
        ("vfio", "strict"): ("safe", ""),
        ("vfio", "passthrough"): ("safe", ""),
        ("noiommu", "none"): ("UNSAFE", ""),
        ("noiommu", "strict"): ("refused", "ENOENT"),
        ("noiommu", "passthrough"): ("refused", "ENOENT"),
        ("uio", "none"): ("UNSAFE", ""),
        ("uio", "strict"): ("useless", ""),
        ("uio", "passthrough"): ("UNSAFE", ""),
    }
    assert "| UIO | UNSAFE | binds; all its DMA faults | UNSAFE |" in (tmp_path / "matrix" / "matrix.md").read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [(("--dpdk", "--setting", "none"), "leave --setting"), (("--dpdk", str(CONFIGS / "matrix.toml")), "[[vm.app]]")],
)
def test_ways_that_cannot_be_run_are_refused(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    finished = _matrix(tmp_path / "matrix", *options)
    assert finished.returncode == 2 and finished.stdout == ""
    assert finished.stderr.count("\n") == 1 and told in finished.stderr


@pytest.mark.parametrize(
    ("shipped", "instead", "told"),
    [
        ("[[vm.assign]]\n", "[[vm.assign]]\nbypass_iommu = true\n", "bypass_iommu"),
        ("[vm.viommu]\n", "", "under none, not strict"),
        ('rogue = ["A54", "A2"]\n', "", '"nic0" plays no attack on guest memory'),
        ('rogue = ["A54", "A2"]\n', 'rogue = ["A15"]\n', '"nic0" plays no attack on guest memory'),
    ],
)
def test_ways_whose_cells_would_be_of_something_else_are_refused(
    tmp_path: Path, shipped: str, instead: str, told: str
) -> None:
    text = (CONFIGS / "dpdk-matrix.toml").read_text()
    assert shipped in text
    config = tmp_path / "mine.toml"
    config.write_text(text.replace(shipped, instead))
    finished = _matrix(tmp_path / "matrix", "--dpdk", str(config))
    assert finished.returncode == 2 and finished.stdout == "" and not (tmp_path / "matrix").exists()
    assert finished.stderr.count("\n") == 1 and told in finished.stderr, finished.stderr
