"""Frames that an application forwards between others: who is beyond its ports, and what they send through it."""

from __future__ import annotations

from itertools import pairwise

from viommu_actors.report.results import Counts, Forwarded, per_packet
from viommu_actors.supervise.owner import Owner, owner_of, owner_of_card
from viommu_actors.supervise.plan import guest_of, hypervisor_of, process_of
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.supervise.work import read_counts
from viommu_actors.topology.resolved import ResolvedApp, ResolvedPort, ResolvedTopology, ResolvedVm

#: Frames on their way at a time; every receive ring has room for more.
_BURST = 8


def mate_of(topology: ResolvedTopology, card: str) -> tuple[str, Owner]:
    """The next card of the same virtual switch, which is the first again after the last. Raises KeyError."""
    vswitch = topology.card(card).vswitch
    ports = topology.ports_of(vswitch)
    index = next(index for index, (_, each) in enumerate(ports) if each.name == card)
    vm, mate = ports[(index + 1) % len(ports)]
    return mate.name, owner_of_card(vm, mate)


def leads_out(topology: ResolvedTopology, port: ResolvedPort) -> bool:
    """Whether what is sent by a port does not come back by it."""
    return topology.is_card(port.device) or topology.device(port.device).peer is not None


def beyond(topology: ResolvedTopology, port: ResolvedPort) -> tuple[str, Owner] | None:
    """A device that a kernel drives and whose frames come in by this port of an application; None without one."""
    if topology.is_card(port.device):
        name, owner = mate_of(topology, port.device)
    else:
        peer = topology.device(port.device).peer
        if peer is None:
            return None
        name, owner = peer, owner_of(topology, topology.device(peer))
    return None if owner.app is not None else (name, owner)


def relay(topology: ResolvedTopology, supervisor: Supervisor, vm: ResolvedVm, app: ResolvedApp) -> Forwarded | None:
    """Has those beyond each port send frames to those beyond the next, as many as the port's device has operations.

    None where not every port has somebody there. Raises CommandFailed, ActorGone.
    """
    found = [beyond(topology, port) for port in app.ports]
    ends = [end for end in found if end is not None]
    if len(ends) < max(2, len(app.ports)):
        return None
    process = process_of(vm.name, app.name)
    counted = guest_of(vm.name), hypervisor_of(vm.name), process
    for _, end in ends:
        supervisor.command(end.driver, "listen", bdf=end.bdf)
    for port in app.ports:
        supervisor.command(process, "listen", bdf=port.bdf)
    before = read_counts(supervisor, *counted)
    packets, failed, verified = 0, "", True
    for port, (source, sink) in zip(app.ports, pairwise([*ends, ends[0]]), strict=True):
        own, other = (supervisor.command(end.driver, "netdev", bdf=end.bdf) for end in (source[1], sink[1]))
        size = min(own["max_frame"], other["max_frame"])
        for first in range(0, topology.operations(port.device), _BURST):
            burst = min(_BURST, topology.operations(port.device) - first)
            told = {"first": first, "count": burst, "size": size, "destination": other["mac"]}
            awaited = supervisor.ask(process, "relay", packets=burst)
            supervisor.command(source[1].driver, "send", bdf=source[1].bdf, **told)
            came = supervisor.command(sink[1].driver, "receive", bdf=sink[1].bdf, source=own["mac"], **told)
            relayed = supervisor.answer(awaited)
            packets += relayed["packets"]
            failed, verified = failed or relayed["failed"], verified and came["verified"]
    counts = read_counts(supervisor, *counted)
    counts.subtract(before)
    return Forwarded(
        packets=packets,
        verified=verified and not failed,
        packets_per_second=None,
        counts=Counts(**counts),
        per_packet=per_packet(counts, packets),
        failed=failed,
        ends=tuple(name for name, _ in ends),
    )
