"""The table of made-up rounds: shape, sums, ratios, goals, CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import msgspec
import pytest

from viommu_actors.measure.bench import Series
from viommu_actors.measure.laboratory import Measured
from viommu_actors.measure.rows import (
    COMPARISONS,
    OPERATIONS,
    as_on_the_host,
    comparisons,
    goals,
    result_of,
    table,
    to_csv,
)
from viommu_actors.measure.settings import Subject
from viommu_actors.report.latency import Latencies
from viommu_actors.report.latency_text import render

KEYS = {"name", "clock", "p50_us", "p90_us", "p99_us", "max_us", "mean_us", "n", "floor_us", "ratio", "hops"}
NAMED = ["hop", "map_strict", "unmap_strict", "dma_read_hit", "dma_read_miss", "dma_write_posted"]
NAMED += ["pipeline_4k_w64", "fan_in_16", "two_hop_chain"]


def measured() -> Measured:
    """Three rounds on a machine that gets slower; everything takes 2 us, and each floor 1 us."""
    names = {operation.series or operation.name for operation in OPERATIONS}
    names |= {operation.floor for operation in OPERATIONS if operation.floor}
    rounds: list[Series] = [
        {name: [slow * (1000 if name.startswith("bare") else 2000)] * 4 for name in names} for slow in (1, 2, 7)
    ]
    shares = {
        "hop": {"guest work": 0.5, "wire hypervisor to guest": 0.5},
        "map_strict": {"guest work": 0.1, "wire guest to hypervisor": 0.6, "wire hypervisor to guest": 0.3},
        "dma_read_hit": {"device work": 1.0},
    }
    link = {"link MemRead from device": 3.0}
    messages = {"host": dict(link), "none": {**link, "inject Inject to guest": 1.0}}
    return Measured(rounds, [], shares, {"hop": 1.1}, messages, {"host": [0]}, 1.0)


def test_the_rows_that_are_asked_for_are_there_in_their_shape() -> None:
    rows = table(measured(), "pack")
    by_name = {row["name"]: row for row in rows}
    assert by_name.keys() >= set(NAMED) and len(by_name) == len(rows)
    assert all(row.keys() >= KEYS for row in rows)
    assert all(row["clock"] == "wall" and row["n"] == 12 for row in rows)
    for name in NAMED:
        assert isinstance(by_name[name]["ratio"], float) and isinstance(by_name[name]["floor_us"], float)
    json.dumps(rows)


def test_latency_is_ours_over_the_floor_and_throughput_the_floors_time_over_ours() -> None:
    by_name = {row["name"]: row for row in table(measured(), "pack")}
    assert by_name["map_strict"]["ratio"] == 2.0
    assert by_name["pipeline_4k_w64"]["ratio"] == by_name["fan_in_16"]["ratio"] == 0.5
    assert by_name["pipeline_4k_w64"]["per_second"] == 250_000 and by_name["hop"]["per_second"] is None


def test_hops_add_up_to_the_p50() -> None:
    (row,) = [row for row in table(measured(), "pack") if row["name"] == "map_strict"]
    hops: Any = row["hops"]
    assert sum(hops.values()) == pytest.approx(row["p50_us"])


def test_goals_are_limits_from_above_or_below() -> None:
    taken = measured()
    rows, compared = table(taken, "pack"), comparisons(taken.rounds)
    assert [each["name"] for each in compared] == [f"{one} / {other}" for one, other in COMPARISONS]
    met = {each["name"]: each["met"] for each in goals(rows, compared, "pack")}
    assert met == {
        "hop": False,
        "map_strict": True,
        "map_strict / bare_chain": False,
        "dma_write_posted": False,
        "pipeline_4k_w64": False,
        "fan_in_16": False,
        "map_strict / bare_free": False,
    }
    assert "map_strict / bare_free" not in {each["name"] for each in goals(rows, compared, "free")}


def test_csv_has_a_line_a_row_and_the_hops_in_one_cell() -> None:
    rows = table(measured(), "pack")
    lines = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [line["name"] for line in lines] == [row["name"] for row in rows]
    (line,) = [line for line in lines if line["name"] == "map_strict"]
    assert dict(part.split("=") for part in line["hops_us"].split(";")).keys() == {
        "guest work",
        "wire guest to hypervisor",
        "wire hypervisor to guest",
    }
    assert float(line["p50_us"]) == 4.0


def test_the_data_path_is_as_on_the_host_where_the_link_carries_the_same() -> None:
    taken = measured()
    rows = table(taken, "pack")
    told = as_on_the_host(taken, rows)
    assert told["equal"] is True
    assert told["beside"] == {"host": {}, "none": {"inject Inject to guest": 1.0}}
    taken.messages["none"]["link MemWrite from device"] = 1.0
    assert as_on_the_host(taken, rows)["equal"] is False


def test_a_nested_vm_has_no_goals_and_an_unfinished_run_nothing_that_is_looked_at_once() -> None:
    subject = Subject("vm1", "nic0", "edu0", depth=2)
    assert result_of(measured(), subject, "pack")["goals"] == []
    assert result_of(measured(), subject._replace(depth=1), "pack")["goals"]
    unfinished = result_of(measured()._replace(messages={}, shares={}), subject, "pack")
    assert unfinished["rows"] and unfinished["comparisons"] and "as_on_the_host" not in unfinished


def test_what_is_printed_has_the_hops_by_their_way_each_adding_up_to_its_operation() -> None:
    subject = Subject("vm0", "nic0", "laboratory-edu", ("laboratory-edu",))
    text = render(msgspec.convert(result_of(measured(), subject, "pack"), Latencies))
    assert text.startswith("Measured: vm0, its nic0 and laboratory-edu (laboratory-edu added for this)\nPlacement pack")
    by_hypervisor, others = (part for part in text.split("\n\n") if part.startswith("Hops"))
    lines = [line.split("  ") for line in by_hypervisor.splitlines() if "wire" in line or "whole" in line]
    assert [[cell.strip() for cell in line if cell] for line in lines] == [
        ["wire guest to hypervisor", "2.4"],
        ["wire hypervisor to guest", "2.0", "1.2"],
        ["whole", "4.0", "4.0"],
    ]
    assert "device work" in others and "guest work" not in others
    assert all(len(line) < 120 for line in text.split("\n\n")[2].splitlines())
    nested = msgspec.convert(result_of(measured(), subject._replace(depth=2), "pack"), Latencies)
    assert "Goals" in text and "Goals" not in render(nested)
