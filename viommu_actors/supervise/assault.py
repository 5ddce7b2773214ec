"""Plays the attacks of one rogue device and judges them by what everybody but the rogue saw.

Whether it got there is said by the owners of the memory, by the root port and by the IOMMU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from viommu_actors.attacks.catalogue import CATALOGUE, Attack, Setting, Target
from viommu_actors.attacks.evidence import Evidence, Fault
from viommu_actors.attacks.expected import Cell, expected
from viommu_actors.attacks.verdict import observe
from viommu_actors.report.results import Absent, Verdict
from viommu_actors.spec.vtd_faults import FaultReason
from viommu_actors.supervise.plays import PLAYS, Play, missing
from viommu_actors.supervise.stage import SETTLE, Mission, Stage, remapping_fault
from viommu_actors.supervise.supervisor import COMMAND_TIMEOUT

#: Played before the target's kernel boots, and judged when the device has a driver.
EARLY = "A47"
#: Accesses a second that a rogue makes at least, on the slowest machine that this runs on.
_SLOWEST = 2000
#: As a fault's record tells the reasons that mean a missing mapping.
_UNMAPPED = tuple(f"{reason:#x}" for reason in (FaultReason.WRITE_DENIED, FaultReason.READ_DENIED))


class _Struck(NamedTuple):
    """An attack that was played: what the port saw, what was recorded, and what the keepers said afterwards."""

    mission: Mission
    seen: dict[str, Any]
    fault: Fault | None
    after: str


class Assault:
    """Attacks of one device."""

    def __init__(self, stage: Stage, setting: Setting | None = None, plays: Mapping[str, Play] = PLAYS) -> None:
        """`setting` is what a verdict is told to be under, where it is not to follow from the attack's axis; `plays`
        are by the attack's id."""
        self._supervisor = stage.supervisor
        self._device = stage.device
        self._owner = stage.owner
        self._setting_told = setting
        self._plays = plays
        self._stage = stage
        #: takes back what an attack has harmed that was broken off
        self.undo = stage.undo
        self._driver = stage.driven_by
        #: why the application does not have the device, where it does not
        self.refused = ""
        self._early: dict[Target, _Struck] = {}

    def choices(self, attacks: Sequence[str] | None = None) -> Iterator[tuple[Attack, Target, str]]:
        """Attacks (the device's own without any) on each of their targets, and why one is left out.

        The reason is empty for those to be played.
        """
        for name in self._device.rogue if attacks is None else attacks:
            attack = CATALOGUE[name]
            for target in attack.targets:
                if target is Target.GUEST_MEMORY and self._device.vm is None:
                    continue  # the memory of the kernel that drives it is the host's
                yield attack, target, self._reason_against(attack, target)

    def absent(self, attack: Attack, target: Target, reason: str) -> Absent:
        """The row of an attack that is left out."""
        return Absent(device=self._device.name, attack=attack.id, target=target.value, reason=reason)

    def play(self, attack: Attack, target: Target) -> Verdict:
        """Plays one attack on one target and gathers the proofs. What it harmed is mended afterwards."""
        struck = self._early.pop(target) if attack.id == EARLY else self._strike(attack, target)
        evidence = _evidence(attack, struck, self._source(struck.mission), self._control(attack))
        cell = self._cell(attack, target)
        assert cell.verdict is not None
        observed = observe(attack.access, evidence)
        unmapped = evidence.fault is not None and evidence.fault.reason in _UNMAPPED
        return Verdict(
            device=self._device.name,
            driver=self._driver,
            attack=attack.id,
            target=target.value,
            setting=self._setting(attack),
            expected=cell.verdict,
            observed=observed,
            evidence=evidence,
            withheld_by=self._stage.withholder(target) if observed == "blocked" and unmapped else "",
        )

    def play_early(self, target: Target) -> None:
        """The attack on a machine that has not booted yet, if the device plays it; `play` tells its verdict later."""
        if EARLY in self._device.rogue and target in self._stage.early_targets:
            self._early[target] = self._strike(CATALOGUE[EARLY], target)

    def _strike(self, attack: Attack, target: Target) -> _Struck:
        command, stage = self._supervisor.command, self._stage
        if attack.id != EARLY:
            stage.ready()
        mission = self._plays[attack.id](stage, target)
        stage.faults()
        stage.watch(mission)
        deadline = COMMAND_TIMEOUT + mission.accesses / _SLOWEST
        actor, named = stage.attacker(attack)
        attacking = self._supervisor.ask(actor, "attack", steps=mission.steps, **named)
        if mission.meanwhile is not None:
            mission.meanwhile()
        self._supervisor.answer(attacking, deadline)
        seen = self._settled(mission)
        faults = stage.faults()
        # Before the control: its own mapping is a lawful change of tables and queue.
        after = " ".join(command(keep.actor, keep.digest, **keep.arguments) for keep in mission.keeps)
        for keep in mission.keeps:
            command(keep.actor, keep.restore)
        fault = self._fault(faults, seen, mission) if mission.record is None else mission.record()
        self.undo()
        return _Struck(mission, seen, fault, after)

    def _source(self, mission: Mission) -> str:
        """The requester that a record must name; a bridge puts its own in, whatever the device says."""
        return self._stage.source if self._stage.bridged else mission.source or self._stage.source

    def _fault(self, faults: dict[str, Any], seen: dict[str, Any], mission: Mission) -> Fault | None:
        """The first record of a refusal of what was aimed: of the host's IOMMU, else of the port."""
        fault = fault_of(self._source(mission), faults, mission, self._stage.unit)
        if fault is not None:
            return fault
        refusal = seen["first_refusal"]
        if refusal is None or refusal["outcome"] == "fault":
            return None
        return self._stage.port_fault(refusal, seen["outcomes"])

    def _control(self, attack: Attack) -> bool:
        """The positive control: whether a legal DMA of the same device passes."""
        self._stage.ready()
        actor, named = self._stage.attacker(attack)
        return self._stage.control_passes(self._stage.driver("offer_control"), actor, **named)

    # --- what is expected

    def _reason_against(self, attack: Attack, target: Target) -> str:
        if attack.waits:
            return f"waits {attack.waits}"
        if attack.id == EARLY and target not in self._early:
            return "it is played before the boot, by a device that is there by then"
        if reason := missing(self._stage, attack, target):
            return reason
        if attack.by == "application" and self._owner.app is None:
            return "no application drives the device"
        if self.refused:
            return self.refused
        cell = self._cell(attack, target)
        return cell.reason if cell.verdict is None else ""

    def _cell(self, attack: Attack, target: Target) -> Cell:
        return expected(attack.id, self._driver, target, self._setting(attack))

    def _setting(self, attack: Attack) -> Setting:
        return self._setting_told or self._stage.setting_for(attack)

    # --- waiting for posted writes, which nobody answers

    def _settled(self, mission: Mission) -> dict[str, Any]:
        """The port's evidence once all that the rogue had to try has arrived."""
        deadline = time.monotonic() + SETTLE
        while True:
            seen = self._stage.evidence()
            done = seen["tried"] >= mission.aimed and sum(seen["outcomes"].values()) >= self._stage.accesses(mission)
            if done or time.monotonic() > deadline:
                self._stage.unwatch()
                return seen
            self._supervisor.poll(0.01)


