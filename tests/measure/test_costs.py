"""Cost tables: those that are shipped tell their sources, and bad ones are refused in one line with a remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.topologies.launcher import SMALL, launch, write
from viommu_actors.__main__ import main
from viommu_actors.measure.costs import SHIPPED, Figure, load_costs, parse_costs
from viommu_actors.topology.errors import Refusal, TopologyError

TABLES = sorted(SHIPPED.glob("*.toml"))
GOOD = """
name = "mine"
[steps.trap]
cost = 5
source = "a paper"
[line_rate]
of = "10 Gb/s"
io = { cost = 1, source = "a paper" }
full = { cost = 2, source = "a paper" }
"""


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_shipped_table_is_named_as_its_file_and_tells_its_sources(path: Path) -> None:
    table = load_costs(path)
    assert table.name == path.stem and table.description
    figures = [figure for figure in (table.line_rate.io, table.line_rate.full) if figure]
    steps = [getattr(table.steps, name) for name in table.steps.__struct_fields__]
    charged = [figure for figure in steps if isinstance(figure, Figure)]
    assert charged
    for figure in [*figures, *charged]:
        assert len(figure.source) > 20 and "\n" not in figure.source


def test_bare_metal_trap_and_emulate_and_sidecore_are_there() -> None:
    assert {"bare-metal", "sidecore", "trap-and-emulate"} <= {path.stem for path in TABLES}


CASES = {
    "empty": ("", "is empty; start from a copy of configs/costs/trap-and-emulate.toml"),
    "no TOML": ("name = ", "is not TOML"),
    "unknown step": (GOOD.replace("steps.trap", "steps.trp"), 'steps.trp: unknown key; did you mean "trap"?'),
    "unknown key": (GOOD.replace("cost = 5", "cycles = 5"), "steps.trap.cycles: unknown key; known here are cost"),
    "no source": (GOOD.replace('source = "a paper"\n[', "["), "steps.trap.source: is missing; write, for example"),
    "empty source": (GOOD.replace('"a paper"\n[', '""\n['), "steps.trap.source: "),
    "no cost": (GOOD.replace("cost = 5", ""), "steps.trap.cost: is missing; write, for example, cost = 30645"),
    "a text for a number": (GOOD.replace("= 5", '= "5"'), "steps.trap.cost: expected an integer, got a string"),
    "negative": (GOOD.replace("= 5", "= -5"), "steps.trap.cost: must be at least 0; write, for example, cost ="),
    "too much": (GOOD.replace("= 5", "= 5000000000"), "steps.trap.cost: must be at most 1000000000"),
    "no line rate": (GOOD.partition("[line_rate]")[0], "line_rate: is missing; write, for example, line_rate = {of"),
    "a line rate of nothing": (GOOD.replace("cost = 2", "cost = 0"), "line_rate.full.cost: must be at least 1"),
    "a number for a table": (
        'name = "mine"\nsteps = 3\n' + GOOD[GOOD.index("[line_rate]") :],
        "steps: expected a table, got an integer; write [steps] and its keys below",
    ),
    "a bad name": (GOOD.replace("mine", "My Table"), "name: is not of the right form; use 1 to 32 of a-z"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_table_is_refused(case: str) -> None:
    text, told = CASES[case]
    with pytest.raises(Refusal) as refused:
        parse_costs(text)
    line = str(TopologyError("mine.toml", refused.value))
    assert line.startswith(f"mine.toml: {told}"), line
    assert line.isprintable() and re.search(r"; \w", line)


def test_the_command_refuses_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(CASES["unknown step"][0])
    assert main(["topology", "--costs", str(bad), "--run-dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err == f'{bad}: steps.trp: unknown key; did you mean "trap"?\n'
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"there is no such file; name one of configs/costs/"):
        load_costs(tmp_path / "none.toml")


@pytest.mark.topology
def test_a_run_tells_the_modelled_clock_beside_its_counts(tmp_path: Path) -> None:
    options = ("--costs", str(SHIPPED / "trap-and-emulate.toml"), "--costs", str(SHIPPED / "sidecore.toml"))
    quick = SMALL.replace('rogue = ["A2"]', "")
    finished = launch(write(tmp_path, quick), tmp_path / "run", "--json", *options)
    assert finished.status == 0, finished.stderr
    trapping, polling = finished.results["modelled"]
    assert (trapping["clock"], trapping["table"], trapping["per_mapping"]) == ("modelled", "trap-and-emulate", 34969)
    assert (polling["clock"], polling["table"], polling["per_mapping"]) == ("modelled", "sidecore", 9225)
    assert json.loads((finished.folder / "results.json").read_text()) == finished.results
