"""One run of the laboratory at one placement: everything up at once, batches in turn, then what is looked at once.

In each round every batch comes once, in random order, so that whatever the machine does meanwhile meets ours and the
floor alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, NamedTuple

from viommu_actors.measure import floors
from viommu_actors.measure.bench import Bench, Series, System
from viommu_actors.measure.hops import Hops, by_level, split, within
from viommu_actors.measure.settings import Settings, Subject
from viommu_actors.measure.statistics import rounds_of, shares, summarize
from viommu_actors.measure.trace import Crossing, crossings
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import Plan, guest_of, hypervisor_of, make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import CommandFailed, Supervisor
from viommu_actors.topology.resolved import ResolvedTopology

#: Rounds that are measured where time allows.
ROUNDS: Final = 40
#: Fewer than these say little about spread; so many are measured even when time is up.
LEAST_ROUNDS: Final = 5
_SEED = 0x5EED
#: Operations of each kind that are traced.
_TRACED = 40
#: Packets of a nic whose messages are counted.
_COUNTED = 16

#: progress(part done, what)
Progress = Callable[[float, str], None]


class Measured(NamedTuple):
    """What one placement gave. `rounds` holds, for each round, the series of each name in nanoseconds."""

    rounds: list[Series]
    #: of the operations that were traced
    crossings: list[Crossing]
    #: row -> part of the whole -> its share
    shares: dict[str, dict[str, float]]
    #: operation -> p50 with a trace on over p50 with it off
    trace_overhead: dict[str, float]
    #: setting -> messages of one packet by "wire kind"
    messages: dict[str, dict[str, float]]
    cpus: dict[str, list[int] | None]
    #: what the rounds took
    seconds: float


class Laboratory:
    """A context manager: inside it, all processes are up."""

    def __init__(self, settings: Settings, folder: RunFolder, name: str) -> None:
        """`name` is that of the folder, inside the run's, for what the processes say."""
        self._path = folder.path / name
        self._subject, self._settings = settings
        self._folder = folder
        self._stack = ExitStack()
        self.cpus: dict[str, list[int] | None] = {}
        #: those that are done, of a run that ends before its time too
        self.rounds: list[Series] = []

    def __enter__(self) -> Laboratory:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        plans = {name: make_plan(topology) for name, topology in self._settings.items()}
        cpus = {name: _cpus(plan) for name, plan in plans.items()}
        self.cpus = cpus["strict"]
        folders = {name: RunFolder(topology, self._path / name) for name, topology in self._settings.items()}
        for folder in folders.values():
            self._stack.callback(folder.close)
        running = {name: self._run(plan, folders[name]) for name, plan in plans.items()}
        floor = self._run(_floors(self._subject, self._settings["many"], cpus), self._folder)
        # All processes start at the same time, and only then is anybody waited for.
        for name, supervisor in running.items():
            Scenario(self._settings[name], plans[name], supervisor, lambda _: None).boot()
        floor.commands(list(floor.actors), "ping")
        self.systems = {
            name: System(self._subject, self._settings[name], supervisor) for name, supervisor in running.items()
        }
        self.bench = Bench(self.systems, floor)

    def _run(self, plan: Plan, folder: RunFolder) -> Supervisor:
        return self._stack.enter_context(Supervisor(plan, folder))

    def measure(self, rounds: int, seconds: float, progress: Progress) -> Measured:
        """At most so many rounds, and fewer where they would take longer than `seconds`."""
        began = time.monotonic()
        measurements = self.bench.measurements()
        orders = rounds_of(list(measurements), _SEED)
        for number in range(rounds + 1):
            series: Series = {}
            for name in next(orders):
                series |= measurements[name]()
            if number:  # the first one warms up
                self.rounds.append(series)
            spent = time.monotonic() - began
            progress(max(number / rounds, min(spent / seconds, 1.0)), f"round {number} of {rounds}")
            if spent > seconds and number >= LEAST_ROUNDS:
                break
        seconds = time.monotonic() - began
        progress(1.0, "messages, hops")
        seen, hops, overhead = self._hops()
        return Measured(self.rounds, seen, hops, overhead, self._messages(), self.cpus, seconds)

    def unfinished(self) -> Measured:
        """What there is of a run that ended before its time; some `rounds` must be done."""
        return Measured(self.rounds, [], {}, {}, {}, self.cpus, 0.0)

    # --- hops

    def _hops(self) -> tuple[list[Crossing], dict[str, dict[str, float]], dict[str, float]]:
        bench, supervisor = self.bench, self.systems["strict"].supervisor
        plain = {"hop": bench.trapped_reads(_TRACED), "map_strict": bench.maps(_TRACED)["map"]}
        seen: list[Crossing] = []
        guest, nic = guest_of(self._subject.vm), self._subject.nic
        line = [vm.name for vm in self._settings["strict"].line(self._subject.vm)]
        called = by_level(line, len(line) > 1)

        def stamped() -> list[Crossing]:
            taken = crossings(supervisor.stamps())
            seen.extend(taken)
            return taken

        def traced(asker: str, first: str, last: str) -> list[Hops]:
            return split(stamped(), asker, first, last, called)

        def whole(operations: list[Hops], taken: list[int], asker: str = guest) -> list[Hops]:
            return within(operations, taken, called(asker))

        supervisor.trace(True)
        reads = bench.trapped_reads(_TRACED)
        parts = {"hop": whole(traced(guest, "TrapRead", "TrapValue"), reads)}
        writes = bench.trapped_writes(_TRACED)
        parts["mmio_trap"] = whole(traced(guest, "TrapWrite", "TrapDone"), writes)
        chain = bench.config_reads(_TRACED)
        parts["two_hop_chain"] = whole(traced(guest, "TrapRead", "TrapValue"), chain)
        maps = bench.maps(_TRACED)
        traps = traced(guest, "TrapWrite", "TrapDone")
        parts["map_strict"] = whole(traps[::2], maps["map"])
        parts["unmap_strict"] = whole(traps[1::2], maps["unmap"])
        both = zip(parts["map_strict"], parts["unmap_strict"], strict=False)
        parts["map_unmap_strict"] = [mapped + unmapped for mapped, unmapped in both]
        for name, hit in (("dma_read_hit", True), ("dma_read_miss", False)):
            dma = bench.reads(_TRACED, hit)
            # The first read of a hit is not one, and was not timed.
            parts[name] = whole(traced(nic, "MemRead", "Completion")[1 if hit else 0 :], dma, nic)
        parts["dma_write_posted"] = _posted(bench.writes(_TRACED), stamped())
        direct = bench.bar_reads(_TRACED)
        parts["mmio_direct"] = whole(traced(guest, "DirectRead", "DirectValue"), direct)
        interrupts = bench.interrupts(_TRACED)
        parts["interrupt"] = whole(traced(guest, "DirectWrite", "Inject"), interrupts)
        supervisor.trace(False)
        overhead = {
            name: summarize(on).p50 / summarize(plain[name]).p50
            for name, on in (("hop", reads), ("map_strict", maps["map"]))
        }
        return seen, {name: shares(each) for name, each in parts.items()}, overhead

    # --- as on the host

    def _messages(self) -> dict[str, dict[str, float]]:
        """What one packet of the nic costs in messages, in the settings without a vIOMMU."""
        return {name: self._messages_of(name) for name in ("host", "none")}

    def _messages_of(self, setting: str) -> dict[str, float]:
        system = self.systems[setting]
        system.kernel("nic", "time_packets", count=1)
        before = self._counts(system)
        system.kernel("nic", "time_packets", count=_COUNTED)
        after = self._counts(system)
        return {kind: (n - before.get(kind, 0)) / _COUNTED for kind, n in after.items() if n != before.get(kind, 0)}

    def _counts(self, system: System) -> dict[str, int]:
        """Of every wire but control, as the host counted: both ends agree once all is quiet."""
        if wrong := system.supervisor.reconcile():
            raise CommandFailed("the two ends of a wire counted differently: " + "; ".join(wrong))
        counts: dict[str, int] = {}
        for end in system.supervisor.command("host", "counts"):
            wire = end["wire"].partition(":")[0]
            if wire != "control":
                for way in ("sent", "received"):
                    for kind, n in end[way].items():
                        key = f"{wire} {kind} {'to' if way == 'sent' else 'from'} {_OTHER_END[wire]}"
                        counts[key] = counts.get(key, 0) + n
        return counts


