"""Results of a run: the object of `results.json` and of `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, field

from viommu_actors.app.pci import UserDriver
from viommu_actors.attacks.catalogue import Setting
from viommu_actors.attacks.evidence import Evidence, Fault
from viommu_actors.attacks.expected import Driver, Outcome
from viommu_actors.attacks.verdict import Observed
from viommu_actors.confine.level import Level

Role = Literal["host", "hypervisor", "guest", "device", "app"]


class Process(Struct, kw_only=True, frozen=True, omit_defaults=True):
    """`sandbox` is how far a device process is confined, `sandbox_detail` by what, and why no further."""

    role: Role
    name: str
    pid: int
    sandbox: Level | None = None
    sandbox_detail: str = ""


class Verdict(Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One attack of one device on one target: what was expected, what was observed, and the proofs.

    `withheld_by` is told of a nested VM's device whose DMA was blocked for want of a mapping: the kernels, host or
    guest, in whose tables the way to the target ends. The host's IOMMU is what blocks it at any level.
    """

    device: str
    driver: Driver
    attack: str
    target: str
    setting: Setting
    expected: Outcome
    observed: Observed
    evidence: Evidence
    withheld_by: str = ""

    @property
    def ok(self) -> bool:
        return self.observed == self.expected


class Counts(Struct, kw_only=True, frozen=True):
    """What the same counters say outside of the row's own steady state (`Io`)."""

    traps: int = 0
    vfio_maps: int = 0
    vfio_unmaps: int = 0
    pte_writes: int = 0
    invalidations: int = 0
    device_tlb_invalidations: int = 0
    queue_tail_writes: int = 0
    dma_maps: int = 0
    dma_unmaps: int = 0
    interrupts: int = 0
    interrupts_forwarded: int = 0
    system_calls: int = 0
    wakes: int = 0


class PerPacket(Struct, kw_only=True, frozen=True):
    """Some of the counts for each packet, in the mean."""

    traps: float
    vfio_maps: float
    vfio_unmaps: float
    interrupts: float
    system_calls: float


class LevelCounts(Struct, kw_only=True, frozen=True):
    """What a VM's hypervisor and kernel counted while a device below them, or of their own, worked."""

    vm: str
    counts: Counts


class Wire(Struct, kw_only=True, frozen=True):
    """Messages on one wire, both ways together, by their kind."""

    wire: str
    kinds: dict[str, int]

    @property
    def messages(self) -> int:
        return sum(self.kinds.values())


class Io(Struct, kw_only=True, frozen=True):
    """Honest work of one device. The counts cover its steady state, `setup` the rest.

    `operations` are single-page buffers transferred, `bytes` their payload, `verified` whether every byte was as
    sent. `traps` counts every exit to the hypervisor, `queue_tail_writes` the kernel's writes of the tail of its unit's
    invalidation queue, of which each is a trap where that unit is a vIOMMU.
    `device_tlb_invalidations` are the host's, of devices whose ATS is on; the others are of the kernel that drives it.
    `dma_maps` and `dma_unmaps` are the driver's calls of the DMA API.
    `interrupts` are those that the kernel took, `interrupts_forwarded` those of them that came through the hypervisor.
    `driver` is how an application has the device, "kernel" where a kernel's driver does; `system_calls` are the
    application's, and `wakes` are how often an interrupt woke it. `packets_per_second`, by the wall clock, and
    `per_packet` are told of a nic's own traffic, of which a packet is two operations.
    `should_work` is False where the setting is expected to stop honest work too; `failed` says what then happened, and
    `fault` is the first record of it.
    `receiver`: the same of the other end, for frames over a cable, a buffer there for each one here.
    `peer` is the card that frames went to from this one, both of a virtual switch, `peer_driver` who drove it, `wires`
    all messages meanwhile, control aside. `send_us` is what the driver's send of a frame took, the median by the wall
    clock in microseconds: until the device had it, and until it stood in the receiver's buffer over a virtual switch.
    `repeated` counts frames that came twice, of a switch that was started again meanwhile.
    `levels`, of a device of a nested VM: the same of each VM, from the one on the host down to its own.
    `map_unmap_us`, where VMs are nested: what a page's map and unmap take the kernel that drives the device, the median
    by the wall clock in microseconds.
    """

    device: str
    mapping: Literal["dynamic", "static"]
    operations: int
    bytes: int
    verified: bool
    traps: int
    vfio_maps: int
    vfio_unmaps: int
    pte_writes: int = 0
    invalidations: int = 0
    device_tlb_invalidations: int = 0
    queue_tail_writes: int = 0
    dma_maps: int = 0
    dma_unmaps: int = 0
    interrupts: int = 0
    interrupts_forwarded: int = 0
    driver: UserDriver | Literal["kernel"] = "kernel"
    system_calls: int = 0
    wakes: int = 0
    packets_per_second: float | None = None
    per_packet: PerPacket | None = None
    should_work: bool = True
    failed: str = ""
    fault: Fault | None = None
    setup: Counts = field(default_factory=Counts)
    receiver: Counts | None = None
    peer: str = ""
    peer_driver: UserDriver | Literal["kernel"] = "kernel"
    wires: tuple[Wire, ...] = ()
    send_us: float | None = None
    repeated: int = 0
    levels: tuple[LevelCounts, ...] = ()
    map_unmap_us: float | None = None

    @property
    def ok(self) -> bool:
        return self.verified if self.should_work else not self.verified and self.fault is not None


