"""Claim C2 looked at: the assignment is exclusive, and the guest sees the same device as the host."""

from __future__ import annotations

from viommu_actors.report.results import Assignment, Difference
from viommu_actors.supervise.owner import assignment_to, kernel_beneath
from viommu_actors.supervise.plan import guest_of, hypervisor_of
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.resolved import ResolvedDevice, ResolvedTopology, ResolvedVm

_DWORD = 4


def inspect(
    topology: ResolvedTopology, supervisor: Supervisor, device: ResolvedDevice, machine: ResolvedVm
) -> Assignment:
    """Opens the device's group a second time, and compares both kernels' configuration space dword by dword.

    They are the kernel of `machine`, which has the device, and the one that this VM runs on.
    """
    vm, assign = machine.name, assignment_to(machine, device)
    command = supervisor.command
    # Another VM's hypervisor where there is one: the claim is about a second user.
    others = (each.name for each in topology.vms if each.name != vm and each.parent == machine.parent)
    second_open = command(hypervisor_of(next(others, vm)), "open_again", device=f"0000:{assign.host_bdf}")
    decisions = command(hypervisor_of(vm), "decisions", bdf=assign.bdf)
    host = command(kernel_beneath(machine), "config_space", bdf=assign.host_bdf)
    guest = command(guest_of(vm), "config_space", bdf=assign.bdf)
    differences = []
    for offset in range(0, len(host), _DWORD):
        ours, theirs = (int.from_bytes(space[offset : offset + _DWORD], "little") for space in (host, guest))
        if ours != theirs:
            reasons = [each for each in decisions if each["offset"] == offset and (ours ^ theirs) & each["mask"]]
            decided = 0
            for each in reasons:
                decided |= each["mask"]
            why = "; ".join(dict.fromkeys(each["why"] for each in reasons)) if not (ours ^ theirs) & ~decided else ""
            differences.append(
                Difference(offset=f"{offset:#04x}", host=f"{ours:#010x}", guest=f"{theirs:#010x}", why=why)
            )
    return Assignment(
        device=device.name,
        vm=vm,
        host=assign.host_bdf if machine.parent is None else f"{machine.parent} {assign.host_bdf}",
        guest=assign.bdf,
        second_open=second_open,
        differences=tuple(differences),
    )
