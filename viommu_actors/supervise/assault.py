"""Plays the attacks of one rogue device and judges them by what everybody but the rogue saw.

Whether it got there is said by the owners of the memory, by the root port and by the IOMMU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from viommu_actors.attacks.catalogue import CATALOGUE, Attack, Setting, Target
from viommu_actors.attacks.evidence import Evidence, Fault
from viommu_actors.attacks.expected import Cell, Driver, expected
from viommu_actors.attacks.verdict import observe
from viommu_actors.report.results import Absent, Verdict
from viommu_actors.supervise.aims import Aims, Mission, accesses
from viommu_actors.supervise.owner import Owner
from viommu_actors.supervise.plan import Plan
from viommu_actors.supervise.supervisor import COMMAND_TIMEOUT, Supervisor
from viommu_actors.topology.resolve import ResolvedDevice, ResolvedTopology

_SETTLE = 2.0
#: Accesses a second that a rogue makes at least, on the slowest machine that this runs on.
_SLOWEST = 2000


class Assault:
    """Attacks of one device."""

    def __init__(
        self, topology: ResolvedTopology, plan: Plan, supervisor: Supervisor, device: ResolvedDevice, owner: Owner
    ) -> None:
        self._topology = topology
        self._supervisor = supervisor
        self._device = device
        self._owner = owner
        self._aims = Aims(topology, plan, supervisor, device, owner)
        self._driver: Driver = "host" if device.vm is None else "guest"

    def choices(self) -> Iterator[tuple[Attack, Target, str]]:
        """The device's attacks on each of their targets, and why one is left out; empty for those to be played."""
        for name in self._device.rogue:
            attack = CATALOGUE[name]
            for target in attack.targets:
                if target is Target.GUEST_MEMORY and self._device.vm is None:
                    continue  # the memory of the kernel that drives it is the host's
                if self._aims.missing(target):
                    yield attack, target, self._aims.missing(target)
                else:
                    cell = self._cell(attack, target)
                    yield attack, target, cell.reason if cell.verdict is None else ""

    def absent(self, attack: Attack, target: Target, reason: str) -> Absent:
        """The row of an attack that is left out."""
        return Absent(device=self._device.name, attack=attack.id, target=target.value, reason=reason)

    def play(self, attack: Attack, target: Target) -> Verdict:
        """Plays one attack on one target and gathers the proofs. What it harmed is mended afterwards."""
        command, device, owner = self._supervisor.command, self._device, self._owner
        mission = self._aims.mission(attack, target)
        command("host", "faults")
        command("host", "watch", link=device.link, aims=mission.aims, guarded=mission.guarded)
        deadline = COMMAND_TIMEOUT + accesses(mission.steps) / _SLOWEST
        self._supervisor.each({device.name: {"steps": mission.steps}}, "attack", deadline)
        seen = self._settled(mission)
        faults = command("host", "faults")
        # Before the control: its own mapping is a lawful change of tables and queue.
        after = " ".join(command(keeper, mission.digest_command) for keeper in mission.keepers)
        for keeper in mission.keepers:
            command(keeper, "restore")
        control = command(owner.kernel, "offer_control", bdf=owner.bdf)
        command(device.name, "attack", steps=[{"do": "control", "iova": control["iova"], "data": control["data"]}])
        arrived = self._control_arrived()
        evidence = _evidence(attack, device.bdf, mission, seen, faults, after, arrived)
        cell = self._cell(attack, target)
        assert cell.verdict is not None
        return Verdict(
            device=device.name,
            driver=self._driver,
            attack=attack.id,
            target=target.value,
            setting=self._setting(attack),
            expected=cell.verdict,
            observed=observe(attack.access, device.bdf, evidence),
            evidence=evidence,
        )

    def _cell(self, attack: Attack, target: Target) -> Cell:
        return expected(attack.id, self._driver, target, self._setting(attack))

    def _setting(self, attack: Attack) -> Setting:
        if attack.access == "interrupt":
            return self._topology.interrupt_setting(self._device.name)
        return self._topology.setting(self._device.name)

    # --- waiting for posted writes, which nobody answers

    def _settled(self, mission: Mission) -> dict[str, Any]:
        """The port's evidence once all that the rogue had to try has arrived."""
        deadline = time.monotonic() + _SETTLE
        while True:
            seen: dict[str, Any] = self._supervisor.command("host", "evidence", link=self._device.link)
            done = seen["tried"] >= mission.aimed and sum(seen["outcomes"].values()) >= accesses(mission.steps)
            if done or time.monotonic() > deadline:
                self._supervisor.command("host", "unwatch", link=self._device.link)
                return seen
            self._supervisor.poll(0.01)

    def _control_arrived(self) -> bool:
        deadline = time.monotonic() + _SETTLE
        command, owner = self._supervisor.command, self._owner
        while not (arrived := command(owner.kernel, "check_control", bdf=owner.bdf)) and time.monotonic() < deadline:
            self._supervisor.poll(0.01)
        command(owner.kernel, "end_control", bdf=owner.bdf)
        return bool(arrived)


def _evidence(
    attack: Attack,
    source: str,
    mission: Mission,
    seen: dict[str, Any],
    faults: dict[str, Any],
    after: str,
    control: bool,
) -> Evidence:
    outcomes = seen["outcomes"]
    refused = sum(n for outcome, n in outcomes.items() if outcome != "ok")
    passed = outcomes.get("ok", 0)
    interrupt = attack.access == "interrupt"
    return Evidence(
        aimed=mission.aimed,
        tried=seen["tried"],
        attempts=sum(outcomes.values()),
        canary_before=mission.digest,
        canary_after=after,
        fault=_fault(faults, seen, mission, source),
        control=control,
        reached=seen["reached"],
        # Where an interrupt goes to that the victim did not take, nobody can say: it stays unaccounted for.
        elsewhere=0 if interrupt else max(0, passed - seen["reached"]),
        refused=refused,
    )


def _fault(faults: dict[str, Any], seen: dict[str, Any], mission: Mission, source: str) -> Fault | None:
    """The first record of a refusal of what was aimed: of the host's IOMMU, else of the root port."""
    for record in faults["records"]:
        if record["source"] == source and _is_aimed(record, mission):
            return Fault(
                kind="remapping",
                unit="host iommu",
                source=record["source"],
                address=record["place"],
                write=record["write"],
                reason=f"{record['reason']:#x}",
                text=record["text"],
                count=len(faults["records"]) + faults["lost"],
            )
    refusal = seen["first_refusal"]
    if refusal is None or refusal["outcome"] == "fault":
        return None
    return Fault(
        kind="acs" if refusal["outcome"] == "acs" else "rejected",
        unit="root port",
        source=refusal["source"],
        address=f"{refusal['address']:#x}",
        write=refusal["write"],
        text=refusal["outcome"],
        count=seen["outcomes"][refusal["outcome"]],
    )


def _is_aimed(record: dict[str, Any], mission: Mission) -> bool:
    """Whether a fault record is of an address that was aimed at; an interrupt's names an entry instead."""
    if record["interrupt"]:
        return not mission.guarded
    place = int(record["place"], 16)
    return any(aim.first & ~0xFFF <= place <= aim.last for aim in mission.aims)
