"""Verdicts in topologies where it would be easy to judge wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import SMALL, launch, write

pytestmark = pytest.mark.topology

SECOND = """
[[device]]
name = "nic1"
model = "nic"
operations = 8
rogue = ["A2"]

[[vm.assign]]
device = "nic1"
"""


def _results(tmp_path: Path, text: str) -> dict[str, Any]:
    finished = launch(write(tmp_path, text), tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr + finished.stdout[-3000:]
    return finished.results


def test_each_attack_meets_fresh_canaries(tmp_path: Path) -> None:
    """The second rogue corrupts the same pages as the first: its own digests tell it."""
    text = SMALL.replace("[vm.viommu]", "").replace("[[vm]]", SECOND.partition("[[vm.assign]]")[0] + "[[vm]]")
    results = _results(tmp_path, text + '[[vm.assign]]\ndevice = "nic1"\n')
    rows = [row for row in results["verdicts"] if row["target"] == "guest memory"]
    assert [row["observed"] for row in rows] == ["corrupted", "corrupted"]
    digests = [row["evidence"][when] for row in rows for when in ("canary_before", "canary_after")]
    assert len(set(digests)) == 4


def test_what_an_attack_harmed_is_mended_before_the_run_goes_on(tmp_path: Path) -> None:
    """A nic of the host, let pass by its IOMMU, overwrites root table and queue; then a guest's nic works on."""
    text = SMALL.replace(
        "[[device]]",
        'cmdline = "intel_iommu=on iommu=pt"\n[[device]]\nname = "own"\nmodel = "nic"\nrogue = ["A32", "A2"]\n'
        "[[device]]",
        1,
    )
    results = _results(tmp_path, text)
    observed = {(row["device"], row["attack"], row["target"]): row["observed"] for row in results["verdicts"]}
    assert observed["own", "A32", "page tables"] == observed["own", "A2", "host memory"] == "corrupted"
    assert observed["nic0", "A2", "guest memory"] == "blocked"


@pytest.mark.long
def test_a_scan_leaves_out_what_the_device_may_reach(tmp_path: Path) -> None:
    """An edu's static pool lies within the addresses of a guest of 512 MiB."""
    text = SMALL.replace('"nic"', '"edu"').replace('"16M"', '"512M"').replace('["A2"]', '["A1"]')
    text = text.replace("intel_iommu=on", "intel_iommu=on edu.static=00:03.0")
    [own] = [row for row in _results(tmp_path, text)["verdicts"] if row["target"] == "guest memory"]
    assert own["observed"] == "blocked" and own["evidence"]["elsewhere"] == 0
    assert own["evidence"]["aimed"] == own["evidence"]["tried"] < 512 * 256


def test_every_other_guest_is_attacked(tmp_path: Path) -> None:
    others = "".join(f'[[vm]]\nname = "vm{n}"\nmemory = "16M"\n' for n in (1, 2, 3))
    [row] = _results(tmp_path, SMALL.replace('["A2"]', '["A12"]') + others)["verdicts"]
    assert row["observed"] == "blocked" and row["evidence"]["refused"] == row["evidence"]["aimed"] == 3 * 16


def test_an_attack_that_does_not_apply_is_left_out_with_its_reason(tmp_path: Path) -> None:
    text = SMALL.replace('["A2"]', '["A31"]').replace("intel_iommu=on", "intel_iommu=on iommu=pt")
    results = _results(tmp_path, text)
    assert results["verdicts"] == []
    assert {(row["attack"], row["reason"]) for row in results["absent"]} == {
        ("A31", "a pass-through context entry has no page tables"),
    }


@pytest.mark.long
@pytest.mark.parametrize("protected", [True, False])
def test_a_scan_of_a_large_guest_is_judged_whole(tmp_path: Path, protected: bool) -> None:
    text = SMALL.replace('"16M"', '"128M"').replace('["A2"]', '["A1"]')
    results = _results(tmp_path, text if protected else text.replace("[vm.viommu]", ""))
    [own] = [row for row in results["verdicts"] if row["target"] == "guest memory"]
    assert own["observed"] == ("blocked" if protected else "leaked")
    assert own["evidence"]["tried"] == own["evidence"]["aimed"] == 128 * 256
