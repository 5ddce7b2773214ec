"""Attacks on other devices, past the memory: below a switch, behind a bridge, by configuration requests."""

from __future__ import annotations

from typing import Any

from viommu_actors.attacks.catalogue import Target
from viommu_actors.pci.watch import Aim
from viommu_actors.spec import pci
from viommu_actors.supervise.owner import Owner, owner_of
from viommu_actors.supervise.plays.buffers import read_other
from viommu_actors.supervise.stage import PAGE, PATTERN, Keep, Mission, Stage
from viommu_actors.supervise.supervisor import CommandFailed
from viommu_actors.topology.resolved import ResolvedDevice

_KEEP = "register_digest"
_DWORD = 4


def companion(stage: Stage) -> tuple[ResolvedDevice, Owner] | None:
    """Another device behind the same switch or bridge, and who drives it."""
    own = stage.device
    others = (each for each in stage.topology.devices if each.behind == own.behind and each.name != own.name)
    found = next(others, None) if own.behind is not None else None
    return None if found is None else (found, owner_of(stage.topology, found))


def bridged(stage: Stage, target: Target) -> Mission:
    """A read of a buffer of the other device behind the bridge, by an address that was given to that one."""
    _, owner = _companion(stage)
    return read_other(stage, owner)


def peer_write(stage: Stage, target: Target) -> Mission:
    """A write to the register of the other device below the switch, at the address that the root sees it at."""
    device, owner = _companion(stage)
    offset = stage.command(owner.kernel, "guard_liveness", bdf=owner.bdf)
    space: bytes = stage.command("host", "config_space", bdf=device.bdf)
    bar = int.from_bytes(space[pci.BAR0 : pci.BAR0 + _DWORD], "little") & pci.BAR_MEMORY_MASK
    step = {"do": "write", "address": bar + offset, "data": PATTERN[:_DWORD]}
    return _mission(stage, owner, step, bar + offset)


def config_write(stage: Stage, target: Target) -> Mission:
    """A configuration write, sent up, to the interrupt line register of another device."""
    found = stage.stranger()
    if found is None:
        raise CommandFailed("there is no other device with a driver")
    device, _ = found
    host = Owner("host", None, device.bdf)
    offset = stage.command("host", "guard_interrupt_line", bdf=device.bdf)
    own, victim = pci.parse_bdf(stage.device.bdf), pci.parse_bdf(device.bdf)
    fields = (own, 0, pci.bdf_bus(victim), victim & 0xFF, offset, PATTERN[:1])
    step = {"do": "message", "name": "ConfigRequest", "fields": fields}
    return _mission(stage, host, step, pci.ecam_offset(victim, offset))


def _companion(stage: Stage) -> tuple[ResolvedDevice, Owner]:
    found = companion(stage)
    if found is None:
        raise CommandFailed("there is no other device behind the same switch or bridge")
    return found


def _mission(stage: Stage, owner: Owner, step: dict[str, Any], address: int) -> Mission:
    return Mission(
        steps=[step],
        aims=[Aim(address, address, PAGE)],
        keeps=(Keep(owner.kernel, _KEEP, "restore_register"),),
        before=stage.command(owner.kernel, _KEEP),
    )


PLAYS = {"A15": bridged, "A28": peer_write, "A30": config_write}
