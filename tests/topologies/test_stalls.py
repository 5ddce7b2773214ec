"""Nobody reads, writes or accepts for an actor in the background: what comes of one that does not run for a while, and
of strangers at the doors of all."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.topologies.launcher import CONFIGS, alive
from tests.topologies.test_hostile_link import HONEST, ROGUE, TWO, works
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import Plan, make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve

pytestmark = pytest.mark.topology

#: More than any listener lets wait for the end of their handshakes.
STRANGERS = 40


@pytest.fixture
def plan() -> Plan:
    """Two devices of one guest."""
    return make_plan(resolve(parse(TWO)))


@pytest.fixture
def running(tmp_path: Path, plan: Plan) -> Iterator[Supervisor]:
    """Booted and worked."""
    topology = resolve(parse(TWO))
    folder = RunFolder(topology, tmp_path / "run")
    with Supervisor(plan, folder) as supervisor:
        scenario = Scenario(topology, plan, supervisor, lambda _: None)
        scenario.run()
        pids = [actor.pid for actor in supervisor.actors.values()]
        yield supervisor
        assert all(map(alive, pids)), "an actor died"
        assert supervisor.reconcile() == []
    folder.close()


@contextmanager
def stopped(supervisor: Supervisor, actor: str) -> Iterator[None]:
    pid = supervisor.actors[actor].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_interrupts_for_a_guest_that_does_not_run_hold_up_nobody(running: Supervisor) -> None:
    """They find no room, coalesce, and come once it runs again."""
    own = running.command("host", "guard_device", bdf="01:00.0")
    storm = {"do": "interrupt", "address": own["address"], "data": own["data"], "times": 5000}
    before = running.command("vm0.guest", "counters")["interrupts"]
    with stopped(running, "vm0.guest"):
        running.command(ROGUE, "attack", steps=[storm])
        for actor in ("host", "vm0.hypervisor", "edu0"):
            assert running.command(actor, "ping") == "pong"
    assert works(running)
    assert 0 < running.command("vm0.guest", "counters")["interrupts"] - before < 5000


@pytest.mark.parametrize("actor", ["host", "vm0.hypervisor", "edu0"])
def test_who_waits_for_one_that_does_not_run_goes_on_with_it(running: Supervisor, actor: str) -> None:
    with stopped(running, actor):
        asked = running.ask("vm0.guest", "io", bdf=HONEST, operations=4)
        others = {"host", "vm0.hypervisor", "edu0", ROGUE} - {actor}
        if actor == "host":  # for which a hypervisor may wait; it waits for no one
            others.remove("vm0.hypervisor")
        for _ in range(5):
            assert set(running.commands(others, "ping").values()) == {"pong"}
    running.answer(asked)
    assert works(running)


def test_strangers_at_every_door(running: Supervisor, plan: Plan) -> None:
    """Of the same user, and not confined: who connects and says nothing, half of a handshake, or noise."""
    words = [b"", b"\xff" + bytes(8), b"GET / HTTP/1.1\r\n\r\n".ljust(64), bytes(1 << 16)]
    before = [descriptors(actor.pid) for actor in running.actors.values()]
    with ExitStack() as stack:
        for actor in plan.actors:
            for number in range(STRANGERS):
                stranger = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                stranger.connect("\0" + actor.inbox.address.removeprefix("ipc://@"))
                stranger.sendall(words[number % len(words)])
        assert works(running)
        assert set(running.commands(list(running.actors), "ping").values()) == {"pong"}
    deadline = time.monotonic() + 10
    while [descriptors(actor.pid) for actor in running.actors.values()] != before:
        assert time.monotonic() < deadline, "something is left of them"
        running.commands(list(running.actors), "ping")


@pytest.mark.long
@pytest.mark.parametrize("name", ["nested", "dpdk-interrupts"])
def test_whoever_is_stopped_whenever_the_run_ends_as_it_should(tmp_path: Path, name: str) -> None:
    """Each for a twentieth of a second at most, up to three at a time."""
    topology = resolve(parse((CONFIGS / f"{name}.toml").read_text()))
    folder, over, rnd = RunFolder(topology, tmp_path / "run"), threading.Event(), random.Random(8)
    plan = make_plan(topology)
    with Supervisor(plan, folder) as supervisor:
        pids = [actor.pid for actor in supervisor.actors.values()]

        def stop_and_go() -> None:
            while not over.wait(rnd.uniform(0, 0.02)):
                some = rnd.sample(pids, rnd.randint(1, 3))
                for pid in some:
                    os.kill(pid, signal.SIGSTOP)
                time.sleep(rnd.uniform(0, 0.05))
                for pid in some:
                    os.kill(pid, signal.SIGCONT)

        stopping = threading.Thread(target=stop_and_go)
        stopping.start()
        try:
            scenario = Scenario(topology, plan, supervisor, lambda _: None)
            scenario.run()
        finally:
            over.set()
            stopping.join()
        assert scenario.results().ok
        assert supervisor.reconcile() == []
    folder.close()