_OTHER_END: Final = {
    "link": "device",
    "direct": "guest",
    "inject": "guest",
    "vfio": "hypervisor",
    "notify": "hypervisor",
    "cable": "device",
}


def _posted(writes: list[tuple[int, int]], messages: list[Crossing]) -> list[Hops]:
    """Device work, wire, host work of each posted write."""
    arrived = [message for message in messages if message.kind == "MemWrite"]
    return [
        [
            ("device work", message.sent - began),
            ("wire device to host", message.received - message.sent),
            ("host work", done - message.received),
        ]
        for (began, done), message in zip(writes, arrived, strict=False)
    ]


def _cpus(plan: Plan) -> dict[str, list[int] | None]:
    return {actor.name: actor.configuration["cpus"] for actor in plan.actors}


def _floors(subject: Subject, crowd: ResolvedTopology, cpus: dict[str, dict[str, list[int] | None]]) -> Plan:
    """The floors stand where those stand whose floor they are."""
    strict, many = cpus["strict"], cpus["many"]
    places = {
        floors.GUEST: strict[guest_of(subject.vm)],
        floors.HYPERVISOR: strict[hypervisor_of(subject.vm)],
        floors.HOST: strict["host"],
        floors.DEVICE: strict[subject.nic],
    }
    return floors.make_floors(places, many["host"], [many[device.name] for device in crowd.devices])
