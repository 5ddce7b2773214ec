"""One map by depth: which messages of which level are told, of whom, and how long the bars are."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import msgspec

from tests.report.samples import CONFIGS, run_of, sample
from viommu_actors.report.report import uncoloured
from viommu_actors.report.results import Io, Results
from viommu_actors.report.text import Table, plain
from viommu_actors.report.tower import tower_chart, tower_table
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve

NAME = "nested-depths"


def told(table: Table | None) -> list[list[str]]:
    assert table is not None
    return [[plain(cell) for cell in row] for row in table.rows]


def changed(results: Results, device: str, **values: object) -> Results:
    def row(each: Io) -> Io:
        return msgspec.structs.replace(each, **values) if each.device == device else each

    return msgspec.structs.replace(results, io=tuple(row(each) for each in results.io))


def test_a_row_a_depth_with_the_messages_of_every_level() -> None:
    table = tower_table(*sample(NAME))
    assert told(table) == [
        ["L1: nic1", "4", "", "", "4", "250", "#" * 10],
        ["L2: nic2", "4", "4", "", "8", "500", "#" * 20],
        ["L3: nic3", "4", "4", "4", "12", "750", "#" * 30],
    ]
    assert table is not None and table.columns[1:4] == ("vm0: messages", "vm1: messages", "vm2: messages")


def test_the_chart_tells_the_same() -> None:
    chart = tower_chart(*sample(NAME))
    assert chart is not None
    drawn = ElementTree.fromstring(f"<div>{chart}</div>")
    descriptions = [each.text for each in drawn.iter() if each.tag.endswith("desc")]
    assert descriptions == [
        "L1: nic1: 4; L2: nic2: 8; L3: nic3: 12",
        "L1: nic1: 250 µs; L2: nic2: 500 µs; L3: nic3: 750 µs",
    ]


def test_a_level_that_took_no_part_has_none() -> None:
    topology, results = sample(NAME)
    third = results.io[2]
    idle = msgspec.structs.replace(third.levels[1].counts, traps=0, vfio_maps=0, vfio_unmaps=0)
    levels = (third.levels[0], msgspec.structs.replace(third.levels[1], counts=idle), third.levels[2])
    rows = told(tower_table(topology, changed(results, "nic3", levels=levels)))
    assert rows[2][1:5] == ["4", "0", "4", "8"]


def test_whoever_maps_nothing_is_left_out() -> None:
    topology, results = sample(NAME)
    rows = told(tower_table(topology, changed(results, "nic2", dma_maps=0)))
    assert [row[0] for row in rows] == ["L1: nic1", "L3: nic3"]


def test_a_device_that_the_host_keeps_is_the_ground() -> None:
    text = (CONFIGS / f"{NAME}.toml").read_text() + '[[device]]\nname = "nic0"\nmodel = "nic"\noperations = 64\n'
    topology, results = run_of(resolve(parse(text)))
    results = changed(results, "nic0", traps=0, vfio_maps=0, vfio_unmaps=0, map_unmap_us=25.0)
    rows = told(tower_table(topology, results))
    assert rows[0] == ["host: nic0", "", "", "", "0", "25", "#"]
    assert [row[0] for row in rows[1:]] == ["L1: nic1", "L2: nic2", "L3: nic3"]
    chart = tower_chart(topology, results)
    assert chart is not None and "host: nic0: 0; L1: nic1: 4;" in chart


def test_it_is_told_where_vms_are_nested_and_nowhere_else() -> None:
    assert re.search(r"L3: nic3 +4 +4 +4 +12 +750 +#{30}\n", uncoloured(*sample(NAME), 100))
    flat = sample("assigned-viommu")
    assert tower_table(*flat) is None and tower_chart(*flat) is None
