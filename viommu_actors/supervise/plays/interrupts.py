"""Attacks on the host's interrupts; the canary is the victim's count of them."""

from __future__ import annotations

from typing import Any

from viommu_actors.attacks.catalogue import Target
from viommu_actors.pci.watch import Aim
from viommu_actors.supervise.stage import Keep, Mission, Stage, Steps
from viommu_actors.supervise.supervisor import CommandFailed

_MESSAGES = 8
_KEEP = Keep("host", "interrupt_digest")


def forge(stage: Stage, target: Target) -> Mission:
    """The message that would raise the target, over and over."""
    told = _told_of(stage, target)
    message = {"do": "interrupt", "address": told["address"], "data": told["data"]}
    return _mission(told, [message] * _MESSAGES)


def misshapen(stage: Stage, target: Target) -> Mission:
    """A read of the interrupt window, and writes that are no aligned dword."""
    told = _told_of(stage, target)
    address, data = told["address"], told["data"].to_bytes(4, "little")
    return _mission(
        told,
        [
            {"do": "read", "address": address, "length": 4},
            {"do": "write", "address": address, "data": data * 2},
            {"do": "write", "address": address, "data": data[:2]},
            {"do": "write", "address": address + 1, "data": data[:2]},
            {"do": "write", "address": address + 2, "data": data},
        ],
    )


def tamper(stage: Stage, target: Target) -> Mission:
    """The target's message put into the device's own interrupt table, and that interrupt raised."""
    told = _told_of(stage, target)
    step = {"do": "tamper", "address": told["address"], "data": told["data"], "times": _MESSAGES}
    return _mission(told, [step])


def _told_of(stage: Stage, target: Target) -> dict[str, Any]:
    told: dict[str, Any] | None
    if target is Target.OTHER_DEVICE:
        victim = next(iter(stage.others()), None)
        told = None if victim is None else stage.command("host", "guard_device", bdf=victim[0].bdf)
    elif target is Target.HOST_VECTOR:
        told = stage.command("host", "guard_vector")
    else:
        told = stage.command("host", "guard_entry", beyond=target is Target.BEYOND_TABLE)
    if told is None:
        raise CommandFailed(f"no other device has an interrupt that {stage.device.name} could forge")
    return told


def _mission(told: dict[str, Any], steps: Steps) -> Mission:
    aim = Aim(told["address"], told["address"], 4)
    return Mission(steps=steps, aims=[aim], keeps=(_KEEP,), before=told["digest"])


PLAYS = {"A22": forge, "A23": forge, "A24": forge, "A25": misshapen, "A27": tamper}
