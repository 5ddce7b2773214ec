"""Plays a user's script on a rogue device, and judges it as an attack: by what everybody but the rogue saw.

Reads and writes of each target are judged apart. What is expected is what is expected of the catalogue's attacks of the
same kind: A1 (reads), A2 (writes), A12 (another guest), A13 (in another device's name), A22 (interrupt messages), A25
(reads where those go), A28 (another device's registers).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from viommu_actors.attacks.catalogue import CATALOGUE, Access, Target
from viommu_actors.attacks.evidence import Evidence, Fault
from viommu_actors.attacks.expected import Driver, Outcome, expected
from viommu_actors.attacks.guard import SIGNATURE
from viommu_actors.attacks.verdict import observe
from viommu_actors.report.results import Verdict
from viommu_actors.spec import pci
from viommu_actors.spec.tlp import INTERRUPT_FIRST
from viommu_actors.supervise.stage import PAGE, Ranges, Stage, digest_of, remapping_fault
from viommu_actors.supervise.supervisor import CommandFailed
from viommu_actors.text import printable

_WINDOW = 1 << 20
_MEMORY = (Target.GUEST_MEMORY, Target.HOST_MEMORY, Target.OTHER_GUEST)
_INTERRUPTS = Target.HOST_VECTOR
#: Of others, judged by what got there alone: memory reached in the name of one, registers without the root complex.
_OTHERS = (Target.OTHER_BUFFER, Target.OTHER_REGISTERS)


@dataclass(frozen=True)
class _Watched:
    """A target, who keeps it, and how it stood before."""

    target: Target
    keepers: tuple[str, ...]
    digest: str
    addresses: Ranges
    #: pages, by the addresses that the device would use, and by the host's
    canaries: list[int]
    guarded: list[int]


class Scripted:
    """One script on one device."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._driver: Driver = "host" if stage.device.vm is None else "guest"

    def play(self, text: str, name: str, seconds: float) -> tuple[list[Verdict], dict[str, Any]]:
        """The verdicts on what was tried, and {"reports", "error"}, the script's own words.

        Raises CommandFailed where it does not end in time.
        """
        stage, link = self._stage, self._stage.device.link
        watched = list(self._memory())
        vector = stage.command("host", "guard_vector")
        own = stage.driver("offer_control")
        stage.command("host", "faults")
        fields = [
            (Target.OTHER_BUFFER.value, [], [], [], self._others()),
            (Target.OTHER_REGISTERS.value, [], [], [], [], True),
            *(self._field(each) for each in watched),
            (_INTERRUPTS.value, [(INTERRUPT_FIRST, _WINDOW)], [], []),
        ]
        spared = stage.physical(stage.owner.kernel, own["paddr"])
        stage.command("host", "watch_fields", link=link, fields=fields, spared=spared)
        told = self._targets(watched, vector, own["iova"])
        seed = secrets.randbits(32)
        arguments = {"text": text, "name": name, "targets": told, "seed": seed}
        try:
            said = stage.supervisor.each({stage.device.name: arguments}, "script", seconds)[stage.device.name]
        except CommandFailed as error:
            raise CommandFailed(f"{name} did not end: {error}") from None
        # An honest write and read of its own page: what it posted before has arrived when they have.
        control = stage.control_passes(own, stage.device.name)
        seen = stage.command("host", "field_evidence", link=link)
        stage.command("host", "unwatch", link=link)
        faults = stage.command("host", "faults")
        verdicts = [verdict for each in watched for verdict in self._verdicts(each, seen, faults, control)]
        verdicts += self._reached(seen, control)
        verdicts += self._interrupts(vector, seen, faults, control)
        for keeper in {keeper for each in watched for keeper in each.keepers}:
            stage.command(keeper, "restore")
        return verdicts, _own_words(said)

    # --- before

    def _memory(self) -> Iterator[_Watched]:
        stage = self._stage
        for target in _MEMORY:
            keepers = stage.keepers(target)
            if not keepers or (target is Target.GUEST_MEMORY and stage.device.vm is None):
                continue
            guarded = {keeper: stage.command(keeper, "guard", what="canaries") for keeper in keepers}
            addresses = [piece for keeper in keepers for piece in stage.memory_of(keeper)]
            pages = stage.aimed_pages(guarded), stage.guarded_pages(guarded)
            yield _Watched(target, keepers, digest_of(guarded), addresses, *pages)

    def _field(self, watched: _Watched) -> tuple[str, Ranges, list[int], Ranges]:
        stage = self._stage
        # A driver that uses an IOMMU lends pages of its own kernel's memory; nobody lends any of another's.
        lent = stage.owner.kernel in watched.keepers and stage.topology.setting(stage.device.name) == "strict"
        exposed = [] if lent else [piece for keeper in watched.keepers for piece in stage.physical_of(keeper)]
        return watched.target.value, watched.addresses, watched.guarded, exposed

    def _others(self) -> list[int]:
        """IDs that no request of this device may bear; behind a bridge there is one for all."""
        others = {device.requester for device in self._stage.topology.devices} - {self._stage.source}
        return sorted(pci.parse_bdf(requester) for requester in others)

    def _targets(self, watched: list[_Watched], vector: dict[str, Any], own_page: int) -> dict[str, Any]:
        others = [device.bdf for device in self._stage.topology.devices if device.name != self._stage.device.name]
        return {
            "memory": {each.target.value: each.addresses for each in watched},
            "canaries": {each.target.value: each.canaries for each in watched},
            "signature": SIGNATURE,
            "own_page": own_page,
            "interrupt": (vector["address"], vector["data"]),
            "requesters": others,
        }

    # --- after

    def _verdicts(
        self, watched: _Watched, seen: list[dict[str, Any]], faults: dict[str, Any], control: bool
    ) -> Iterator[Verdict]:
        digest = " ".join(self._stage.command(keeper, "digest") for keeper in watched.keepers)
        for row in _of(seen, watched.target):
            # What has changed, no read has changed.
            after = digest if row["way"] == "write" else watched.digest
            if row["tried"] or after != watched.digest:
                evidence = self._evidence(row, watched.digest, after, self._fault(row, faults), control)
                yield self._verdict(row["way"], watched.target, evidence)

    def _reached(self, seen: list[dict[str, Any]], control: bool) -> Iterator[Verdict]:
        for target in _OTHERS:
            for row in _of(seen, target):
                if row["tried"]:
                    yield self._verdict(row["way"], target, self._evidence(row, "", "", None, control))

    def _interrupts(
        self, vector: dict[str, Any], seen: list[dict[str, Any]], faults: dict[str, Any], control: bool
    ) -> Iterator[Verdict]:
        before, digest = vector["digest"], self._stage.command("host", "interrupt_digest")
        for row in _of(seen, _INTERRUPTS):
            access: Access = "interrupt" if row["way"] == "write" else "read"
            after = digest if access == "interrupt" else before
            if row["tried"] or after != before:
                interrupt = access == "interrupt"
                fault = self._fault(row, faults, interrupt)
                evidence = self._evidence(row, before, after, fault, control, interrupt)
                yield self._verdict(access, _INTERRUPTS, evidence)

    def _evidence(
        self, row: dict[str, Any], before: str, after: str, fault: Fault | None, control: bool, interrupt: bool = False
    ) -> Evidence:
        outcomes = row["outcomes"]
        passed = outcomes.get("ok", 0)
        return Evidence(
            source=self._stage.device.bdf if fault is None else fault.source,
            aimed=1,
            tried=1,
            attempts=row["tried"],
            canary_before=before,
            canary_after=after,
            fault=fault,
            control=control,
            reached=row["reached"],
            elsewhere=0 if interrupt else passed - row["reached"],
            refused=row["tried"] - passed,
        )

    def _fault(self, row: dict[str, Any], faults: dict[str, Any], interrupt: bool = False) -> Fault | None:
        """The unit's record of the first refusal in a field, else the port's log of it.

        Of what the unit refused, the port's log stands in only where the record may be missing: several of them were
        lost, or it was collapsed into another of the same requester.
        """
        refusal = row["first_refusal"]
        if refusal is None:
            return None
        told = [record for record in faults["records"] if record["source"] == refusal["source"]]
        for record in told:
            place = interrupt or int(record["place"], 16) == refusal["address"] & -PAGE
            if record["reason"] == refusal["reason"] and place and (interrupt or record["write"] == refusal["write"]):
                return remapping_fault(record, row["outcomes"][refusal["outcome"]])
        if refusal["reason"] is not None and not told and not faults["lost"]:
            return None
        return self._stage.port_fault(refusal, row["outcomes"])

    def _verdict(self, access: Access, target: Target, evidence: Evidence) -> Verdict:
        device = self._stage.device.name
        attack = CATALOGUE[_like(access, target)]
        setting = self._stage.topology.setting_for(attack.axis, device)
        cell = expected(attack.id, self._driver, target, setting).verdict
        assert cell is not None
        wanted: Outcome = "leaked" if access == "read" and cell == "corrupted" else cell
        return Verdict(
            device=device,
            driver=self._driver,
            attack=f"script-{access}",
            target=target.value,
            setting=setting,
            expected=wanted,
            observed=observe(access, evidence),
            evidence=evidence,
        )


def _of(seen: list[dict[str, Any]], target: Target) -> list[dict[str, Any]]:
    """What was seen of reads, and of writes."""
    return [row for row in seen if row["field"] == target.value]


def _like(access: Access, target: Target) -> str:
    """The attack of the catalogue that does the same."""
    if target is _INTERRUPTS:
        return "A22" if access == "interrupt" else "A25"
    if target in _OTHERS:
        return "A13" if target is Target.OTHER_BUFFER else "A28"
    if target is Target.OTHER_GUEST:
        return "A12"
    return "A1" if access == "read" else "A2"


def _own_words(said: Any) -> dict[str, Any]:
    """What a rogue says of itself, bounded, fit for a terminal."""
    reports, error = (said.get("reports"), said.get("error")) if isinstance(said, dict) else ((), "")
    lines = [printable(str(each))[:200] for each in reports][:64] if isinstance(reports, tuple) else []
    return {"reports": lines, "error": printable(str(error))[:1000]}
