"""Bad input through the front door: one clear line, exit 2, nothing started."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.topologies.launcher import SMALL, launched, write

pytestmark = pytest.mark.topology

TAKEN = """
[[device]]
name = "edu0"
model = "edu"
slot = 1
[[device]]
name = "edu1"
model = "edu"
slot = 1
"""
BAD = {
    "unknown key": (SMALL.replace("operations", "operation"), "operation"),
    "wrong type": (SMALL.replace('"16M"', "16"), "memory"),
    "empty": ("", "empty"),
    "truncated": (SMALL[:-10], "TOML"),
    "device assigned twice": (SMALL + '[[vm.assign]]\ndevice = "nic0"\n', "nic0"),
    "slot taken": (SMALL + TAKEN, "slot"),
    "memory too small": (SMALL.replace('"16M"', '"2K"'), "memory"),
    "no caching mode": (
        SMALL.replace("[vm.viommu]", "[vm.viommu]\ncaching_mode = false"),
        "We need to set caching-mode=on for intel-iommu to enable device assignment with IOMMU protection",
    ),
    "unsafe interrupts": (
        SMALL.replace('"32M"', '"32M"\niommu = { intremap = false }'),
        "allow_unsafe_interrupts=1",
    ),
    "no such attack": (SMALL.replace('"A2"', '"A999"'), "A999"),
    "no such device": (SMALL.replace('device = "nic0"', 'device = "nic9"'), "nic9"),
}


def _refused(config: Path, tmp_path: Path) -> str:
    with launched(config, tmp_path / "run", "--json") as running:
        finished = running.finish()
    assert finished.status == 2, finished.stderr
    assert finished.stdout == "" and not (tmp_path / "run").exists()
    [line] = finished.stderr.splitlines()
    assert str(config) in line
    return line


@pytest.mark.parametrize("name", BAD)
def test_a_topology_that_cannot_be(tmp_path: Path, name: str) -> None:
    text, word = BAD[name]
    assert word in _refused(write(tmp_path, text), tmp_path)


def test_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(bytes(range(256)) * 16)
    _refused(path, tmp_path)


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    assert "no such file" in _refused(tmp_path / "missing.toml", tmp_path)
    assert "directory" in _refused(tmp_path, tmp_path)


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "file.toml").write_text(SMALL)
    with launched(tmp_path / "file.toml", tmp_path / "file") as running:
        finished = running.finish()
    assert finished.status == 2
    [line] = finished.stderr.splitlines()
    assert "file" in line and "name a place" in line
