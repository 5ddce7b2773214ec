"""What each attack is directed at: the addresses that the rogue is told, and who guards what lies there.

The launcher gives the rogue all that an attacker could ever learn. Foreign memory is probed by host-physical
address, that of the kernel which drives the device by this kernel's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from viommu_actors.attacks.catalogue import Attack, Target
from viommu_actors.pci.watch import Aim
from viommu_actors.supervise.owner import Owner
from viommu_actors.supervise.plan import HOST_HIGH_BASE, HOST_LOW_MEMORY, Plan, guest_of
from viommu_actors.supervise.supervisor import CommandFailed, Supervisor
from viommu_actors.topology.resolve import ResolvedDevice, ResolvedTopology

_PAGE = 4096
#: What the rogue writes: a whole number of dwords that no canary holds.
_PATTERN = b"\xde\xad\xbe\xef" * 16
#: A tower of tables may have more pages than one plan has steps.
_MAX_WRITES = 256
_INTERRUPTS = 8

Ranges = list[tuple[int, int]]


class Mission(NamedTuple):
    """One attack on one target, ready to be played.

    `steps` is the rogue's plan (`devices.rogue_plan`), `aims` the addresses that it has to try, `guarded` the
    host-physical pages that must stay out of its reach. The `keepers` guard them; `digest` is what they said of their
    state before, by the command `digest_command`.
    """

    steps: list[dict[str, Any]]
    aims: list[Aim]
    guarded: list[int]
    keepers: tuple[str, ...]
    digest: str
    digest_command: str = "digest"

    @property
    def aimed(self) -> int:
        return sum(aim.size for aim in self.aims)


class Aims:
    """Missions of one device."""

    def __init__(
        self, topology: ResolvedTopology, plan: Plan, supervisor: Supervisor, device: ResolvedDevice, owner: Owner
    ) -> None:
        self._topology = topology
        self._memory = plan.memory
        self._command = supervisor.command
        self._device = device
        self._owner = owner

    def missing(self, target: Target) -> str:
        """Why this topology has no such target; empty where it has."""
        if target is Target.OTHER_GUEST and not self._other_guests():
            return "there is no other guest"
        if target is Target.OTHER_DEVICE and self._victim() is None:
            return "there is no other device with a driver"
        return ""

    def mission(self, attack: Attack, target: Target) -> Mission:
        """Has the keepers guard the target, and plans the attack. Raises CommandFailed."""
        if attack.access == "interrupt":
            return self._interrupts(attack, target)
        if target is Target.PAGE_TABLES:
            return self._tables("page tables" if attack.id == "A31" else "structures")
        keepers = self._keepers(target)
        told = {keeper: self._command(keeper, "guard", what="canaries") for keeper in keepers}
        if attack.access == "read":
            return self._scan(told)
        return self._writes(told)

    # --- memory

    def _keepers(self, target: Target) -> tuple[str, ...]:
        if target is Target.HOST_MEMORY:
            return ("host",)
        if target is Target.OTHER_GUEST:
            return self._other_guests()
        return (self._owner.kernel,)

    def _other_guests(self) -> tuple[str, ...]:
        return tuple(guest_of(vm.name) for vm in self._topology.vms if vm.name != self._device.vm)

    def _tables(self, what: str) -> Mission:
        for keeper in dict.fromkeys((self._owner.kernel, "host")):
            told = self._command(keeper, "guard", what=what)
            if told["pages"]:
                return self._writes({keeper: told})
        raise CommandFailed("no kernel of this topology has translation tables")

    def _scan(self, told: dict[str, dict[str, Any]]) -> Mission:
        mapped = self._mapped()
        ranges = [piece for keeper in told for whole in self._memory_of(keeper) for piece in _without(whole, mapped)]
        aims = [Aim(base, base + size - _PAGE, _PAGE) for base, size in ranges]
        steps = [{"do": "scan", "first": aim.first, "last": aim.last, "stride": aim.stride} for aim in aims]
        return Mission(steps, aims, self._guarded(told), tuple(told), _digest(told))

    def _writes(self, told: dict[str, dict[str, Any]]) -> Mission:
        addresses: list[int] = []
        for keeper, guarded in told.items():
            own = keeper == self._owner.kernel
            addresses += guarded["pages"] if own else [self._physical(keeper, page) for page in guarded["pages"]]
        addresses = addresses[:_MAX_WRITES]
        steps = [{"do": "write", "address": address, "data": _PATTERN} for address in addresses]
        aims = [Aim(address, address, _PAGE) for address in addresses]
        return Mission(steps, aims, self._guarded(told), tuple(told), _digest(told))

    def _guarded(self, told: dict[str, dict[str, Any]]) -> list[int]:
        return sorted(self._physical(keeper, page) for keeper, guarded in told.items() for page in guarded["pages"])

    def _mapped(self) -> Ranges:
        """What the device may reach lawfully: no address to probe foreign memory by."""
        if self._topology.setting(self._device.name) != "strict":
            return []
        mapped = self._command(self._owner.kernel, "mapped", bdf=self._owner.bdf)
        return [(iova, size) for iova, size in mapped]

    def _memory_of(self, keeper: str) -> Ranges:
        """(base, size) of the keeper's memory by the addresses that the rogue would use."""
        if keeper == "host":
            return [(HOST_HIGH_BASE, self._topology.host.memory - HOST_LOW_MEMORY)]
        own = keeper == self._owner.kernel
        return [(gpa if own else hpa, size) for gpa, hpa, size in self._memory[keeper.removesuffix(".guest")]]

    def _physical(self, keeper: str, page: int) -> int:
        """Host-physical address of a page that the keeper's kernel knows by its own."""
        if keeper == "host":
            return page
        for gpa, hpa, size in self._memory[keeper.removesuffix(".guest")]:
            if gpa <= page < gpa + size:
                return hpa + page - gpa
        raise CommandFailed(f"{keeper} has no memory at {page:#x}")

    # --- interrupts

    def _interrupts(self, attack: Attack, target: Target) -> Mission:
        told = self._told_of(target)
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
        aim = Aim(address, address, 4)
        return Mission(steps, [aim], [], ("host",), told["digest"], "interrupt_digest")

    def _told_of(self, target: Target) -> dict[str, Any]:
        told: dict[str, Any] | None
        if target is Target.OTHER_DEVICE:
            victim = self._victim()
            told = None if victim is None else self._command("host", "guard_device", bdf=victim.bdf)
        elif target is Target.HOST_VECTOR:
            told = self._command("host", "guard_vector")
        else:
            told = self._command("host", "guard_entry", beyond=target is Target.BEYOND_TABLE)
        if told is None:
            raise CommandFailed(f"no other device has an interrupt that {self._device.name} could forge")
        return told

    def _victim(self) -> ResolvedDevice | None:
        others = (device for device in self._topology.devices if device.name != self._device.name)
        return next((device for device in others if device.operations), None)


def _digest(told: dict[str, dict[str, Any]]) -> str:
    return " ".join(guarded["digest"] for guarded in told.values())


def _without(whole: tuple[int, int], holes: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The (base, size) pieces of `whole` that no hole touches; holes ascend."""
    base, end = whole[0], sum(whole)
    for hole, size in holes:
        if hole < end and hole + size > base:
            if hole > base:
                yield base, hole - base
            base = hole + size
    if base < end:
        yield base, end - base


def accesses(steps: Sequence[dict[str, Any]]) -> int:
    """How many requests a mission makes at least, for its deadline."""
    return sum((step["last"] - step["first"]) // step["stride"] + 1 if step["do"] == "scan" else 1 for step in steps)
