"""The protection matrix: attacks down, settings across, and the proofs of every cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from viommu_actors.attacks.catalogue import CATALOGUE, Setting
from viommu_actors.attacks.expected import BACK_ENDS, Driver
from viommu_actors.report.results import Results, Verdict
from viommu_actors.report.tables import outcome_style, proofs, sandbox_note, sandbox_words
from viommu_actors.report.text import Line, Span, Table, line, plain


class Row(NamedTuple):
    """One attack on one target by a device that is driven so: by setting the verdict, or why there is none."""

    attack: str
    driver: Driver
    target: str
    cells: dict[Setting, Verdict]
    absent: dict[Setting, str]

    @property
    def title(self) -> str:
        return f"{self.attack} {CATALOGUE[self.attack].name}"

    @property
    def driven(self) -> str:
        """Who drives the device; of an emulated one, that it was its back end."""
        if self.driver in BACK_ENDS.values():
            return f"by a back end ({self.driver})"
        return f"driven by the {self.driver}"


class Matrix:
    """`runs` are the results of each setting and driver; `settings` in the order of the columns."""

    def __init__(
        self, settings: Sequence[Setting], runs: Sequence[tuple[Setting, Driver, Results]], whole: bool = True
    ) -> None:
        """`whole`: every column has been run to its end."""
        self.settings = tuple(settings)
        self._whole = whole
        self._runs = [results for _, _, results in runs]
        self._processes = [process for results in self._runs for process in results.processes]
        rows: dict[tuple[str, Driver, str], Row] = {}

        def row(attack: str, driver: Driver, target: str) -> Row:
            return rows.setdefault((attack, driver, target), Row(attack, driver, target, {}, {}))

        for setting, driver, results in runs:
            for verdict in results.verdicts:
                row(verdict.attack, verdict.driver, verdict.target).cells[setting] = verdict
            for each in results.absent:
                row(each.attack, driver, each.target).absent[setting] = each.reason
        order = list(CATALOGUE)
        self.rows = sorted(
            (each for each in rows.values() if each.cells),
            key=lambda each: (order.index(each.attack), each.target, each.driver),
        )

    @property
    def verdicts(self) -> list[Verdict]:
        return [cell for row in self.rows for cell in row.cells.values()]

    @property
    def ok(self) -> bool:
        """Whether all was run, each run held (verdicts, I/O, assignments), and no cell is left open."""
        held = self._whole and all(results.ok for results in self._runs)
        return held and bool(self.rows) and not any(self._left_open(row) for row in self.rows)

    def waiting(self) -> list[dict[str, str]]:
        """Attacks that are not played here, and for what they wait."""
        elsewhere = {
            "application": "is an application's: viommu matrix --dpdk",
            "back end": "is a back end's: viommu matrix --vswitch",
        }
        reasons = {a.id: f"waits {a.waits}" if a.waits else elsewhere.get(a.by, "") for a in CATALOGUE.values()}
        played = {row.attack for row in self.rows}
        waiting = [each for each in CATALOGUE.values() if reasons[each.id] and each.id not in played]
        return [{"attack": each.id, "reason": f"{each.name}: {reasons[each.id]}"} for each in waiting]

    # --- as text

    def as_json(self) -> str:
        value: dict[str, Any] = {"ok": self.ok, "verdicts": self.verdicts, "waiting": self.waiting()}
        value["absent"] = [
            {"attack": row.attack, "driver": row.driver, "target": row.target, "setting": setting, "reason": reason}
            for row in self.rows
            for setting, reason in row.absent.items()
        ]
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
            lines.append(f"- **{row.title}** on {row.target}, {row.driven}")
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
        if self.ok:
            return line(Span(f"As expected: {total}, {len(self.waiting())} attacks wait.", "safe"))
        failed = [results.topology for results in self._runs if not results.ok]
        reasons = [f"{len(wrong)} of {total}"] * bool(wrong) + [f"{name} did not hold" for name in failed]
        reasons += ["not all of it was run"] * (not self._whole)
        reasons += [f"{row.title} was left open" for row in self.rows if self._left_open(row)]
        return line(Span(f"NOT as expected: {'; '.join(reasons) or 'nothing was played'}.", "unsafe"))

    def _left_open(self, row: Row) -> bool:
        """Whether a setting has neither verdict nor reason."""
        return any(setting not in row.cells and setting not in row.absent for setting in self.settings)

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
            lines.append(line(f"{row.title} on {row.target}, {row.driven}"))
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
                words = f"absent: {row.absent.get(setting, 'not run')}"
            told.setdefault(words, []).append(setting)
        return [(settings, words) for words, settings in told.items()]

    def _waiting_lines(self) -> list[Line]:
        title = line(Span("Not played yet", "title"))
        return [title, *(line(f"{each['attack']} {each['reason']}") for each in self.waiting())]


def _cells(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"
