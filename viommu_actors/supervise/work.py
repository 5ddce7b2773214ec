"""Honest work of one device, and what it cost: counts on both sides of the hypervisor, taken between commands."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import msgspec

from viommu_actors.report.results import Counts, Io, LevelCounts, Wire, per_packet
from viommu_actors.supervise.owner import Owner
from viommu_actors.supervise.plan import guest_of, hypervisor_of
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.resolved import ResolvedDevice, ResolvedVirtioNet

#: Result key -> (whose counter, its name there)
_COUNTED = {
    "traps": ("hypervisor", "traps"),
    "vfio_maps": ("hypervisor", "vfio_maps"),
    "vfio_unmaps": ("hypervisor", "vfio_unmaps"),
    "pte_writes": ("kernel", "pte_writes"),
    "invalidations": ("kernel", "invalidations"),
    "device_tlb_invalidations": ("host", "device_tlb_invalidations"),
    "queue_tail_writes": ("kernel", "queue_tail_writes"),
    "dma_maps": ("kernel", "dma_maps"),
    "dma_unmaps": ("kernel", "dma_unmaps"),
    "interrupts": ("kernel", "interrupts"),
    "interrupts_forwarded": ("hypervisor", "interrupts_forwarded"),
    "system_calls": ("app", "system_calls"),
    "wakes": ("app", "wakes"),
}


def read_counts(supervisor: Supervisor, kernel: str, hypervisor: str | None, app: str | None = None) -> Counter[str]:
    """What a kernel, its hypervisor and an application on it, if there are, counted up to now, by result key."""
    own: dict[str, int] = supervisor.command(kernel, "counters")
    sides: dict[str, dict[str, int]] = {"hypervisor": {}, "kernel": own, "host": own, "app": {}}
    if app is not None:
        sides["app"] = supervisor.command(app, "counters")
    if hypervisor is not None:
        sides["hypervisor"] = supervisor.command(hypervisor, "counters")
        sides["host"] = supervisor.command("host", "counters")
    return Counter({key: sides[side].get(name, 0) for key, (side, name) in _COUNTED.items()})


#: Frames on their way at a time; a nic's receive ring has room for more.
_BURST = 8
_WARM_UP = 2
#: No less than the buffers that an application's virtio-net receives into, in turn.
_POOL = 192
#: Maps of which the median is told.
_TIMED = 64
#: Operations told to a driver at a time: few seconds, and an even number, for a driver may do them in pairs.
_SLICE = 1000
#: Seconds between two words on how far it is.
_TOLD_EVERY = 5.0


class Work:
    """One device's driver at work, a kernel's or an application's; `tell(text)` reports how far it is."""

    def __init__(
        self,
        supervisor: Supervisor,
        device: ResolvedDevice | ResolvedVirtioNet,
        owner: Owner,
        tell: Callable[[str], None],
    ) -> None:
        self._supervisor = supervisor
        self._device = device.name
        self._is_nic = isinstance(device, ResolvedDevice) and device.model == "nic"
        self._owner = owner
        self._tell = tell
        self._told = time.monotonic()
        self._setup: Counter[str] = Counter()

    def set_up(self) -> None:
        """Tears the driver down and sets it up again, for the counts of both."""
        self._counted(self._setup, self._owner, "rebind")

    def alone(self, operations: int) -> Io:
        """The driver's own traffic: an edu's copies, a nic's loopback."""
        # The first buffers build the upper levels of the page tables, which stay: that is no steady state.
        self._counted(self._setup, self._owner, "io", operations=_WARM_UP)
        before, beneath = self._counts(self._owner), self._levels()
        done = size = 0
        verified, mapping, seconds, failed = True, None, 0.0, ""
        for first in range(0, operations, _SLICE):
            part = self._do(self._owner, "io", operations=min(_SLICE, operations - first))
            seconds, failed = seconds + part["seconds"], part["failed"] or failed
            done, size, mapping = done + part["operations"], size + part["bytes"], part["mapping"]
            verified &= part["verified"]
            self._tell_of(done, operations, "operations")
        counts = self._counts(self._owner)
        counts.subtract(before)
        levels = self._levels()
        for vm, counted in levels.items():
            counted.subtract(beneath[vm])
        rate = done / 2 / seconds if self._is_nic and done and seconds else None
        return msgspec.structs.replace(
            self._row(counts, done, size, verified, mapping),
            packets_per_second=rate and round(rate, 1),
            per_packet=per_packet(counts, done // 2) if self._is_nic else None,
            failed=failed,
            levels=tuple(LevelCounts(vm=vm, counts=Counts(**counted)) for vm, counted in levels.items()),
        )

    def time_maps(self) -> float:
        """What the kernel takes for a page's map and unmap: the median in microseconds."""
        taken: array[int] = array("q", self._do(self._owner, "time_maps", pages=1, count=_TIMED)["map_unmap"])
        return round(median(taken) / 1000, 1)

    def send_to(self, peer: Owner, frames: int) -> Io:
        """Frames to another device, as long as both can have, checked there byte for byte; both ends are counted."""
        own, other = self._do(self._owner, "netdev"), self._do(peer, "netdev")
        size = min(own["max_frame"], other["max_frame"])
        self._counted(self._setup, self._owner, "listen")
        self._counted(self._setup, peer, "listen")
        sender: Counter[str] = Counter()
        receiver: Counter[str] = Counter()
        verified = True
        taken, repeated = array("q"), 0
        for first in range(0, frames, _BURST):
            burst = min(_BURST, frames - first)
            told = {"first": first, "count": burst, "size": size, "destination": other["mac"]}
            taken.frombytes(self._counted(sender, self._owner, "send", **told))
            came = self._counted(receiver, peer, "receive", **told, source=own["mac"])
            verified, repeated = verified and came["verified"], repeated + came["repeated"]
            self._tell_of(first + burst, frames, "frames")
        row = self._row(sender, frames, frames * size, verified, own["mapping"], Counts(**receiver))
        return msgspec.structs.replace(row, send_us=round(median(taken) / 1000, 1), repeated=repeated)

    def send_through(self, peer: Owner, frames: int) -> Io:
        """As `send_to`, over a virtual switch, and with the messages on every wire."""
        supervisor = self._supervisor
        self._greet(peer)
        # The first frames build the upper levels of page tables, and bring each buffer of an application's pool, which
        # is mapped once, into the switch's cache of translations.
        warmed = self.send_to(peer, _POOL if self._owner.app or peer.app else _WARM_UP)
        restarts, before = supervisor.restarts.total(), supervisor.messages()
        row = self.send_to(peer, frames)
        wires = [
            Wire(wire=wire, kinds=dict(counts - before.get(wire, Counter())))
            for wire, counts in sorted(supervisor.messages().items())
            if not wire.startswith("control:")
        ]
        # What a switch that died had counted is lost with it.
        whole = supervisor.restarts.total() == restarts
        return msgspec.structs.replace(
            row,
            verified=row.verified and warmed.verified,
            repeated=row.repeated + warmed.repeated,
            per_packet=per_packet(msgspec.structs.asdict(row), frames),
            wires=tuple(wire for wire in wires if wire.kinds and whole),
        )

    def _greet(self, peer: Owner) -> None:
        """The peer sends a frame first: a switch that knows where it is floods nobody else with what is for it."""
        own, other = self._do(self._owner, "netdev"), self._do(peer, "netdev")
        told = {"first": 0, "count": 1, "size": min(own["max_frame"], other["max_frame"]), "destination": own["mac"]}
        self._do(self._owner, "listen")
        self._do(peer, "listen")
        self._do(peer, "send", **told)
        self._do(self._owner, "receive", **told, source=other["mac"])

    def woken_by(self, peer: Owner, frames: int) -> Io:
        """Frames of another device to an application that sleeps until each of them; the counts are its own end's."""
        own, other = self._do(self._owner, "netdev"), self._do(peer, "netdev")
        size = min(own["max_frame"], other["max_frame"])
        self._counted(self._setup, self._owner, "listen")
        self._do(peer, "listen")
        counts: Counter[str] = self._counts(self._owner)
        verified = True
        for first in range(frames):
            told = {"first": first, "count": 1, "size": size, "destination": own["mac"]}
            awaited = self._supervisor.ask(
                self._owner.driver, "receive", bdf=self._owner.bdf, **told, source=other["mac"]
            )
            self._do(peer, "send", **told)
            verified &= self._supervisor.answer(awaited)["verified"]
            self._tell_of(first + 1, frames, "frames")
        before, counts = counts, self._counts(self._owner)
        counts.subtract(before)
        return self._row(counts, frames, frames * size, verified, own["mapping"])

    def failed(self, why: str) -> Io:
        """The row of work that came to nothing."""
        row = self._row(dict.fromkeys(_COUNTED, 0), 0, 0, False, "dynamic")
        return msgspec.structs.replace(row, failed=why)

    def _row(
        self,
        counts: Mapping[str, Any],
        operations: int,
        size: int,
        verified: bool,
        mapping: Any,
        receiver: Counts | None = None,
    ) -> Io:
        return Io(
            device=self._device,
            mapping=mapping,
            operations=operations,
            bytes=size,
            verified=verified,
            setup=Counts(**self._setup),
            receiver=receiver,
            **counts,
        )

    def _counted(self, counts: Counter[str], owner: Owner, name: str, **arguments: Any) -> Any:
        """Has a driver do something to its device, and adds what it cost."""
        before = self._counts(owner)
        result = self._do(owner, name, **arguments)
        counts.update(self._counts(owner))
        counts.subtract(before)
        return result

    def _levels(self) -> dict[str, Counter[str]]:
        return {vm: read_counts(self._supervisor, guest_of(vm), hypervisor_of(vm)) for vm in self._owner.levels}

    def _counts(self, owner: Owner) -> Counter[str]:
        return read_counts(self._supervisor, owner.kernel, owner.hypervisor, owner.app)

    def _do(self, owner: Owner, name: str, **arguments: Any) -> Any:
        return self._supervisor.command(owner.driver, name, bdf=owner.bdf, **arguments)

    def _tell_of(self, done: int, of: int, what: str) -> None:
        if done < of and time.monotonic() - self._told > _TOLD_EVERY:
            self._told = time.monotonic()
            self._tell(f"{self._device}: {done} of {of} {what} done")
