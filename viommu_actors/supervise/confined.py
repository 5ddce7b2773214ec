"""How far the device processes of a run are confined."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from viommu_actors.confine.level import Confinement
from viommu_actors.confine.sandbox import lacking
from viommu_actors.supervise.supervisor import ActorGone, CommandFailed, Supervisor
from viommu_actors.text import printable
from viommu_actors.topology.errors import Refusal
from viommu_actors.topology.values import SandboxMode

_LONGEST = 300


def refuse_unconfined(sandbox: SandboxMode) -> None:
    """Raises Refusal where a topology requires what this machine's kernel does not have."""
    if sandbox == "require" and (reason := lacking()):
        raise Refusal("sandbox", f'"require" cannot be met: {reason}', 'take "auto", or a kernel that has it')


def confinements(supervisor: Supervisor, devices: Iterable[str]) -> dict[str, Confinement]:
    """What each device process says of itself, to be asked before it turns hostile; without those that are lost.

    Raises CommandFailed where it is no such thing.
    """
    found: dict[str, Confinement] = {}
    for device in devices:
        try:
            said = supervisor.command(device, "confinement")
        except ActorGone:
            continue
        try:
            told = msgspec.convert(said, Confinement)
        except msgspec.ValidationError as error:
            raise CommandFailed(f"{device}: confinement: {error}") from None
        found[device] = Confinement(told.landlock, told.seccomp, printable(told.why)[:_LONGEST])
    return found
