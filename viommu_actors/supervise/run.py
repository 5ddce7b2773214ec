"""One run from beginning to end: folder, processes, scenario, results, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from viommu_actors.attacks.catalogue import Setting
from viommu_actors.measure.clock import charge_all
from viommu_actors.measure.costs import CostTable
from viommu_actors.measure.sampled import Sample, latencies
from viommu_actors.measure.trace import crossings
from viommu_actors.report.results import Results
from viommu_actors.supervise.attachments import Attachments
from viommu_actors.supervise.door import NO_STAY
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.page import write_results, write_trace
from viommu_actors.supervise.plan import Plan, make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import ActorDied, CommandFailed, Interrupted, Supervisor
from viommu_actors.topology.resolved import ResolvedTopology


@dataclass(frozen=True)
class Ended:
    """How a run ended: `text` says why where it did not just finish, `results` are there where verdicts are in."""

    how: Literal["finished", "failed", "died", "interrupted"]
    text: str = ""
    results: Results | None = None


class Run:
    """Makes the run's folder at once; raises OSError where it cannot."""

    def __init__(
        self,
        topology: ResolvedTopology,
        path: Path | None,
        tell: Callable[[str], None],
        costs: tuple[CostTable, ...] = (),
        trace: Path | None = None,
        setting: Setting | None = None,
    ) -> None:
        """`costs`: the tables by which the results tell the modelled clock too; `trace`: a file for a Chrome trace of
        all messages after the boot; `setting`: what verdicts are under, where it is not to follow from each attack's
        axis."""
        self._trace = trace
        self._setting = setting
        self._topology = topology
        self._costs = costs
        self._tell = tell
        self.folder = RunFolder(topology, path)

    def play(
        self, show: Callable[[Results], None], stay: bool, also: Callable[[Supervisor], None] = lambda supervisor: None
    ) -> Ended:
        """Runs it; `show` is called once, with the results. Nothing is left running when this returns.

        `also` is done after the verdicts, before the counts of both ends of every wire are compared.
        """
        try:
            plan = make_plan(self._topology)
            contain = self._topology.on_death == "contain"
            with Supervisor(plan, self.folder, contain) as supervisor:
                supervisor.door.refusal = "" if stay else NO_STAY
                self.folder.write_control(supervisor.door.address)
                traced = self._trace is not None
                scenario = Scenario(self._topology, plan, supervisor, self._note, self._setting, traced)
                try:
                    return self._played(scenario, supervisor, plan, show, stay, also)
                except (ActorDied, CommandFailed, Interrupted) as error:
                    if isinstance(error, Interrupted):
                        supervisor.quiesce()
                    unwritten = self._write(scenario.results(ok=False), f"{error.how}: {error}", scenario.samples)
                    return Ended(error.how, "\n".join([str(error), *unwritten]))
        except OSError as error:
            return Ended("failed", _reason(error))
        finally:
            self.folder.close()

    def _played(
        self,
        scenario: Scenario,
        supervisor: Supervisor,
        plan: Plan,
        show: Callable[[Results], None],
        stay: bool,
        also: Callable[[Supervisor], None],
    ) -> Ended:
        scenario.boot()
        if self._trace is not None:
            supervisor.trace(True)
        scenario.play()
        unwritten = self._write_trace(supervisor, scenario)
        also(supervisor)
        wires = supervisor.reconcile()
        results = scenario.results(ok=not wires and not supervisor.lost)
        guests = {row.device for row in results.io if self._topology.machine_of(row.device) is not None}
        results = msgspec.structs.replace(results, modelled=charge_all(results.io, self._costs, guests))
        trouble = [*wires, *supervisor.lost.values()]
        unwritten += self._write(results, "; ".join(trouble), scenario.samples)
        show(results)
        if wires:
            return Ended("failed", "the two ends of a wire counted differently:\n" + "\n".join(wires), results)
        if unwritten:
            return Ended("failed", "\n".join(unwritten), results)
        if stay:
            self._note(f"up; Ctrl-C ends it, launch/rogue attacks it (run folder {self.folder.path})")
            attachments = Attachments(self._topology, plan, supervisor, self.folder, self._note)
            try:
                supervisor.wait_until_stopped(attachments.serve)
            except ActorDied as error:
                return Ended("died", str(error), results)
            supervisor.quiesce()
        if supervisor.lost:
            return Ended("died", "\n".join(supervisor.lost.values()), results)
        return Ended("finished", "", results)

    def _write(self, results: Results, ended: str, samples: Mapping[str, Sample]) -> list[str]:
        """Leaves the results in the folder; the reason why not, where they cannot be written."""
        sampled = latencies(samples, self._topology.placement) if samples else None
        try:
            write_results(self.folder, self._topology, results, ended, sampled)
        except OSError as error:
            return [_reason(error)]
        return []

    def _write_trace(self, supervisor: Supervisor, scenario: Scenario) -> list[str]:
        """Ends the trace, where there is one, and leaves it where the user wants it; the reason why not."""
        if self._trace is None:
            return []
        seen = crossings(supervisor.stamps())
        supervisor.trace(False)
        scenario.sample_of(seen)
        try:
            write_trace(self._trace, seen)
        except OSError as error:
            return [_reason(error)]
        return []

    def _note(self, text: str) -> None:
        self.folder.event("launcher", "phase", text=text)
        self._tell(text)


def _reason(error: OSError) -> str:
    place = error.filename2 or error.filename
    return f"{place}: {error.strerror}" if place else f"{error.strerror}"