def _evidence(attack: Attack, struck: _Struck, source: str, control: bool) -> Evidence:
    mission, seen, fault, after = struck
    outcomes = seen["outcomes"]
    refused = sum(n for outcome, n in outcomes.items() if outcome != "ok")
    passed = outcomes.get("ok", 0)
    interrupt = attack.access == "interrupt"
    return Evidence(
        source=source,
        aimed=mission.aimed,
        # Of what has no aims, more than the least may come.
        tried=min(seen["tried"], mission.aimed) if mission.aims is None else seen["tried"],
        attempts=sum(outcomes.values()),
        canary_before=mission.before,
        canary_after=after,
        fault=fault,
        control=control,
        reached=seen["reached"],
        # Where an interrupt goes to that the victim did not take, nobody can say: it stays unaccounted for.
        elsewhere=0 if interrupt else max(0, passed - seen["reached"]),
        refused=refused,
    )


def fault_of(source: str, faults: dict[str, Any], mission: Mission, unit: str = Stage.unit) -> Fault | None:
    """The first record of `source` of what was aimed at; it stands for all of that source, and for what was lost."""
    own = [record for record in faults["records"] if record["source"] == source]
    first = next((record for record in own if _is_aimed(record, mission)), None)
    return None if first is None else remapping_fault(first, len(own) + faults["lost"], unit)


def _is_aimed(record: dict[str, Any], mission: Mission) -> bool:
    """Whether a fault record is of an address that was aimed at; an interrupt's names an entry instead."""
    if mission.aims is None:
        return True
    if record["interrupt"]:
        return not mission.guarded
    place = int(record["place"], 16)
    return any(aim.first & ~0xFFF <= place <= aim.last for aim in mission.aims)
