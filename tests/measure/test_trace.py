"""Stamps to messages, and a trace that its viewers' rules allow: made-up messages, a stretch of work, a run."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import SMALL, launch, write
from viommu_actors.measure.chrome import chrome_trace
from viommu_actors.measure.hops import split
from viommu_actors.measure.requests import flows, requests
from viommu_actors.measure.trace import Crossing, crossings
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve


def _end(wire: str, end: str, sent: list[tuple[int, int]], received: list[tuple[int, int]]) -> dict[str, Any]:
    packed = [array("q", [value for pair in pairs for value in pair]).tobytes() for pairs in (sent, received)]
    return {"wire": wire, "end": end, "sent": packed[0], "received": packed[1]}


#: A trap that makes one VFIO call, on a clock of whole numbers.
TAKEN = [
    {"kinds": ["TrapWrite", "TrapDone"], "wires": [_end("trap:g", "g", [(0, 100)], [(1, 190)])]},
    {
        "kinds": ["TrapDone", "TrapWrite", "MapDma", "Done"],
        "wires": [_end("trap:g", "h", [(0, 180)], [(1, 110)]), _end("vfio:h", "h", [(2, 125)], [(3, 165)])],
    },
    {"kinds": ["MapDma", "Done"], "wires": [_end("vfio:h", "host", [(1, 155)], [(0, 135)])]},
]


def test_messages_pair_up_by_their_place_in_the_order() -> None:
    assert crossings(TAKEN) == [
        Crossing("trap:g", "TrapWrite", "g", "h", 100, 110),
        Crossing("vfio:h", "MapDma", "h", "host", 125, 135),
        Crossing("vfio:h", "Done", "host", "h", 155, 165),
        Crossing("trap:g", "TrapDone", "h", "g", 180, 190),
    ]


def test_a_message_that_only_one_end_has_seen_is_on_its_way_and_left_out() -> None:
    one = [{"kinds": ["Inject"], "wires": [_end("inject:g", "host", [(0, 1), (0, 2)], [])]}]
    other = [{"kinds": ["Inject"], "wires": [_end("inject:g", "g", [], [(0, 3)])]}]
    assert crossings(one + other) == [Crossing("inject:g", "Inject", "host", "g", 1, 3)]
    assert crossings(one) == []
    assert chrome_trace([]) == {"traceEvents": []}


def test_a_request_is_slices_and_one_arrow_from_each_step_to_the_next() -> None:
    events = chrome_trace(crossings(TAKEN))["traceEvents"]
    _assert_viewable(events)
    actors = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    slices = {(actors[e["pid"]], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"}
    assert slices == {
        ("g", "TrapWrite", 0.0, 0.09),
        ("h", "TrapWrite", 0.01, 0.07),
        ("h", "MapDma", 0.025, 0.04),
        ("host", "MapDma", 0.035, 0.02),
    }
    way = [(e["ph"], actors[e["pid"]], e["ts"]) for e in events if e["ph"] in "stf"]
    assert way == [
        ("s", "g", 0.0),
        ("t", "h", 0.01),
        ("t", "h", 0.025),
        ("t", "host", 0.035),
        ("t", "h", 0.064),
        ("f", "g", 0.089),
    ]


@pytest.mark.topology
def test_a_traced_stretch_of_work(tmp_path: Path) -> None:
    topology = resolve(parse(SMALL))
    folder, plan = RunFolder(topology, tmp_path / "run"), make_plan(topology)
    with Supervisor(plan, folder) as supervisor:
        Scenario(topology, plan, supervisor, lambda _: None).run()
        supervisor.trace(True)
        supervisor.command("vm0.guest", "io", bdf="00:03.0", operations=40)
        messages = crossings(supervisor.stamps())
        supervisor.trace(False)
        supervisor.command("vm0.guest", "io", bdf="00:03.0", operations=4)
        assert all(not actor["wires"] for actor in supervisor.stamps())
        assert supervisor.reconcile() == []
    folder.close()
    kinds = [each.kind for each in messages]
    assert kinds.count("TrapWrite") == kinds.count("TrapDone") == 80
    assert kinds.count("MapDma") == kinds.count("UnmapDma") == 40
    assert kinds.count("Inject") == 20
    assert all(each.received >= each.sent for each in messages)
    assert len(split(messages, "vm0.guest", "TrapWrite", "TrapDone")) == 80
    way = ["vm0.guest", "vm0.hypervisor", "vm0.hypervisor", "host", "vm0.hypervisor", "vm0.guest"]
    found = [[step.actor for step in each] for each in flows(messages, requests(messages))]
    assert found.count(way) == 80
    assert found.count(["nic0", "host", "nic0"]) == kinds.count("MemRead")
    assert found.count(["nic0", "host", "host", "vm0.guest"]) == 20
    _assert_viewable(chrome_trace(messages)["traceEvents"])


@pytest.mark.topology
def test_the_trace_of_a_run(tmp_path: Path) -> None:
    finished = launch(write(tmp_path, SMALL), tmp_path / "run", "--json", "--trace", str(tmp_path / "trace.json"))
    assert finished.status == 0, finished.stderr
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"host", "nic0", "vm0.guest", "vm0.hypervisor"}
    _assert_viewable(events)


@pytest.mark.topology
def test_a_trace_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    finished = launch(write(tmp_path, SMALL), tmp_path / "run", "--trace", str(tmp_path / "no" / "trace.json"))
    assert finished.status == 2 and len(finished.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.topology
def test_a_trace_that_cannot_be_written_in_the_end_costs_nothing_else(tmp_path: Path) -> None:
    done = launch(write(tmp_path, SMALL), tmp_path / "run", "--json", "--trace", "/dev/full")
    assert done.status == 1 and done.results["ok"] is True
    assert "/dev/full: No space left on device" in done.stderr.splitlines() and "Traceback" not in done.stderr
    assert json.loads((done.folder / "results.json").read_text()) == done.results


def _assert_viewable(events: list[dict[str, Any]]) -> None:
    """What Perfetto asks for: slices of a thread nest, arrows start and end inside slices, asynchronous pairs close."""
    threads: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in events:
        if event["ph"] == "X":
            start = _ns(event["ts"])
            threads.setdefault((event["pid"], event["tid"]), []).append((start, start + _ns(event["dur"])))
    for slices in threads.values():
        around: list[tuple[int, int]] = []
        for start, end in sorted(slices, key=lambda each: (each[0], -each[1])):
            while around and around[-1][1] <= start:
                around.pop()
            assert not around or end <= around[-1][1], "a slice ends in the one around it"
            around.append((start, end))
    flow: dict[int, list[tuple[float, str]]] = {}
    for event in events:
        if event["ph"] in "stf":
            flow.setdefault(event["id"], []).append((event["ts"], event["ph"]))
            slices = threads[event["pid"], event["tid"]]
            assert any(start <= _ns(event["ts"]) < end for start, end in slices), event
    assert flow
    for steps in flow.values():
        assert steps == sorted(steps, key=lambda step: step[0])
        assert "".join(phase for _, phase in steps) == "s" + "t" * (len(steps) - 2) + "f"
    begun, ended = ({e["id"]: e["ts"] for e in events if e["ph"] == phase} for phase in "be")
    assert begun.keys() == ended.keys() and all(begun[key] <= ended[key] for key in begun)


def _ns(us: float) -> int:
    return round(us * 1000)
