"""`viommu latency` as a user runs it: the shape of what it prints, what it refuses, and a short soak."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import CONFIGS, ROOT, assert_gone
from viommu_actors.__main__ import main

ASKED = {"hop", "map_strict", "unmap_strict", "dma_read_hit", "dma_read_miss", "dma_write_posted"}
ASKED |= {"pipeline_4k_w64", "fan_in_16", "two_hop_chain"}
HOPS = {"hop", "map_strict", "unmap_strict", "map_unmap_strict", "two_hop_chain"}
HOPS |= {"dma_read_hit", "dma_read_miss", "dma_write_posted"}


def latency(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "viommu_actors", "latency", "--run-dir", str(folder), *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=50,
        check=False,
    )


def pids(folder: Path) -> dict[str, int]:
    rows = [json.loads(line) for file in folder.rglob("events.jsonl") for line in file.read_text().splitlines()]
    return {f"{number} {row['actor']}": row["pid"] for number, row in enumerate(rows) if row["event"] == "started"}


@pytest.mark.long
@pytest.mark.topology
def test_a_short_run_has_every_row_with_its_floor_and_hops_that_add_up(tmp_path: Path) -> None:
    folder, trace = tmp_path / "run", tmp_path / "trace.json"
    done = latency(folder, "--json", "--rounds", "1", "--trace", str(trace))
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert json.loads((folder / "latency.json").read_text()) == result
    assert result["placement"] == "pack" and result["idle_gap_us"] == 0
    assert result["device_layout"] in ("fixed", "random")
    assert result["versions"].keys() >= {"python", "pyzmq", "libzmq", "msgpack"}
    rows = {row["name"]: row for row in result["rows"]}
    assert rows.keys() >= ASKED
    for name in ASKED:
        assert rows[name]["clock"] == "wall" and rows[name]["floor_us"] > 0 and rows[name]["ratio"] > 0
    for name in HOPS:
        assert sum(rows[name]["hops"].values()) == pytest.approx(rows[name]["p50_us"], rel=0.01)
    assert [*rows["map_strict"]["hops"]][:3] == ["guest work", "wire guest to hypervisor", "hypervisor work"]
    assert {"host work", "wire hypervisor to host", "wire host to hypervisor"} <= rows["map_strict"]["hops"].keys()
    assert result["as_on_the_host"]["equal"]
    assert result["as_on_the_host"]["link"]["none"]["link MemRead from device"] == 3
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["name"] for event in events} >= {"TrapWrite", "MapDma", "DMA read"}
    assert "map_strict" in (folder / "report.html").read_text()
    assert (folder / "latency.csv").read_text().count("\n") == len(rows) + 1
    assert_gone(pids(folder))


@pytest.mark.long
@pytest.mark.topology
def test_a_vm_in_a_vm_is_measured_level_by_level(tmp_path: Path) -> None:
    done = latency(tmp_path / "run", str(CONFIGS / "nested-l2-viommu.toml"), "--json", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["measured"] == {
        "vm": "vm1",
        "nic": "nic0",
        "edu": "laboratory-edu",
        "added": ["laboratory-edu"],
        "depth": 2,
    }
    (row,) = [row for row in result["rows"] if row["name"] == "map_strict"]
    assert sum(row["hops"].values()) == pytest.approx(row["p50_us"], rel=0.01)
    assert {"L2 hypervisor work", "L1 guest work", "L1 hypervisor work", "host work"} <= row["hops"].keys()
    assert result["goals"] == [] and result["as_on_the_host"]["equal"]
    assert_gone(pids(tmp_path / "run"))


@pytest.mark.topology
def test_a_soak_loses_nothing_and_its_books_balance(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = latency(folder, "--json", "--soak", "1s")
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["ok"] and result["lost"] == [] and result["grown"] == {}
    assert result["operations"] > 0 and len(result["samples"]) > 1
    levels = {book["level"]: book for book in result["books"]}
    assert levels.keys() == {
        "host: VFIO, mappings",
        "host: page tables, bytes",
        "host: DMA API, buffers",
        "vm0.hypervisor: shadow, mappings",
        "vm0.guest: DMA API, buffers",
        "vm0.guest: page tables, bytes",
    }
    assert levels["vm0.hypervisor: shadow, mappings"]["mapped"] == levels["host: VFIO, mappings"]["mapped"]
    assert levels["vm0.hypervisor: shadow, mappings"]["mapped"] >= result["operations"]
    assert all(book["balanced"] for book in result["books"])
    assert "balanced" in (folder / "report.html").read_text()
    assert set(result["samples"][0]["memory_kib"]) == {"host", "nic0", "edu0", "vm0.hypervisor", "vm0.guest"}
    assert_gone(pids(folder))


def interrupted(folder: Path, until: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Ended by SIGINT once `until` stands in the run's events or was told as progress."""
    command = [sys.executable, "-m", "viommu_actors", "latency", "--json", "--run-dir", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        told = ""
        while until not in told + "".join(file.read_text() for file in folder.glob("events.jsonl")):
            assert process.poll() is None, told
            if select.select([process.stderr], [], [], 0.1)[0]:
                told += process.stderr.readline()
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=20)
    return subprocess.CompletedProcess(command, process.returncode, output, told + error)


