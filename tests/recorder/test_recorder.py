"""QEMU itself as a judge: recordings made now, and random transcripts compared with the unit.

Skipped, and saying so, where QEMU is missing; with VIOMMU_REQUIRE_JUDGES=1 that is a failure.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.judges import require
from viommu_actors.__main__ import main
from viommu_actors.cli.exits import Exit
from viommu_actors.cli.transcripts import lines
from viommu_actors.recorder.fuzz import fuzz
from viommu_actors.recorder.qtest import PROGRAM, QemuError, version
from viommu_actors.recorder.record import Recorder
from viommu_actors.replay import transcript as t
from viommu_actors.vtd.deviations import MENDED, Quirk, quirks_of

pytestmark = pytest.mark.judge("qemu-system-x86_64")
FOLDER = Path(__file__).parents[1] / "transcripts"
#: Seeds of a run of the suite, and seconds after which it stops.
SEEDS = range(40)
BUDGET = 8.0
RECORDED_AGAIN = [
    "regs/reset_aw48_cm.jsonl",
    "translate/fpd.jsonl",
    "translate/super_3level_aw39.jsonl",
    "faults/overflow.jsonl",
    "qi/",
    "inval/stale_psi_mod256.jsonl",
    "ir/basic.jsonl",
    "ir/irte_change.jsonl",
    "ir/with_translation.jsonl",
    "random/seed-001.jsonl",
]


@pytest.fixture(scope="module")
def qemu() -> tuple[int, ...]:
    """Version of the judge."""
    require(PROGRAM)
    found = version()
    assert found is not None
    return found


def read(path: Path) -> tuple[t.Header, list[t.Operation]]:
    numbered = lines(path)
    header = t.read_header(next(numbered)[1])
    return header, [operation for _, operation in t.read_operations(header, numbered)]


def shown(operation: t.Operation) -> dict[str, Any]:
    """What a checker compares of an operation."""
    keys = ("expect", "expect_data", "delivered", "remapped")
    fields = {key: getattr(operation, key, None) for key in keys}
    if isinstance(operation, t.DmaRead | t.DmaWrite):
        fields["gpa"] = [segment.gpa for segment in operation.segments]
        fields["reason"] = [fault.reason for fault in operation.faults][:1]
        fields["disposition"] = [fault.disposition for fault in operation.faults][:1]
    return fields


def recordings() -> list[Path]:
    paths: list[Path] = []
    for name in RECORDED_AGAIN:
        path = FOLDER / name
        paths += sorted(path.glob("*.jsonl"))[:3] if path.is_dir() else [path]
    return paths


@pytest.mark.parametrize("path", recordings(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_recorder_records_what_was_recorded_before(path: Path, qemu: tuple[int, ...]) -> None:
    if qemu[:2] != (7, 2):
        pytest.skip(f"QEMU {qemu} differs by name: {', '.join(quirk.id for quirk in MENDED)}")
    header, operations = read(path)
    with Recorder(header) as recorder:
        again = recorder.record(operations)
    for number, (before, now) in enumerate(zip(operations, again, strict=True), 2):
        assert shown(now) == shown(before), f"line {number}"


def test_random_transcripts_are_answered_as_qemu_does(qemu: tuple[int, ...], record_property: Any) -> None:
    quirks = quirks_of(qemu)
    record_property("skipped by name", [quirk.id for quirk in Quirk if quirk not in quirks])
    deadline = time.monotonic() + BUDGET
    compared = 0
    for seed in SEEDS:
        if time.monotonic() > deadline:
            break
        try:
            found = fuzz(seed, quirks)
        except QemuError as error:
            record_property(f"seed {seed}", str(error))
            continue
        compared += 1
        assert found is None, f"{found.difference}\n" + b"".join(t.write(found.header, found.operations)).decode()
    assert compared >= 5


def test_a_difference_is_found_and_shrunk(qemu: tuple[int, ...]) -> None:
    """A unit without one of QEMU's deviations is caught, by a transcript of a few lines."""
    crippled = quirks_of(qemu) - {Quirk.QUEUE_STAYS_STOPPED}
    found = next(found for seed in range(20) if (found := fuzz(seed, crippled)) is not None)
    assert len(found.operations) <= 12
    assert found.difference.line == len(found.operations) + 1


def test_record_command(qemu: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.jsonl"
    assert main(["record", str(FOLDER / "ir" / "basic.jsonl"), "-o", str(output)]) == Exit.AS_EXPECTED
    assert main(["record", "--random", "7", "--steps", "20", "-o", str(tmp_path / "random.jsonl")]) == Exit.AS_EXPECTED
    if qemu[:2] == (7, 2):
        assert main(["replay", "--quirks", "qemu", str(tmp_path)]) == Exit.AS_EXPECTED
        assert capsys.readouterr().out.count(": ok") == 2


def test_fuzz_command(qemu: tuple[int, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", "--fuzz", "3", "--seed", "100", "--json"]) == Exit.AS_EXPECTED
    result = json.loads(capsys.readouterr().out)
    assert (result["compared"], result["difference"]) == (3, None)


def test_what_qemu_cannot_do_is_refused(
    qemu: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", str(FOLDER / "shadow" / "psi_am00.jsonl")]) == Exit.REFUSED
    assert main(["record", str(tmp_path / "absent.jsonl")]) == Exit.REFUSED
    assert len(capsys.readouterr().err.splitlines()) == 2
