"""Plays attacks of one rogue device and judges them by what everybody but the rogue saw.

The launcher gives the rogue all that an attacker could ever learn: the addresses of what it is
after. Whether it got there is said by the owners of the memory, by the root port and by the IOMMU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from viommu_actors.attacks.catalogue import CATALOGUE, Attack, Target
from viommu_actors.attacks.evidence import Evidence, Fault
from viommu_actors.attacks.expected import Driver, expected
from viommu_actors.attacks.verdict import observe
from viommu_actors.report.results import Verdict
from viommu_actors.supervise.owner import Owner
from viommu_actors.supervise.plan import HOST_HIGH_BASE, HOST_LOW_MEMORY, Plan, guest_of
from viommu_actors.supervise.supervisor import CommandFailed, Supervisor
from viommu_actors.topology.resolve import InterruptSetting, ResolvedDevice, ResolvedTopology

_PAGE = 4096
#: What the rogue writes: a whole number of dwords that no canary holds.
_PATTERN = b"\xde\xad\xbe\xef" * 16
#: A tower of tables may have more pages than one plan has steps.
_MAX_WRITES = 256
_INTERRUPTS = 8
_SETTLE = 2.0


class Aim(NamedTuple):
    """What an attack is directed at.

    `steps` is the rogue's plan (`devices.rogue`), of so many `accesses`; `pages` are the host-physical
    pages that must stay out of its reach, guarded by the actor `keeper`, whose `digest_command` says how
    they stand. The digest of interrupts is how many of them the victim took.
    """

    keeper: str
    steps: list[dict[str, Any]]
    accesses: int
    pages: set[int]
    digest: str
    digest_command: str = "digest"


class Assault:
    """Attacks of one device."""

    def __init__(
        self, topology: ResolvedTopology, plan: Plan, supervisor: Supervisor, device: ResolvedDevice, owner: Owner
    ) -> None:
        self._topology = topology
        self._memory = plan.memory
        self._supervisor = supervisor
        self._device = device
        self._owner = owner
        self._driver: Driver = "host" if device.vm is None else "guest"

    def applicable(self) -> Iterator[tuple[Attack, Target]]:
        """The device's attacks on every target that this topology has."""
        for name in self._device.rogue:
            attack = CATALOGUE[name]
            for target in attack.targets:
                if target is Target.OTHER_GUEST and self._other_vm() is None:
                    continue
                if target is Target.OTHER_DEVICE and self._victim() is None:
                    continue
                try:
                    cell = expected(attack.id, self._driver, target, self._setting(attack))
                except KeyError:
                    continue
                if cell.verdict is not None:
                    yield attack, target

    def play(self, attack: Attack, target: Target) -> Verdict:
        """Plays one attack on one target and gathers the proofs."""
        command = self._supervisor.command
        device, owner = self._device, self._owner
        aim = self._aim(attack, target)
        command("host", "faults")
        command("host", "watch", slot=device.slot)
        command(device.name, "attack", steps=aim.steps)
        seen = self._settled(aim)
        faults = command("host", "faults")
        # Before the control: its own mapping is a lawful change of tables and queue.
        after = command(aim.keeper, aim.digest_command)
        control = command(owner.kernel, "offer_control", bdf=owner.bdf)
        command(device.name, "attack", steps=[{"do": "control", "iova": control["iova"], "data": control["data"]}])
        arrived = self._control_arrived()
        outcomes, hits = seen["outcomes"], seen["reached"]
        evidence = Evidence(
            attempts=sum(outcomes.values()),
            canary_before=aim.digest,
            canary_after=after,
            fault=_fault(faults, seen),
            control=arrived,
            reached=hits,
            elsewhere=outcomes.get("ok", 0) - hits if attack.access != "interrupt" else 0,
            refused=sum(n for outcome, n in outcomes.items() if outcome != "ok"),
        )
        setting = self._setting(attack)
        cell = expected(attack.id, self._driver, target, setting)
        assert cell.verdict is not None
        return Verdict(
            device=device.name,
            driver=self._driver,
            attack=attack.id,
            target=target.value,
            setting=setting,
            expected=cell.verdict,
            observed=observe(attack.access, device.bdf, evidence),
            evidence=evidence,
        )

    def _setting(self, attack: Attack) -> InterruptSetting:
        if attack.access == "interrupt":
            return self._topology.interrupt_setting(self._device.name)
        return self._topology.setting(self._device.name)

    # --- aims

    def _aim(self, attack: Attack, target: Target) -> Aim:
        command = self._supervisor.command
        if attack.access == "interrupt":
            return self._aim_at_interrupts(attack, target)
        if target is Target.PAGE_TABLES:
            return self._aim_at_tables("page tables" if attack.id == "A31" else "root")
        keeper, own = self._keeper(target)
        guarded = command(keeper, "place_canaries")
        pages = {self._physical(keeper, page) for page in guarded["pages"]}
        if attack.access == "read":
            ranges = self._memory_of(keeper, own)
            steps = [{"do": "scan", "first": base, "last": base + size - _PAGE} for base, size in ranges]
            return Aim(keeper, steps, sum(size // _PAGE for _, size in ranges), pages, guarded["digest"])
        # Foreign memory is probed by host-physical address, the own guest's by guest-physical.
        return self._aim_writes(keeper, guarded["pages"] if own else sorted(pages), pages, guarded["digest"])

    def _aim_at_tables(self, kind: str) -> Aim:
        for keeper in dict.fromkeys((self._owner.kernel, "host")):
            guarded = self._supervisor.command(keeper, "guard_tables", kind=kind)
            if guarded["pages"]:
                pages = {self._physical(keeper, page) for page in guarded["pages"]}
                own = keeper == self._owner.kernel
                return self._aim_writes(keeper, guarded["pages"] if own else sorted(pages), pages, guarded["digest"])
        raise ValueError("no kernel of this topology has translation tables")

    def _aim_writes(self, keeper: str, addresses: Sequence[int], pages: set[int], digest: str) -> Aim:
        addresses = addresses[:_MAX_WRITES]
        steps = [{"do": "write", "address": address, "data": _PATTERN} for address in addresses]
        return Aim(keeper, steps, len(addresses), pages, digest)

    def _aim_at_interrupts(self, attack: Attack, target: Target) -> Aim:
        command = self._supervisor.command
        if target is Target.OTHER_DEVICE:
            victim = self._victim()
            assert victim is not None
            told = command("host", "guard_device", bdf=victim.bdf)
            if told is None:
                raise CommandFailed(f"{victim.name} has no interrupt that {self._device.name} could forge")
        elif target is Target.HOST_VECTOR:
            told = command("host", "guard_vector")
        else:
            told = command("host", "guard_entry", beyond=target is Target.BEYOND_TABLE)
        address, data = told["address"], told["data"].to_bytes(4, "little")
        steps: list[dict[str, Any]]
        if attack.id == "A25":
            steps = [
                {"do": "read", "address": address, "length": 4},
                {"do": "write", "address": address, "data": data * 2},
                {"do": "write", "address": address, "data": data[:2]},
                {"do": "write", "address": address + 1, "data": data[:2]},
                {"do": "write", "address": address + 2, "data": data},
            ]
        else:
            steps = [{"do": "interrupt", "address": address, "data": told["data"]} for _ in range(_INTERRUPTS)]
        return Aim("host", steps, len(steps), set(), told["digest"], "interrupt_digest")

    def _victim(self) -> ResolvedDevice | None:
        """Another device with a driver, hence with an interrupt."""
        others = (device for device in self._topology.devices if device.name != self._device.name)
        return next((device for device in others if device.operations), None)

    def _keeper(self, target: Target) -> tuple[str, bool]:
        """(actor that owns the target's memory, whether the device is driven by it)."""
        if target is Target.HOST_MEMORY:
            return "host", self._owner.kernel == "host"
        if target is Target.OTHER_GUEST:
            other = self._other_vm()
            assert other is not None
            return guest_of(other), False
        return self._owner.kernel, True

    def _other_vm(self) -> str | None:
        return next((vm.name for vm in self._topology.vms if vm.name != self._device.vm), None)

    def _memory_of(self, keeper: str, own: bool) -> list[tuple[int, int]]:
        """(base, size) of the keeper's memory by the addresses that the rogue would use."""
        if keeper == "host":
            return [(HOST_HIGH_BASE, self._topology.host.memory - HOST_LOW_MEMORY)]
        return [(gpa if own else hpa, size) for gpa, hpa, size in self._memory[keeper.removesuffix(".guest")]]

    def _physical(self, keeper: str, page: int) -> int:
        """Host-physical address of a page that the keeper's kernel knows by its own."""
        if keeper == "host":
            return page
        for gpa, hpa, size in self._memory[keeper.removesuffix(".guest")]:
            if gpa <= page < gpa + size:
                return hpa + page - gpa
        raise ValueError(f"{keeper} has no memory at {page:#x}")

    # --- waiting for posted writes, which nobody answers

    def _settled(self, aim: Aim) -> dict[str, Any]:
        """The port's evidence once all that the rogue sent has arrived."""
        deadline = time.monotonic() + _SETTLE
        while True:
            seen: dict[str, Any] = self._supervisor.command(
                "host", "evidence", slot=self._device.slot, pages=sorted(aim.pages)
            )
            if sum(seen["outcomes"].values()) >= aim.accesses or time.monotonic() > deadline:
                self._supervisor.command("host", "unwatch", slot=self._device.slot)
                return seen
            self._supervisor.poll(0.01)

    def _control_arrived(self) -> bool:
        deadline = time.monotonic() + _SETTLE
        command, owner = self._supervisor.command, self._owner
        while not (arrived := command(owner.kernel, "check_control", bdf=owner.bdf)) and time.monotonic() < deadline:
            self._supervisor.poll(0.01)
        command(owner.kernel, "end_control", bdf=owner.bdf)
        return bool(arrived)


def _fault(faults: dict[str, Any], seen: dict[str, Any]) -> Fault | None:
    """The first record of a refusal: of the host's IOMMU, else of the root port."""
    for record in faults["records"]:
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
