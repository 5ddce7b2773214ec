"""The level that is told: what there is, what there is not, and why."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.judges import require_module
from viommu_actors.confine import landlock, sandbox, seccomp
from viommu_actors.confine.level import Confinement
from viommu_actors.report.results import Process
from viommu_actors.report.tables import sandbox_note, sandbox_words
from viommu_actors.spec import landlock as spec


@pytest.mark.parametrize(
    ("confinement", "level", "detail"),
    [
        (Confinement(7, True, ""), "full", "Landlock ABI 7, seccomp"),
        (Confinement(7, False, "no filters"), "landlock", "Landlock ABI 7; no filters"),
        (Confinement(0, True, "no Landlock"), "seccomp", "seccomp; no Landlock"),
        (Confinement(0, False, "neither"), "none", "neither"),
    ],
)
def test_levels(confinement: Confinement, level: str, detail: str) -> None:
    assert (confinement.level, confinement.detail) == (level, detail)


def test_a_level_that_all_have_is_told_once() -> None:
    host = Process(role="host", name="host", pid=1)
    full = [
        Process(role="device", name=name, pid=2, sandbox="full", sandbox_detail="Landlock ABI 7, seccomp")
        for name in ("nic0", "nic1")
    ]
    none = Process(role="device", name="edu0", pid=3, sandbox="none", sandbox_detail="neither")
    assert sandbox_words([host]) == [] and sandbox_note([host]) == []
    assert sandbox_words([host, *full]) == ["device processes: full sandbox (Landlock ABI 7, seccomp)"]
    assert sandbox_words([*full, none]) == [
        "nic0, nic1: full sandbox (Landlock ABI 7, seccomp)",
        "edu0: NO sandbox (neither)",
    ]
    assert {span.style for row in sandbox_note([*full, none])[0] for span in row} == {"unsafe"}
    assert {span.style for row in sandbox_note(full)[0] for span in row} == {""}


def _landlock_of_the_kernel() -> int:
    """By another's eyes, 0 for none."""
    judge = require_module("landlockpy")
    return int(judge.abi_version()) if judge.supported() else 0


def test_what_the_kernel_has_is_found() -> None:
    """Where it has both, no less than level full will do, and a run of the suite fails."""
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    abi, filters = _landlock_of_the_kernel(), "Seccomp_filters" in status
    if abi:
        assert landlock.abi() == abi
    if filters:
        seccomp.probe()
    assert (sandbox.lacking() == "") == bool(abi and filters)


def test_the_rights_are_those_of_the_interface() -> None:
    judge: ModuleType = require_module("landlockpy")
    for abi in range(1, 8):
        for table, known in (
            (spec.ACCESS_FS, judge.fs_for_abi),
            (spec.ACCESS_NET, judge.net_for_abi),
            (spec.SCOPE, judge.scope_for_abi),
        ):
            assert sum(bits for since, bits in table.items() if since <= abi) == int(known(abi))
