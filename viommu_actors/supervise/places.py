"""Where rogues stand: in the place of a device's own firmware, or in a slot, and what becomes of it when they leave."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from msgspec.structs import replace

from viommu_actors.confine.level import Confinement
from viommu_actors.pci.root_port import slot_name
from viommu_actors.supervise.actor_plan import ActorPlan
from viommu_actors.supervise.owner import Owner, owner_of
from viommu_actors.supervise.plan import Plan, newcomer
from viommu_actors.supervise.supervisor import ActorDied, ActorGone, CommandFailed, Interrupted, Supervisor
from viommu_actors.topology.guess import did_you_mean
from viommu_actors.topology.resolve import EDU_DMA_MASK_BITS
from viommu_actors.topology.resolved import ResolvedDevice, ResolvedTopology

#: Seconds in which a rogue hands over what it holds of the device; a script may be busy for ever.
_HAND_OVER = 2.0
#: Seconds in which whoever has a device open lets go of it, once it is gone.
_LET_GO = 10.0
_MAX_PAYLOAD = 4096
#: Of a driver at a time, while rogues come and go: honest work goes on.
OPERATIONS = 8


Model = Literal["nic", "edu"]


class Refused(Exception):
    """What was asked for cannot be had; the text says why, and what can."""


@dataclass
class Attached:
    """A rogue and its device. `peer` asked for it, and takes it away when it goes; None: it stays."""

    device: ResolvedDevice
    owner: Owner
    #: what the kernel has set up of a function whose firmware it took the place of, as it was handed over last
    state: Any
    #: how far its process was confined before it turned hostile; None where it does not say
    confinement: Confinement | None = None
    peer: bytes | None = None


class Places:
    """Device processes that take the place of others; `topology` is what stands at the moment."""

    def __init__(
        self, topology: ResolvedTopology, plan: Plan, supervisor: Supervisor, tell: Callable[[str], None]
    ) -> None:
        self.topology = topology
        self._plan = plan
        self._supervisor = supervisor
        self._tell = tell
        self._processes = 0
        #: slots that devices were pulled out of, and what they were known by
        self._vacant: dict[int, str] = {}

    def take_over(self, name: str) -> Attached:
        """A rogue in the place of a device's own firmware. Raises Refused, CommandFailed."""
        device = self._wanted(name)
        state = self._supervisor.command(device.name, "state")
        attached = Attached(device, owner_of(self.topology, device), state)
        self._replace(attached, expendable=True)
        self._tell(f"{device.name}: a rogue has taken over its link")
        return attached

    def plug(self, slot: int | None, model: Model) -> Attached:
        """A rogue in a free slot, the first where none is named. Raises Refused, CommandFailed."""
        device = self._newcomer(slot, model)
        plan = newcomer(device, self.topology.sandbox)
        supervisor = self._supervisor
        try:
            supervisor.enlist(plan, device.name)
            found = supervisor.command("host", "plug", link=device.link, device=device.name, address=_link_of(plan))
            if [each["bdf"] for each in found] != [device.bdf]:
                supervisor.command("host", "pull", link=device.link)
                raise CommandFailed(f"the host found {found or 'nothing'} in slot {device.slot}, not {device.bdf}")
        except BaseException:
            supervisor.dismiss(device.name)
            raise
        self.topology = replace(self.topology, devices=(*self.topology.devices, device))
        driver = found[0]["driver"] or "none"
        self._tell(f"{device.name}: plugged into slot {device.slot} as {device.bdf}, driver {driver}")
        return Attached(device, Owner("host", None, device.bdf), None)

    def swap(self, name: str, model: Model) -> Attached:
        """A device is pulled out, and a rogue is plugged in where it stood. Raises Refused, CommandFailed."""
        device = self._wanted(name)
        if device.behind is not None:
            raise Refused(f'"{name}" is behind {device.behind}, which has no hot-plug slots; --as takes over its link')
        try:
            self._pull(device)
        finally:
            self._supervisor.retire(name)
            self._supervisor.fallen[name] = f"{name} was pulled out of slot {device.slot}"
            self._plan.pull(name)
        self._vacant[device.slot] = device.bdf
        self._tell(f"{name}: pulled out of slot {device.slot}")
        return self.plug(device.slot, model)

    def leave(self, attached: Attached) -> None:
        """A rogue is taken away, dead or alive. Whatever fails in it, its device is gone then."""
        try:
            if attached.state is None:
                self._unplug(attached)
            else:
                self._give_back(attached)
        except (ActorDied, Interrupted):
            raise
        except Exception as error:
            self._tell(f"{attached.device.name} is gone: {error}")
            self._supervisor.retire(attached.device.name)
            self._supervisor.fallen[attached.device.name] = str(error)
            raise

    def _give_back(self, attached: Attached) -> None:
        """The device's own firmware comes back, and its driver finds it so."""
        name, supervisor = attached.device.name, self._supervisor
        before = attached.state
        with suppress(CommandFailed, ActorGone):
            attached.state = supervisor.each({name: {}}, "state", _HAND_OVER)[name]
        try:
            self._replace(attached, expendable=False)
        except CommandFailed:
            # What a rogue hands over may be anything; what it was given was not.
            attached.state = before
            self._replace(attached, expendable=False)
        trouble = []
        for kernel, what, bdf in (
            # What the rogue left behind in it goes, and the quarantine that a silent device-TLB came to.
            ("host", "reset", attached.device.bdf),
            (attached.owner.kernel, "rebind", attached.owner.bdf),
        ):
            try:
                supervisor.command(kernel, what, bdf=bdf)
            except (CommandFailed, ActorGone) as error:
                trouble.append(str(error))
        self._tell("; ".join([f"{name}: its own firmware is back", *trouble]))

    def _unplug(self, attached: Attached) -> None:
        """The rogue's device is pulled out of its slot, which is free from then on."""
        device = attached.device
        self._pull(device)
        self._supervisor.dismiss(device.name)
        self._tell(f"{device.name}: unplugged from slot {device.slot}")

    # ---

    def _pull(self, device: ResolvedDevice) -> None:
        """A device is out of its slot, and the host has let go of it."""
        self.topology = replace(
            self.topology, devices=tuple(each for each in self.topology.devices if each.name != device.name)
        )
        self._supervisor.command("host", "pull", link=device.link)
        deadline = time.monotonic() + _LET_GO
        while not self._supervisor.command("host", "settle_slot", slot=device.slot):
            if time.monotonic() > deadline:
                raise CommandFailed(f"{device.name} is out of its slot, but still in use after {_LET_GO:g} s")
            self._supervisor.poll(0.01)

    def _newcomer(self, slot: int | None, model: Model) -> ResolvedDevice:
        """A device for a free slot."""
        taken = {device.slot for device in self.topology.devices}
        slots_there = {spare.slot: spare.bdf for spare in self.topology.host.spare} | self._vacant
        free = {place: bdf for place, bdf in slots_there.items() if place not in taken}
        slots = ", ".join(map(str, free)) or "none"
        if slot is not None and slot not in free:
            raise Refused(f"slot {slot} is not free; free slots: {slots} (host.spare_slots in the topology)")
        if not free:
            raise Refused("no slot is free; give the topology more: host.spare_slots")
        slot = next(iter(free)) if slot is None else slot
        names = {*(device.name for device in self.topology.devices), *(vm.name for vm in self.topology.vms)}
        name = next(name for number in count(1) if (name := f"rogue{number}") not in names)
        return ResolvedDevice(
            name=name,
            model=model,
            slot=slot,
            link=slot_name(slot),
            behind=None,
            bdf=free[slot],
            requester=free[slot],
            peer=None,
            max_payload=_MAX_PAYLOAD,
            dma_mask_bits=EDU_DMA_MASK_BITS if model == "edu" else None,
            operations=OPERATIONS,
            ats=False,
            rogue=(),
            vm=None,
            app=None,
        )

    def _wanted(self, name: str) -> ResolvedDevice:
        gone = self._supervisor.lost.get(name) or self._supervisor.fallen.get(name)
        if gone:
            raise Refused(f'"{name}" is gone: {gone}')
        names = [device.name for device in self.topology.devices]
        if self.topology.is_card(name):
            raise Refused(f'a virtual switch serves "{name}"; its attacks stand in the topology (virtio_net.rogue)')
        if name not in names:
            raise Refused(f'there is no device "{name}"; {known(name, names)}')
        device = self.topology.device(name)
        if device.app is not None:
            raise Refused(f'application "{device.app}" has "{name}"; its attacks stand in the topology (device.rogue)')
        return device

    def _replace(self, attached: Attached, expendable: bool) -> None:
        """Another process goes on as the device. Until the host has its link, the one before is still there."""
        device, supervisor = attached.device, self._supervisor
        plan = self._plan.again(device.name)
        self._processes += 1
        name = f"{device.name}.{self._processes}"
        try:
            supervisor.enlist(plan, name)
            supervisor.command(name, "adopt", state=attached.state)
            supervisor.command("host", "relink", link=device.link, address=_link_of(plan))
        except BaseException:
            supervisor.dismiss(name)
            raise
        supervisor.succeed(name, device.name, expendable)


def known(wrong: str, names: list[str]) -> str:
    """What was probably meant, and what there is."""
    near = did_you_mean(wrong, names)
    there = f"there are {', '.join(names)}" if names else "there are none"
    return f"{near} {there}" if near else there


def _link_of(plan: ActorPlan) -> str:
    address: str = plan.configuration["link"]["address"]
    return address
