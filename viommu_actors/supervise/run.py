"""One run from beginning to end: folder, processes, scenario, results, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from viommu_actors.report.results import Results, to_json
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import ActorDied, CommandFailed, Interrupted, Supervisor
from viommu_actors.topology.resolve import ResolvedTopology


@dataclass(frozen=True)
class Ended:
    """How a run ended: `text` says why where it did not just finish, `results` are there where verdicts are."""

    how: Literal["finished", "failed", "died", "interrupted"]
    text: str
    results: Results | None


class Run:
    """Makes the run's folder at once; raises OSError where it cannot."""

    def __init__(self, topology: ResolvedTopology, path: Path | None, tell: Callable[[str], None]) -> None:
        self._topology = topology
        self._tell = tell
        self.folder = RunFolder(topology, path)

    def play(self, show: Callable[[Results], None], stay: bool) -> Ended:
        """Runs it; `show` is called once, with the results. Nothing is left running when this returns."""
        results: Results | None = None
        try:
            plan = make_plan(self._topology)
            with Supervisor(plan, self.folder, self._on_event) as supervisor:
                self.folder.write_control(supervisor.door.address)
                results = Scenario(self._topology, plan, supervisor, self._note).run()
                wires = supervisor.reconcile()
                if wires:
                    results = msgspec.structs.replace(results, ok=False)
                self.folder.write("results.json", to_json(results))
                show(results)
                if wires:
                    return Ended("failed", "the two ends of a wire counted differently:\n" + "\n".join(wires), results)
                if stay:
                    self._tell(f"up; Ctrl-C ends it (run folder {self.folder.path})")
                    supervisor.wait_until_stopped()
        except ActorDied as error:
            return self._ended("died", str(error), results)
        except CommandFailed as error:
            return self._ended("failed", str(error), results)
        except Interrupted as error:
            return self._ended("interrupted", f"ended by {error}", results)
        finally:
            self.folder.close()
        return Ended("finished", "", results)

    def _ended(self, how: Literal["failed", "died", "interrupted"], text: str, results: Results | None) -> Ended:
        if results is None:
            # What the run saw until now stays in events.jsonl; the verdicts are not in.
            nothing = Results(topology=self._topology.name, ok=False, processes=(), verdicts=(), io=(), faults=())
            self.folder.write("results.json", to_json(nothing))
        return Ended(how, text, results)

    def _note(self, text: str) -> None:
        self.folder.event("launcher", "phase", text=text)
        self._tell(text)

    def _on_event(self, actor: str, name: str, fields: Any) -> None:
        """Events of actors are in the folder already; none needs an answer."""
