"""Latencies of a run's own messages: what is told of them, for each device, and that hops add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.topologies.launcher import CONFIGS, SMALL, launch, write
from viommu_actors.measure.sampled import Sample, latencies
from viommu_actors.measure.trace import Crossing

G, H = "vm0.guest", "vm0.hypervisor"


def trap(at: int, call: str | None) -> list[Crossing]:
    """10 on each way, work of 5 between two."""
    inner = [
        Crossing("vfio:vm0.hypervisor", call or "", H, "host", at + 15, at + 25),
        Crossing("vfio:vm0.hypervisor", "Done", "host", H, at + 30, at + 40),
    ]
    return [
        Crossing("trap:vm0.guest", "TrapWrite", G, H, at, at + 10),
        *(inner if call else []),
        Crossing("trap:vm0.guest", "TrapDone", H, G, at + 45, at + 55),
    ]


def test_a_write_of_the_queues_tail_is_what_it_has_vfio_do() -> None:
    messages = [*trap(0, "MapDma"), *trap(100, "UnmapDma"), *trap(200, None), *trap(300, "MapDma")]
    told = latencies({"nic0": Sample(["vm0"], messages)}, "pack")
    assert [(row["name"], row["n"]) for row in told["rows"]] == [
        ("nic0 map", 2),
        ("nic0 unmap", 1),
        ("nic0 trapped write", 1),
    ]
    for row in told["rows"]:
        assert row["p50_us"] == 0.055 and row["clock"] == "wall" and row["placement"] == "pack"
        assert sum(row["hops"].values()) == pytest.approx(row["p50_us"], abs=0.003)


def test_an_interrupt_goes_from_the_device_to_the_guest_and_other_writes_are_no_latency() -> None:
    messages = [
        Crossing("link:nic0", "MemWrite", "nic0", "host", 0, 10),
        Crossing("link:nic0", "MemWrite", "nic0", "host", 1, 20),
        Crossing("inject:vm0.guest", "Inject", "host", G, 25, 40),
        Crossing("link:nic0", "MemRead", "nic0", "host", 50, 60),
        Crossing("link:nic0", "Completion", "host", "nic0", 65, 75),
    ]
    rows = latencies({"nic0": Sample(["vm0"], messages)}, "pack")["rows"]
    assert {row["name"]: row["p50_us"] for row in rows} == {"nic0 DMA read": 0.025, "nic0 interrupt": 0.039}


@pytest.mark.topology
def test_a_run_tells_the_latencies_of_its_work_traced_or_not_and_a_static_device_has_no_map(tmp_path: Path) -> None:
    done = launch(CONFIGS / "dynamic-vs-static.toml", tmp_path / "run")
    assert done.status == 0, done.stderr
    rows = {row["name"]: row for row in json.loads((done.folder / "latency.json").read_text())["rows"]}
    assert {"nic0 map", "nic0 unmap", "nic0 DMA read", "nic0 interrupt", "nic1 DMA read"} <= rows.keys()
    assert not {"nic1 map", "nic1 unmap"} & rows.keys()
    assert {"hypervisor work", "host work"} <= rows["nic0 map"]["hops"].keys()
    assert "nic0 map" in (done.folder / "report.html").read_text()
    traced = launch(write(tmp_path, SMALL), tmp_path / "traced", "--trace", str(tmp_path / "trace.json"))
    assert traced.status == 0, traced.stderr
    rows = {row["name"]: row for row in json.loads((traced.folder / "latency.json").read_text())["rows"]}
    assert rows["nic0 map"]["n"] == rows["nic0 unmap"]["n"] == 10, "of the set-up and of the work that is counted"
