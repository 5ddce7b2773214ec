"""What the matrix says of runs that did not hold, or were not run."""

from __future__ import annotations

import json
from typing import Any

from msgspec.structs import replace

from tests.report.samples import evidence
from viommu_actors.report.matrix import Matrix
from viommu_actors.report.results import Absent, Results, Verdict
from viommu_actors.report.text import plain

VERDICT = Verdict(
    device="rogue",
    driver="guest",
    attack="A2",
    target="guest memory",
    setting="strict",
    expected="blocked",
    observed="blocked",
    evidence=evidence("blocked", "01:00.0", True),
)
RUN = Results(topology="strict-guest", ok=True, processes=(), verdicts=(VERDICT,), io=(), faults=())


def matrix(run: Results = RUN, settings: Any = ("strict",), whole: bool = True) -> Matrix:
    return Matrix(settings, [("strict", "guest", run)], whole)


def test_a_matrix_that_holds() -> None:
    assert matrix().ok and plain(matrix().summary()).startswith("As expected: 1 verdicts of 1 attacks")


def test_a_verdict_that_differs() -> None:
    made = matrix(replace(RUN, ok=False, verdicts=(replace(VERDICT, observed="corrupted"),)))
    assert not made.ok and "1 of 1 verdicts" in plain(made.summary())
    assert "**corrupted, expected blocked**" in made.markdown()


def test_an_io_that_differs() -> None:
    made = matrix(replace(RUN, ok=False))
    assert not made.ok and plain(made.summary()) == "NOT as expected: strict-guest did not hold."
    assert json.loads(made.as_json())["ok"] is False


def test_a_column_that_was_not_run_to_its_end() -> None:
    assert not matrix(whole=False).ok and "not all of it was run" in plain(matrix(whole=False).summary())


def test_a_cell_that_was_left_open() -> None:
    made = matrix(settings=("none", "strict"))
    assert not made.ok and "A2 arbitrary write was left open" in plain(made.summary())


def test_a_cell_that_does_not_exist_tells_why() -> None:
    absent = Absent(device="rogue", attack="A2", target="guest memory", reason="no such memory")
    runs: Any = [("strict", "guest", RUN), ("none", "guest", replace(RUN, verdicts=(), absent=(absent,)))]
    made = Matrix(("none", "strict"), runs)
    assert made.ok and "none: absent: no such memory" in "\n".join(plain(each) for each in made.lines())
    [told] = json.loads(made.as_json())["absent"]
    assert (told["setting"], told["reason"]) == ("none", "no such memory")


def test_nothing_played_is_not_as_expected() -> None:
    assert not Matrix(("strict",), []).ok
