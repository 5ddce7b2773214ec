"""Stamps to messages, chains whose hops add up, and a trace that its viewers' rules allow."""

from __future__ import annotations

import json
from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.topologies.launcher import SMALL, launch, write
from viommu_actors.measure.trace import Crossing, chains, chrome_trace, crossings
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


def test_a_chains_hops_add_up_to_the_whole() -> None:
    [chain] = chains(crossings(TAKEN))
    assert [tuple(hop) for hop in chain.hops] == [
        ("g → h", 10),
        ("h", 15),
        ("h → host", 10),
        ("host", 20),
        ("host → h", 10),
        ("h", 15),
        ("h → g", 10),
    ]
    assert sum(hop.nanoseconds for hop in chain.hops) == chain.nanoseconds == 90


def test_a_message_that_only_one_end_has_seen_is_on_its_way_and_left_out() -> None:
    one = [{"kinds": ["Inject"], "wires": [_end("inject:g", "host", [(0, 1), (0, 2)], [])]}]
    other = [{"kinds": ["Inject"], "wires": [_end("inject:g", "g", [], [(0, 3)])]}]
    assert crossings(one + other) == [Crossing("inject:g", "Inject", "host", "g", 1, 3)]
    assert crossings(one) == [] and chains([]) == []


@given(st.lists(st.integers(1, 1000), min_size=8, max_size=80))
def test_hops_add_up_whatever_the_times(steps: list[int]) -> None:
    steps = steps[: len(steps) // 8 * 8]
    at, times = 0, []
    for step in steps:
        at += step
        times.append(at)
    messages = []
    for t in range(0, len(times), 8):
        a, b, c, d, e, f, g, h = times[t : t + 8]
        messages += [
            Crossing("trap:g", "TrapWrite", "g", "h", a, b),
            Crossing("vfio:h", "MapDma", "h", "host", c, d),
            Crossing("vfio:h", "Done", "host", "h", e, f),
            Crossing("trap:g", "TrapDone", "h", "g", g, h),
        ]
    found = chains(messages)
    assert len(found) == len(steps) // 8
    for chain in found:
        assert sum(hop.nanoseconds for hop in chain.hops) == chain.nanoseconds and len(chain.hops) == 7


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
    found = chains(messages)
    assert len(found) == 80
    for chain in found:
        names = [hop.name for hop in chain.hops]
        assert names[0] == "vm0.guest → vm0.hypervisor" and names[-1] == "vm0.hypervisor → vm0.guest"
        assert "vm0.hypervisor → host" in names and "host" in names
        assert sum(hop.nanoseconds for hop in chain.hops) == chain.nanoseconds
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


def _assert_viewable(events: list[dict[str, Any]]) -> None:
    """What Perfetto asks for: slices of a thread nest, arrows end inside slices, asynchronous pairs close."""
    threads: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            threads.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    for slices in threads.values():
        for (start, end), (following, following_end) in pairwise(sorted(slices, key=lambda each: (each[0], -each[1]))):
            assert start <= following
            assert following >= end - 0.001 or following_end <= end + 0.001
    assert len([e for e in events if e["ph"] == "s"]) == len([e for e in events if e["ph"] == "f"]) > 0
    assert len([e for e in events if e["ph"] == "b"]) == len([e for e in events if e["ph"] == "e"]) > 0
    edges = {key: {edge for pair in slices for edge in pair} for key, slices in threads.items()}
    for event in events:
        if event["ph"] in "sf":
            slices = threads[event["pid"], event["tid"]]
            near = any(abs(edge - event["ts"]) < 0.001 for edge in edges[event["pid"], event["tid"]])
            assert near or any(start <= event["ts"] <= end for start, end in slices)