class AppPort(Struct, kw_only=True, frozen=True):
    """A device that an application asked for by `asked`: `granted`, or the kernel's refusal.

    `statistics` are the driver's of its honest work, in DPDK's names, and the device's own as `hw_...`.
    """

    device: str
    asked: UserDriver
    granted: bool
    expected: bool
    errno: str = ""
    reason: str = ""
    statistics: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.granted == self.expected


class Forwarded(Struct, kw_only=True, frozen=True):
    """Packets that an application received on one port and sent on the next, and what they cost, all together.

    `verified`: all that were on their way came back as they were made; else `failed` says why none counts. `ends` are
    the devices beyond the ports that they went between, both ways; empty where they came back to the application.
    """

    packets: int
    verified: bool
    packets_per_second: float | None
    counts: Counts
    per_packet: PerPacket | None = None
    failed: str = ""
    ends: tuple[str, ...] = ()


class VswitchPort(Struct, kw_only=True, frozen=True):
    """A virtual switch's own statistics of one port, since its process was started."""

    device: str
    statistics: dict[str, int]


class Vswitch(Struct, kw_only=True, frozen=True):
    """A virtual switch, and how often it was started again."""

    name: str
    ports: tuple[VswitchPort, ...]
    restarts: int = 0


class App(Struct, kw_only=True, frozen=True):
    """An application and its devices. `iova` is "VA" or "PA", `setup` what its start cost, all its ports together.

    `taints` are the letters of its kernel's taint afterwards. `forwarded` is there where all of several ports work.
    """

    name: str
    vm: str
    iova: str
    ports: tuple[AppPort, ...]
    taints: tuple[str, ...]
    setup: Counts
    forwarded: Forwarded | None = None

    @property
    def ok(self) -> bool:
        return all(port.ok for port in self.ports) and (self.forwarded is None or self.forwarded.verified)


class Machine(Struct, kw_only=True, frozen=True):
    """What a VM cost: `build` by the hypervisor alone, `boot` until the guest's kernel and its drivers were up."""

    vm: str
    build: Counts
    boot: Counts


class Difference(Struct, kw_only=True, frozen=True):
    """A dword of configuration space that guest and host see differently; `why` is empty if nobody decided so."""

    offset: str
    host: str
    guest: str
    why: str


class Assignment(Struct, kw_only=True, frozen=True):
    """A device assigned to a VM: what a second open of its group came to, and how the guest's view of it differs."""

    device: str
    vm: str
    host: str
    guest: str
    second_open: str
    differences: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        return self.second_open == "EBUSY" and all(difference.why for difference in self.differences)


class Modelled(Struct, kw_only=True, frozen=True):
    """One device's row of I/O by the modelled clock: its counts charged with the costs of the table `table`.

    Costs are in `unit`. `steps` are what an operation is charged for each step, `per_operation` their sum,
    `per_mapping` that of one map or unmap (the published c; None where nothing was mapped), `per_io` with the rest of
    the I/O on top (A + 2c). `percent_of_line_rate` is the throughput min(1, B / (A + 2c)) in percent of `line_rate`.
    `misfit` tells why the figures mean nothing, where the table is for counts of another kind of system.
    """

    clock: Literal["modelled"] = "modelled"
    table: str
    device: str
    mapping: Literal["dynamic", "static"]
    unit: str
    steps: dict[str, float]
    per_operation: float
    per_mapping: float | None
    per_io: float
    percent_of_line_rate: float
    line_rate: str
    misfit: str = ""


class Absent(Struct, kw_only=True, frozen=True):
    """An attack that was asked for and does not apply, and why."""

    device: str
    attack: str
    target: str
    reason: str


class Results(Struct, kw_only=True, frozen=True):
    """`ok`: every verdict is the expected one, all I/O verified, and what else the launcher checked held."""

    topology: str
    ok: bool
    processes: tuple[Process, ...]
    verdicts: tuple[Verdict, ...]
    io: tuple[Io, ...]
    faults: tuple[Fault, ...]
    assignments: tuple[Assignment, ...] = ()
    absent: tuple[Absent, ...] = ()
    modelled: tuple[Modelled, ...] = ()
    machines: tuple[Machine, ...] = ()
    apps: tuple[App, ...] = ()
    vswitches: tuple[Vswitch, ...] = ()


class RogueResults(Struct, kw_only=True, frozen=True):
    """What a rogue got at that came while the topology was up; `io` is honest work of the other devices, after it.

    `process` is the rogue's; `reports` are a script's own words, which decided nothing.
    """

    device: str
    ok: bool
    process: Process
    verdicts: tuple[Verdict, ...]
    absent: tuple[Absent, ...] = ()
    io: tuple[Io, ...] = ()
    reports: tuple[str, ...] = ()


def per_packet(counts: Mapping[str, int], packets: int) -> PerPacket | None:
    """None without any packet."""
    if not packets:
        return None
    return PerPacket(**{name: round(counts[name] / packets, 3) for name in PerPacket.__struct_fields__})


def as_expected(
    verdicts: tuple[Verdict, ...],
    io: tuple[Io, ...],
    assignments: tuple[Assignment, ...] = (),
    apps: tuple[App, ...] = (),
) -> bool:
    """Whether every verdict is the expected one, every byte was verified, every assignment exclusive and faithful, and
    every application has what it should have."""
    faithful = all(verdict.ok for verdict in verdicts) and all(assignment.ok for assignment in assignments)
    return faithful and all(row.ok for row in io) and all(app.ok for app in apps)


def to_json(results: Results, indent: int = 2) -> str:
    return msgspec.json.format(msgspec.json.encode(results), indent=indent).decode()


def read_results(path: Path) -> Results:
    """Raises OSError, and msgspec.DecodeError for what is no results file."""
    return msgspec.json.decode(path.read_bytes(), type=Results)
