"""Applications of guests: started once their kernel's drivers have done their work, and what became of it."""

from __future__ import annotations

import errno

import msgspec

from viommu_actors.kernel.cmdline import CommandLine
from viommu_actors.kernel.vfio.noiommu import PARAMETER
from viommu_actors.report.results import App, AppPort, Counts, Forwarded, per_packet
from viommu_actors.supervise.plan import guest_of, hypervisor_of, process_of
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.supervise.uplink import leads_out, relay
from viommu_actors.supervise.work import read_counts
from viommu_actors.topology.resolved import ResolvedApp, ResolvedPort, ResolvedTopology, ResolvedVm

_UNSAFE_INTERRUPTS = "vfio_iommu_type1.allow_unsafe_interrupts"


def start(topology: ResolvedTopology, supervisor: Supervisor, vm: ResolvedVm, app: ResolvedApp) -> App:
    """Has an application take its devices, each by the way that it asks for. Raises CommandFailed, ActorGone."""
    process, kernel, hypervisor = process_of(vm.name, app.name), guest_of(vm.name), hypervisor_of(vm.name)
    before = read_counts(supervisor, kernel, hypervisor, process)
    told = supervisor.command(
        process,
        "start",
        drivers={port.bdf: port.driver for port in app.ports},
        rx_interrupts=tuple(port.bdf for port in app.ports if port.rx == "interrupt"),
    )
    counts = read_counts(supervisor, kernel, hypervisor, process)
    counts.subtract(before)
    return App(
        name=process,
        vm=vm.name,
        iova=told["iova"],
        ports=tuple(_port(port, told["refused"].get(port.bdf), granted(topology, vm, app, port)) for port in app.ports),
        taints=tuple(supervisor.command(kernel, "taints")),
        setup=Counts(**counts),
    )


def forward(
    topology: ResolvedTopology, supervisor: Supervisor, vm: ResolvedVm, app: ResolvedApp, row: App
) -> App:
    """`row`, once the application has forwarded packets between its ports, and with their statistics.

    As many as its devices have operations: its own, which come back to it, or where there are others beyond its ports,
    theirs. None where there is no second port, or one that does not work. Raises CommandFailed, ActorGone.
    """
    usable = all(port.granted for port in row.ports) and all(works(topology, port) for port in app.ports)
    packets = sum(topology.operations(port.device) for port in app.ports)
    forwarded = None
    if usable and packets and len(app.ports) > 1 and all(port.rx == "poll" for port in app.ports):
        if any(leads_out(topology, port) for port in app.ports):
            forwarded = relay(topology, supervisor, vm, app)
        else:
            forwarded = _forward(supervisor, vm, app, packets)
    ports = tuple(
        msgspec.structs.replace(told, statistics=supervisor.command(row.name, "statistics", bdf=port.bdf))
        if told.granted
        else told
        for port, told in zip(app.ports, row.ports, strict=True)
    )
    return msgspec.structs.replace(row, forwarded=forwarded, ports=ports)


def _forward(supervisor: Supervisor, vm: ResolvedVm, app: ResolvedApp, packets: int) -> Forwarded:
    actors = guest_of(vm.name), hypervisor_of(vm.name), process_of(vm.name, app.name)
    supervisor.command(actors[2], "forward", packets=len(app.ports))  # the first of all is no steady state
    before = read_counts(supervisor, *actors)
    told = supervisor.command(actors[2], "forward", packets=packets)
    counts = read_counts(supervisor, *actors)
    counts.subtract(before)
    return Forwarded(
        packets=told["packets"],
        verified=told["verified"],
        packets_per_second=round(told["packets"] / told["seconds"], 1) if told["seconds"] else None,
        counts=Counts(**counts),
        per_packet=per_packet(counts, told["packets"]),
        failed=told["failed"],
    )


def granted(topology: ResolvedTopology, vm: ResolvedVm, app: ResolvedApp, port: ResolvedPort) -> bool:
    """Whether a kernel like Linux gives the device to the application so (drivers/vfio/group.c, vfio_iommu_type1.c)."""
    options, setting = CommandLine(vm.cmdline), topology.setting(port.device)
    if not app.root or port.driver == "uio":
        return app.root
    if port.driver == "noiommu":
        return setting == "none" and options.enabled(PARAMETER)
    remaps = vm.viommu is not None and vm.viommu.intremap and "off" not in options.values("intremap")
    return setting != "none" and (remaps or options.enabled(_UNSAFE_INTERRUPTS))


def works(topology: ResolvedTopology, port: ResolvedPort) -> bool:
    """Whether honest work can be done; where a vIOMMU translates, nobody maps anything for a device of UIO."""
    return not (port.driver == "uio" and topology.setting(port.device) == "strict")


def _port(port: ResolvedPort, refused: tuple[int, str] | None, expected: bool) -> AppPort:
    number, reason = refused or (0, "")
    return AppPort(
        device=port.device,
        asked=port.driver,
        granted=refused is None,
        expected=expected,
        errno=errno.errorcode.get(number, str(number)) if refused else "",
        reason=reason,
    )
