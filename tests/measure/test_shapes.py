"""Published shapes: judged by their tolerances, and those of exact counts reproduced by a run of real processes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from viommu_actors.__main__ import main
from viommu_actors.cli import shapes as command
from viommu_actors.measure.costs import shipped
from viommu_actors.measure.flush import FlushCosts, Flushes, measure_flushes
from viommu_actors.measure.shapes import SHAPES, TABLES, Check, Observations, Outcome, Probes, Shape, judge
from viommu_actors.report.report import shown
from viommu_actors.report.results import Io
from viommu_actors.report.shapes import all_passed, shapes_json, shapes_report

ROOT = Path(__file__).parents[2]
BY_NUMBER = {shape.number: shape for shape in SHAPES}
FLUSHES = FlushCosts(40, 256, 65_535, 2000, 22_400, 30, 33, 11.2, 1.1)
PROBES = Probes(8, 16, 16, 0, 16, 16)


def _row(device: str, **each: int) -> Io:
    named: dict[str, Any] = {"traps": 0, "vfio_maps": 0, "vfio_unmaps": 0} | each
    counted = {key: count * 10 for key, count in named.items()}
    return Io(device=device, mapping="dynamic", operations=10, bytes=40960, verified=True, **counted)


MAPPED = {"pte_writes": 2, "dma_maps": 1, "dma_unmaps": 1}
ROWS = {
    "bare": _row("bare", invalidations=1, **MAPPED),
    "dynamic": _row("dynamic", traps=2, invalidations=2, **MAPPED),
    "static": _row("static"),
    "lazy": _row("lazy", traps=2, invalidations=2, **MAPPED),
    "passthrough": _row("passthrough", dma_maps=1, dma_unmaps=1),
}


def _seen(**changed: Any) -> Observations:
    tables = {name: shipped(name) for name in TABLES}
    as_published = {"io": ROWS, "tables": tables, "batching_refused": True, "flushes": FLUSHES, "probes": PROBES}
    return Observations(**(as_published | changed))


def test_all_twelve_are_told_of() -> None:
    assert [shape.number for shape in SHAPES] == list(range(1, 13))
    outcomes = {shape.number: judge(shape, _seen()) for shape in SHAPES}
    assert {number for number, outcome in outcomes.items() if outcome.status == "passed"} == {1, 2, 3, 6, 7, 12}
    for outcome in outcomes.values():
        assert outcome.status == "passed" or (outcome.status == "waiting" and outcome.waits_for)


def _without(name: str, **counted: int) -> dict[str, Io]:
    return ROWS | {name: msgspec.structs.replace(ROWS[name], **counted)}


@pytest.mark.parametrize(
    ("number", "changed"),
    [
        (1, {"io": _without("bare", invalidations=20)}),
        (1, {"io": _without("dynamic", traps=21)}),
        (1, {"io": _without("dynamic", pte_writes=0)}),
        (2, {"io": _without("bare", invalidations=30)}),
        (2, {"io": _without("dynamic", traps=10)}),
        (3, {"io": _without("static", traps=1)}),
        (3, {"io": _without("dynamic", traps=19)}),
        (6, {"io": _without("lazy", traps=1)}),
        (6, {"batching_refused": False}),
        (7, {"flushes": FLUSHES._replace(domain_ratio=3.9)}),
        (7, {"flushes": FLUSHES._replace(page_ratio=1.6)}),
        (12, {"probes": PROBES._replace(stale_hits=1, stale_blocked=15)}),
        (12, {"probes": PROBES._replace(mapped_hits=15)}),
        (12, {"probes": PROBES._replace(recorded=15)}),
    ],
)
def test_what_is_out_of_tolerance_fails(number: int, changed: dict[str, Any]) -> None:
    outcome = judge(BY_NUMBER[number], _seen(**changed))
    assert outcome.status == "failed"
    assert not all_passed([outcome])
    text = shown(shapes_report([outcome]), io.StringIO())
    assert "OUT OF TOLERANCE" in text and text.endswith(f"OUT OF TOLERANCE: shape {number}.")


def test_the_report_tells_published_observed_and_what_waits() -> None:
    outcomes = [judge(shape, _seen()) for shape in SHAPES]
    text = shown(shapes_report(outcomes), io.StringIO())
    assert "waits for optimistic teardown" in text
    assert text.endswith("Within tolerance: 6 of 12 shapes; 6 waiting.")
    told = json.loads(shapes_json(outcomes))
    assert told["ok"] is True and len(told["shapes"]) == 12
    clocks = {check["clock"] for shape in told["shapes"] for check in shape["checks"]}
    assert clocks == {"counts", "modelled", "wall"}
    assert all(check["ok"] for shape in told["shapes"] for check in shape["checks"])


def test_the_report_needs_no_more_than_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert shown(shapes_report([judge(shape, _seen()) for shape in SHAPES]), stream).isascii()


def test_a_figure_that_is_none_is_not_in_tolerance() -> None:
    bounds = {"low": 0.0, "high": 1.0}
    check = Check(what="w", clock="wall", published="1", observed=float("nan"), tolerance="t", **bounds)  # type: ignore[arg-type]
    assert not check.ok
    assert "none" in shown(shapes_report([_outcome(check)]), io.StringIO())
    assert json.loads(shapes_json([_outcome(check)]))["shapes"][0]["checks"][0]["observed"] is None


def _outcome(*checks: Check) -> Outcome:
    return judge(Shape(1, "t", "r", frozenset(), lambda seen: list(checks)), _seen())


# --- shape 7, in process


def test_a_domain_flush_walks_all_that_is_mapped_and_a_page_one_its_page() -> None:
    flushes = Flushes(700)
    assert len(flushes.shadow.mappings()) == 700
    assert {mapping.size for mapping in flushes.shadow.mappings()} == {4096}
    before = Counter(flushes.shadow.counters)
    flushes.by_domain()
    flushes.by_page()
    assert flushes.unit.counters["iotlb_domain"] == flushes.unit.counters["iotlb_page"] == 1
    assert flushes.unit.counters["waits"] == 2
    assert flushes.shadow.counters - before == {"walks": 2}


def test_flushes_are_timed_in_interleaved_rounds_by_the_clock_that_is_given() -> None:
    ticks = iter(range(0, 10**9, 1000))
    costs = measure_flushes(3, lambda: next(ticks), few=2, many=20)
    # The clock ticks once a sample: a microsecond, shared by the page flushes of one sample.
    assert (costs.domain_few_us, costs.domain_many_us, costs.domain_ratio, costs.page_ratio) == (1, 1, 1, 1)
    assert costs.page_few_us == costs.page_many_us == 1 / 16


# --- the command


@pytest.mark.topology
def test_the_shapes_of_exact_counts_by_a_run(tmp_path: Path) -> None:
    numbers = ["1", "2", "3", "4", "6", "12"]
    small = ["--operations", "6", "--probes", "4", "--run-dir", str(tmp_path / "run"), "--json"]
    finished = subprocess.run(
        [sys.executable, "-m", "viommu_actors", "shapes", *numbers, *small],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=50,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr + finished.stdout
    told = json.loads(finished.stdout)
    status = {shape["number"]: shape["status"] for shape in told["shapes"]}
    assert status == {1: "passed", 2: "passed", 3: "passed", 4: "waiting", 6: "passed", 12: "passed"}
    observed = {check["what"]: check["observed"] for shape in told["shapes"] for check in shape["checks"]}
    assert observed["while mapped: of 8 probes, went through"] == 8
    assert observed["after the unmap: of 8 probes, went through"] == 0
    assert observed["after the unmap: of 8 probes, refused and recorded"] == 8
    assert observed["dynamic: requests an I/O"] == 2 and observed["static: requests an I/O"] == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["ok"] is True


def test_a_shape_out_of_tolerance_ends_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Check(what="w", clock="counts", published="1", observed=2, low=1, high=1, tolerance="exact")
    monkeypatch.setattr(command, "SHAPES", (Shape(1, "t", "r", frozenset(), lambda seen: [bad]),))
    assert main(["shapes", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_only_what_is_asked_for_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shapes", "11"]) == 0
    said = capsys.readouterr()
    assert said.out.endswith("Within tolerance: 0 of 1 shapes; 1 waiting.\n") and said.err == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["13"], "there is no shape 13; name some of 1 to 12"),
        (["--rounds", "0"], "--rounds: 0 is out of range; give 1 to 100000"),
        (["--operations", "-1"], "--operations: -1 is out of range; give 1 to 1000000"),
        (["1", "--run-dir", "/proc/none/such"], "; name a place that can be written"),
    ],
)
def test_bad_options_are_refused(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shapes", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and told in said.err and said.err.count("\n") == 1
