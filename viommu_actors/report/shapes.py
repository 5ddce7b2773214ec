"""Published shapes against observed ones, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from viommu_actors.measure.shapes import Check, Outcome
from viommu_actors.report.text import Line, Span, Table, line


def shapes_report(outcomes: Sequence[Outcome]) -> list[Line]:
    """A row for each check, the shapes that wait, and a closing line."""
    shown = [outcome for outcome in outcomes if outcome.checks]
    blocks: list[list[Line]] = []
    if shown:
        table = Table(
            title="Published shapes (clock: exact counts; modelled = counts times published costs; wall = here)",
            columns=("shape", "what", "clock", "published", "observed", "tolerance", ""),
            rows=tuple(row for outcome in shown for row in _rows(outcome)),
            numbers=frozenset([0, 3, 4]),
        )
        blocks.append(table.lines())
    if waiting := [outcome for outcome in outcomes if outcome.waits_for]:
        blocks.append([line(Span("Waiting for their modes", "title")), *(_waiting(outcome) for outcome in waiting)])
    blocks.append([_summary(outcomes)])
    return [each for block in blocks for each in (*block, ())][:-1]


def shapes_json(outcomes: Sequence[Outcome]) -> str:
    """One object: `ok`, and each shape with its checks."""
    shapes = [
        msgspec.to_builtins(outcome)
        | {"checks": [msgspec.to_builtins(check) | {"ok": check.ok} for check in outcome.checks]}
        for outcome in outcomes
    ]
    # msgspec writes a figure that there is none of as null.
    return msgspec.json.format(msgspec.json.encode({"ok": all_passed(outcomes), "shapes": shapes})).decode()


def all_passed(outcomes: Sequence[Outcome]) -> bool:
    """Whether no shape is out of tolerance."""
    return all(outcome.status != "failed" for outcome in outcomes)


def _rows(outcome: Outcome) -> list[tuple[Line, ...]]:
    status = Span(outcome.status, "safe" if outcome.status == "passed" else "unsafe")
    head = (line(str(outcome.number)), line(Span(outcome.title, "title")), (), (), (), (), line(status))
    return [head, *(_row(check) for check in outcome.checks)]


def _row(check: Check) -> tuple[Line, ...]:
    verdict = Span("ok", "safe") if check.ok else Span("OUT OF TOLERANCE", "unsafe")
    cells = ("", f"  {check.what}", check.clock, check.published, _number(check.observed), check.tolerance)
    return (*(line(cell) for cell in cells), line(verdict))


def _number(value: float) -> str:
    if math.isnan(value):
        return "none"
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _waiting(outcome: Outcome) -> Line:
    what = "" if outcome.status == "waiting" else "the rest "
    return line(f"{outcome.number:>5}  {outcome.title}: {what}waits for {outcome.waits_for}")


def _summary(outcomes: Sequence[Outcome]) -> Line:
    counted = {status: sum(outcome.status == status for outcome in outcomes) for status in ("passed", "waiting")}
    failed = [str(outcome.number) for outcome in outcomes if outcome.status == "failed"]
    if failed:
        return line(Span(f"OUT OF TOLERANCE: shape {', '.join(failed)}.", "unsafe"))
    told = f"Within tolerance: {counted['passed']} of {len(outcomes)} shapes; {counted['waiting']} waiting."
    return line(Span(told, "safe"))
