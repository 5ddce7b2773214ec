"""How safe a device is in the hands of an application: the ways to it down, the guest's settings across."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from viommu_actors.attacks.catalogue import Setting
from viommu_actors.attacks.expected import Driver, expected
from viommu_actors.report.results import Results
from viommu_actors.report.scene import WAYS
from viommu_actors.report.tables import fault_words, proofs, sandbox_note, sandbox_words
from viommu_actors.report.text import Line, Span, Style, Table, line

Outcome = Literal["safe", "UNSAFE", "refused", "useless", "unproven"]
_STYLES: dict[Outcome, Style] = {"safe": "safe", "UNSAFE": "unsafe", "unproven": "unknown"}
_GUEST = "guest memory"


class Cell(NamedTuple):
    """What became of one run; `told` are its proofs, or reasons, a line each."""

    driver: Driver
    setting: Setting
    outcome: Outcome
    ok: bool
    error: str
    told: tuple[str, ...]

    @property
    def words(self) -> str:
        """As it stands in the table."""
        said = {"refused": f"refused, {self.error}", "useless": "binds; all its DMA faults"}.get(self.outcome)
        return (said or self.outcome) + ("" if self.ok else " !")


class Ways:
    """`runs` are the results of each setting and way, of one device each."""

    def __init__(self, runs: Sequence[tuple[Setting, Driver, Results]], whole: bool = True) -> None:
        """`whole`: every column has been run to its end."""
        self._whole = whole
        self.cells = [_cell(*run) for run in runs]
        self._processes = [process for _, _, results in runs for process in results.processes]

    @property
    def ok(self) -> bool:
        """Whether all was run, each run went as expected and proved something, and there is one at all."""
        return self._whole and bool(self.cells) and all(cell.ok for cell in self.cells)

    def as_json(self) -> str:
        value: dict[str, Any] = {"ok": self.ok, "cells": [cell._asdict() for cell in self.cells]}
        value["sandbox"] = sandbox_words(self._processes)
        return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()

    def lines(self) -> list[Line]:
        """Table, what stands behind each cell, and the closing line, blank lines between."""
        blocks = [self._table().lines(), self._told(), *sandbox_note(self._processes), [self.summary()]]
        return [each for block in blocks for each in (*block, ())][:-1]

    def markdown(self) -> str:
        """The same for a page."""
        settings = self._settings
        lines = ["# Ways of applications to devices", "", f"| by | {' | '.join(settings)} |", "|---" * 4 + "|"]
        for driver in self._drivers:
            cells = (self._words(driver, setting) for setting in settings)
            lines.append(f"| {_way(driver)} | {' | '.join(cells)} |")
        for cell in self.cells:
            lines += ["", f"**{_way(cell.driver)}, {cell.setting}**: {cell.words}", ""]
            lines += [f"- {told}" for told in cell.told]
        return "\n".join(lines) + "\n"

    def summary(self) -> Line:
        """How many combinations there are, and how many are not as expected."""
        wrong = [cell for cell in self.cells if not cell.ok]
        if self.ok:
            return line(Span(f"As expected: {len(self.cells)} combinations.", "safe"))
        rest = "" if self._whole else "; not all of it was run"
        return line(Span(f"NOT as expected: {len(wrong)} of {len(self.cells)} combinations{rest}.", "unsafe"))

    @property
    def _settings(self) -> list[Setting]:
        return list(dict.fromkeys(cell.setting for cell in self.cells))

    @property
    def _drivers(self) -> list[Driver]:
        return list(dict.fromkeys(cell.driver for cell in self.cells))

    def _find(self, driver: Driver, setting: Setting) -> Cell | None:
        return next((cell for cell in self.cells if (cell.driver, cell.setting) == (driver, setting)), None)

    def _words(self, driver: Driver, setting: Setting) -> str:
        cell = self._find(driver, setting)
        return "·" if cell is None else cell.words

    def _table(self) -> Table:
        def shown(driver: Driver, setting: Setting) -> Line:
            cell = self._find(driver, setting)
            style: Style = "unknown" if cell is None else _STYLES.get(cell.outcome, "")
            return line(Span(self._words(driver, setting), style))

        return Table(
            title="A device in the hands of an application in a guest; a ! is not what is expected",
            columns=("by", *self._settings),
            rows=tuple(
                (line(_way(driver)), *(shown(driver, setting) for setting in self._settings))
                for driver in self._drivers
            ),
        )

    def _told(self) -> list[Line]:
        lines = [line(Span("What stands behind each", "title"))]
        for cell in self.cells:
            lines.append(line(f"{_way(cell.driver)}, {cell.setting}: {cell.words}"))
            lines += [line(f"    {told}") for told in cell.told]
        return lines


def _way(driver: Driver) -> str:
    return {str(way): words for way, words in WAYS.items()}[driver]


def _cell(setting: Setting, driver: Driver, results: Results) -> Cell:
    reason = expected("A2", driver, _GUEST, setting).reason
    for port in (port for app in results.apps for port in app.ports):
        if not port.granted:
            return Cell(driver, setting, "refused", results.ok, port.errno, (port.reason, reason))
    own = [row for row in results.io if row.driver == driver]
    if own and not any(row.verified for row in own):
        told = [row.failed for row in own] + [fault_words(row.fault) for row in own if row.fault is not None]
        return Cell(driver, setting, "useless", results.ok, "", (*told, reason))
    aimed = [verdict for verdict in results.verdicts if verdict.target == _GUEST]
    observed = {verdict.observed for verdict in aimed}
    outcome: Outcome = "unproven"
    if observed & {"leaked", "corrupted"}:
        outcome = "UNSAFE"
    elif observed == {"blocked"}:
        outcome = "safe"
    stood = [f"{verdict.attack} {verdict.observed}: {proofs(verdict)}" for verdict in aimed]
    return Cell(driver, setting, outcome, results.ok and outcome != "unproven", "", (*stood, reason))
