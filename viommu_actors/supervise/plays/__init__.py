"""How each attack is played: what is guarded, what the rogue is told, what the others do meanwhile.

A play prepares one attack on one target and returns the `Mission`; whether the attack exists in a topology at all is
said by `missing`. Nothing that is judged stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from viommu_actors.attacks.catalogue import PLAYABLE, Attack, Target
from viommu_actors.supervise.plays import (
    back_end,
    buffers,
    early,
    fabric,
    guests,
    interrupts,
    memory,
    service,
    translated,
)
from viommu_actors.supervise.stage import Mission, Stage

Play = Callable[[Stage, Target], Mission]

#: By the attack's id.
PLAYS: Final[Mapping[str, Play]] = MappingProxyType(
    {
        **memory.PLAYS,
        **buffers.PLAYS,
        **interrupts.PLAYS,
        **translated.PLAYS,
        **early.PLAYS,
        **fabric.PLAYS,
        **service.PLAYS,
        **guests.PLAYS,
    }
)

#: Those that the back end of an emulated card can play, by its means.
BACK_END_PLAYS: Final[Mapping[str, Play]] = MappingProxyType(
    {attack.id: PLAYS[attack.id] for attack in PLAYABLE.values() if attack.back_end and attack.id in PLAYS}
    | back_end.PLAYS
)

#: What has to stand between the root port and the rogue, and where the other device then is.
_NEEDS_BEHIND = {"A15": ("bridge", "behind the same bridge"), "A28": ("switch", "below the same switch")}


def missing(stage: Stage, attack: Attack, target: Target) -> str:
    """Why a topology has no such target for a device; empty where it has."""
    if target is Target.OTHER_GUEST and not stage.other_guests():
        if stage.device.vm is not None and stage.topology.within(stage.device.vm):
            return "the other guests run in the one that has the device, and their memory is a part of its own"
        return "there is no other guest"
    if target is Target.SERVICE and next(stage.others(), None) is None:
        return "there is no other device with a driver"
    if attack.id == "A11" and stage.neighbour() is None:
        return "the kernel drives no other device"
    if attack.id in _NEEDS_BEHIND:
        kind, where = _NEEDS_BEHIND[attack.id]
        behind = stage.device.behind
        if behind is None or stage.topology.component(behind).kind != kind or fabric.companion(stage) is None:
            return f"there is no other device {where}"
    if attack.id == "A31" and not stage.topology.devices and stage.topology.setting(stage.device.name) == "none":
        return "there is no device that any kernel has page tables for"
    if target in (Target.OTHER_DEVICE, Target.OTHER_BUFFER, Target.OTHER_REGISTERS) and stage.stranger() is None:
        return "there is no other device with a driver"
    return ""
