"""The protection matrix: attacks down, settings across, and the proofs of every cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from viommu_actors.attacks.catalogue import CATALOGUE, Setting
from viommu_actors.attacks.expected import Driver, expected
from viommu_actors.report.results import Results, Verdict
from viommu_actors.report.tables import outcome_style, proofs, sandbox_note, sandbox_words
from viommu_actors.report.text import Line, Span, Table, line, plain


class Row(NamedTuple):
    """One attack on one target by a device that this kernel drives; cells by setting."""

    attack: str
    driver: Driver
    target: str
    cells: dict[Setting, Verdict]

    @property
    def title(self) -> str:
        return f"{self.attack} {CATALOGUE[self.attack].name}"


class Matrix:
    """`runs` are the results of each setting and driver; `settings` in the order of the columns."""

    def __init__(self, settings: Sequence[Setting], runs: Sequence[tuple[Setting, Driver, Results]]) -> None:
        self.settings = tuple(settings)
        rows: dict[tuple[str, Driver, str], dict[Setting, Verdict]] = {}
        for setting, _, results in runs:
            for verdict in results.verdicts:
                rows.setdefault((verdict.attack, verdict.driver, verdict.target), {})[setting] = verdict
        self._processes = [process for _, _, results in runs for process in results.processes]
        order = list(CATALOGUE)
        self.rows = [Row(*key, cells) for key, cells in rows.items()]
        self.rows.sort(key=lambda row: (order.index(row.attack), row.target, row.driver))

    @property
    def verdicts(self) -> list[Verdict]:
        return [cell for row in self.rows for cell in row.cells.values()]

    @property
    def ok(self) -> bool:
        """Whether every verdict is the expected one, and there is one at all."""
        return bool(self.rows) and all(verdict.ok for verdict in self.verdicts)

    def waiting(self) -> list[dict[str, str]]:
        """Attacks that are not played yet, and for what they wait."""
        return [
            {"attack": attack.id, "reason": f"{attack.name}: waits {attack.waits}"}
            for attack in CATALOGUE.values()
            if attack.waits
        ]

    # --- as text

    def as_json(self) -> str:
        value: dict[str, Any] = {"ok": self.ok, "verdicts": self.verdicts, "waiting": self.waiting()}
        value["sandbox"] = sandbox_words(self._processes)
        return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()

    def lines(self) -> list[Line]:
        """Table, proofs, what waits, and the closing line, blank lines between."""
        closing = [*sandbox_note(self._processes), [self.summary()]]
        blocks = [self._table().lines(), self._proofs(), self._waiting_lines(), *closing]
        return [each for block in blocks for each in (*block, ())][:-1]

    def markdown(self) -> str:
        """The same for a page: what is not as expected stands in bold."""
        head = ["attack", "target", "driven by", *self.settings]
        lines = ["# Protection matrix", "", plain(self.summary()), "", _cells(head), _cells(["---"] * len(head))]
        for row in self.rows:
            lines.append(_cells([row.title, row.target, row.driver, *(self._words(row, s) for s in self.settings)]))
        lines += ["", "A dot is a cell that does not exist; the reasons stand below.", "", "## Proofs", ""]
        for row in self.rows:
            lines.append(f"- **{row.title}** on {row.target}, driven by the {row.driver}")
            lines += [f"  - {', '.join(settings)}: {told}" for settings, told in self._grouped(row)]
        lines += ["", "## Waiting", ""]
        lines += [f"- {each['attack']} {each['reason']}" for each in self.waiting()]
        lines += ["", "## Sandbox", "", *(f"- {words}" for words in sandbox_words(self._processes))]
        return "\n".join(lines) + "\n"

    def summary(self) -> Line:
        """How many verdicts there are, and how many are not as expected."""
        wrong = [verdict for verdict in self.verdicts if not verdict.ok]
        attacks = len({row.attack for row in self.rows})
        total = f"{len(self.verdicts)} verdicts of {attacks} attacks under {len(self.settings)} settings"
        if not wrong:
            return line(Span(f"As expected: {total}, {len(self.waiting())} attacks wait.", "safe"))
        return line(Span(f"NOT as expected: {len(wrong)} of {total}.", "unsafe"))

    def _table(self) -> Table:
        return Table(
            title="Observed; a ! is not what is expected, a dot does not exist",
            columns=("attack", "target", "driver", *self.settings),
            rows=tuple(
                (line(row.title), line(row.target), line(row.driver), *(self._cell(row, s) for s in self.settings))
                for row in self.rows
            ),
        )

    def _cell(self, row: Row, setting: Setting) -> Line:
        verdict = row.cells.get(setting)
        if verdict is None:
            return line(Span("·", "unknown"))
        return line(Span(verdict.observed + ("" if verdict.ok else f" ! {verdict.expected}"), outcome_style(verdict)))

    def _words(self, row: Row, setting: Setting) -> str:
        verdict = row.cells.get(setting)
        if verdict is None:
            return "·"
        return verdict.observed if verdict.ok else f"**{verdict.observed}, expected {verdict.expected}**"

    def _proofs(self) -> list[Line]:
        lines = [line(Span("Proofs, and why a cell does not exist", "title"))]
        for row in self.rows:
            lines.append(line(f"{row.title} on {row.target}, driven by the {row.driver}"))
            lines += [line(f"    {' '.join(settings)}: {told}") for settings, told in self._grouped(row)]
        return lines

    def _grouped(self, row: Row) -> list[tuple[list[Setting], str]]:
        """Settings that tell the same, together."""
        told: dict[str, list[Setting]] = {}
        for setting in self.settings:
            verdict = row.cells.get(setting)
            if verdict is not None:
                words = f"{verdict.observed}: {proofs(verdict)}"
            else:
                words = f"absent: {expected(row.attack, row.driver, row.target, setting).reason}"
            told.setdefault(words, []).append(setting)
        return [(settings, words) for words, settings in told.items()]

    def _waiting_lines(self) -> list[Line]:
        title = line(Span("Not played yet", "title"))
        return [title, *(line(f"{each['attack']} {each['reason']}") for each in self.waiting())]


def _cells(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"
