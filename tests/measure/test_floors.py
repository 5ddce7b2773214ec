"""The floor: the same frames as the wires, and every pattern as real processes."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from tests.topologies.launcher import SMALL
from viommu_actors.actors import floor as bare
from viommu_actors.measure import floors
from viommu_actors.spec.tlp import Completion, MemRead
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve
from viommu_actors.wire import messages as m
from viommu_actors.wire.link import LINK_DOWN, LINK_UP

CROWD = 3


def test_the_payload_is_that_of_the_wires() -> None:
    for payload, codec, kind in (
        (bare._TRAP_READ, m.TRAP, m.TrapRead),
        (bare._TRAP_VALUE, m.TRAP_ANSWER, m.TrapValue),
        (bare._TRAP_WRITE, m.TRAP, m.TrapWrite),
        (bare._TRAP_DONE, m.TRAP_ANSWER, m.TrapDone),
        (bare._MAP_DMA, m.VFIO, m.MapDma),
        (bare._DONE, m.VFIO_ANSWER, m.Done),
        (bare._mem_read(64), LINK_UP, MemRead),
        (bare._completion(64), LINK_DOWN, Completion),
    ):
        assert type(codec.decode(msgpack.packb(payload))) is kind


def test_a_floor_imports_no_core() -> None:
    assert not [name for name in vars(bare) if name in ("Kernel", "RootComplex", "GuestMachine")]
    assert "viommu_actors.actors.floor" in sys.modules


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Supervisor]:
    places: dict[str, list[int] | None] = dict.fromkeys([*floors.CHAIN, floors.DEVICE])
    plan = floors.make_floors(places, None, [None] * CROWD)
    folder = RunFolder(resolve(parse(SMALL)), tmp_path / "run")
    with Supervisor(plan, folder) as supervisor:
        yield supervisor
    folder.close()


@pytest.mark.topology
def test_every_floor_pattern_answers_for_each_operation(running: Supervisor) -> None:
    for _ in range(2):
        for actors, command in (
            (floors.PAIR, "round_trips"),
            (floors.FREE, "round_trips"),
            (floors.CHAIN, "chain"),
            (floors.PAIR, "unix"),
        ):
            taken = array("q", running.commands(actors, command, count=7)[actors[0]])
            assert len(taken) == 7 and min(taken) > 0
        reads = running.commands(floors.LINK, "reads", count=5, length=64)
        assert len(array("q", reads[floors.DEVICE])) == 5
        posted = running.commands(floors.LINK, "posted", count=4, length=64, gap=1e-4)
        began, arrived = (array("q", posted[name]) for name in floors.LINK)
        assert all(end > start for start, end in zip(began, arrived, strict=True))
        for count in (1, 9):
            start, end = running.commands(floors.LINK, "stream", count=count, length=4096, window=4)[floors.DEVICE]
            assert end > start
        crowd = running.commands([floors.ROOT, *floors.many(CROWD)], "stream", count=6, length=64, window=4)
        assert all(crowd[name][1] > crowd[name][0] for name in floors.many(CROWD))