@pytest.mark.topology
def test_a_soak_that_is_interrupted_leaves_what_it_saw(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = interrupted(folder, '"sample"', "--soak", "2m")
    assert done.returncode == 130 and done.stdout == "" and "ended by SIGINT" in done.stderr
    result = json.loads((folder / "soak.json").read_text())
    assert result["ended"] == "ended by SIGINT" and not result["ok"]
    assert result["operations"] == result["samples"][-1]["operations"] > 0
    assert result["lost"] == [] and result["books"] and all(book["balanced"] for book in result["books"])
    assert_gone(pids(folder))


@pytest.mark.long
@pytest.mark.topology
def test_a_run_that_is_interrupted_leaves_the_rounds_that_it_did(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = interrupted(folder, "round 3 of", "--rounds", "12")
    assert done.returncode == 130 and done.stdout == "" and "ended by SIGINT" in done.stderr
    result = json.loads((folder / "latency.json").read_text())
    assert result["ended"] == "ended by SIGINT" and result["rounds"] >= 3
    assert {row["name"] for row in result["rows"]} >= ASKED
    assert (folder / "latency.csv").read_text().count("\n") == len(result["rows"]) + 1
    assert "did not finish" in (folder / "report.html").read_text()
    assert_gone(pids(folder))


@pytest.mark.long
@pytest.mark.topology
def test_a_trace_that_cannot_be_written_is_told_in_a_line_and_costs_nothing_else(tmp_path: Path) -> None:
    done = latency(tmp_path / "run", "--json", "--rounds", "1", "--trace", "/dev/full")
    assert done.returncode == 1 and json.loads(done.stdout)["rows"]
    assert "/dev/full: No space left on device" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rounds", "0"], "number of rounds"),
        (["--rounds", "-3"], "number of rounds"),
        (["--rounds", "9" * 30], "number of rounds"),
        (["--rounds", "٣"], "number of rounds"),
        (["--soak", "soon"], "no duration"),
        (["--soak", "0s"], "no duration"),
        (["--soak", "10"], "no duration"),
        (["--placement", "here"], "invalid choice"),
        (["--json", "--csv"], "not allowed with"),
        (["--soak", "1s", "--csv"], "not with --soak"),
        (["--soak", "1s", "--placement", "all"], "name one of"),
        (["--soak", "1s", "--rounds", "3"], "not with --soak"),
        (["--soak", "1s", "--vm", "vm0"], "not with --soak"),
        (["--vm", "vm1"], "name one of vm0"),
        (["--trace", "/nowhere/at/all.json"], "can be written"),
        (["--trace", "/"], "can be written"),
        (["/nowhere.toml"], "no such file"),
        ([str(CONFIGS / "host-driver.toml")], "no VM has a vIOMMU"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    options: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    try:
        status = main(["latency", "--run-dir", str(folder), *options])
    except SystemExit as ended:
        status = int(ended.code or 0)
    captured = capfd.readouterr()
    assert status == 2 and words in captured.err and captured.out == ""
    assert "Traceback" not in captured.err
    assert len([line for line in captured.err.splitlines() if words in line]) == 1
    assert not folder.exists(), "nothing was started"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["latency", "--run-dir", str(tmp_path / "file" / "run")]) == 2
    assert "can be written" in capfd.readouterr().err
