"""Recordings of QEMU replayed by the product, both ways, and which of its deviations they show.

Files of class `spec` and shadow files must pass on a unit that follows the specification; with quirks "qemu" every
operation of every file must be as recorded.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from viommu_actors.cli.replay import replay
from viommu_actors.cli.transcripts import find
from viommu_actors.hypervisor.shadow import Shadow
from viommu_actors.vtd.caches import Iotlb

FOLDER = Path(__file__).parents[1] / "transcripts"
FILES = find([FOLDER])

#: What a listed deviation of QEMU's excuses: files with differences that carry no `impl`, and the deviation's name.
EXCUSED = {
    "inval/register_based_4byte": "domain-context-as-global",
    "random/seed-002": "interrupt-faults-lost",
    "random/seed-006": "interrupt-faults-lost",
    "random/seed-014": "interrupt-faults-lost",
    "random/seed-021": "interrupt-faults-lost",
    "random/seed-023": "interrupt-faults-lost",
    "random/seed-027": "interrupt-faults-lost",
    "random/seed-029": "interrupt-faults-lost",
    "shadow/dma_faults": "hit-denial-lost",
    "shadow/psi_am_too_big": "queue-stays-stopped",
    "shadow/qi_rsvd_descriptor": "queue-stays-stopped",
    "shadow/random-088": "pass-through-settled",
    "shadow/reg_ccmd": "domain-context-as-global",
    "translate/fpd": "context-reserved-recorded",
    "translate/super_3level_aw39": "hit-denial-lost",
}


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name.partition('.')[0]}"


def test_all_recordings_are_here() -> None:
    kinds = {path.parent.name for path in FILES}
    assert kinds == {"regs", "translate", "faults", "qi", "inval", "ir", "random", "linux_snapshot", "shadow"}
    assert len(FILES) == 236


@pytest.mark.parametrize("path", FILES, ids=name)
def test_specification(path: Path) -> None:
    result = replay(path, "spec")
    information = result.class_ == "qemu" and path.parent.name != "shadow"
    assert result.result == ("information" if information else "passed"), result.difference
    excuses = {why for difference, why in result.advisory if " " not in why}
    assert information or excuses == ({EXCUSED[name(path)]} if name(path) in EXCUSED else set())


@pytest.mark.parametrize("path", FILES, ids=name)
def test_qemu(path: Path) -> None:
    result = replay(path, "qemu")
    assert (result.result, result.difference) == ("passed", None)
    assert all("plug-in" in why for _, why in result.advisory)


@pytest.mark.parametrize("broken", ["drop_domain", "drop_pages"])
def test_a_broken_unit_is_not_excused_by_a_deviation(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU's IOTLB in the place of a broken one agrees with every recording: that alone is no excuse."""
    monkeypatch.setattr(Iotlb, broken, lambda *arguments: None)
    paths = [path for path in FILES if path.parent.name in ("inval", "random", "shadow", "translate")]
    assert any(replay(path, "spec").result == "failed" for path in paths)


def test_a_broken_shadow_is_not_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shadow, "_drop", lambda *arguments: [])
    results = [replay(path, "spec").result for path in FILES if path.parent.name == "shadow"][:30]
    assert results.count("failed") > 25
