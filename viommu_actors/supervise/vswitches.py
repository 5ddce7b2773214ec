"""What the virtual switches of a run counted."""

from __future__ import annotations

from typing import Any

from viommu_actors.report.results import Vswitch, VswitchPort
from viommu_actors.supervise.supervisor import ActorGone, Supervisor
from viommu_actors.text import printable
from viommu_actors.topology.resolved import ResolvedTopology

#: A switch is not trusted: of what it tells no more is taken than this, for each of its ports.
_MOST = 32
_LONGEST = 64


def vswitch_rows(topology: ResolvedTopology, supervisor: Supervisor) -> tuple[Vswitch, ...]:
    """Each that is there, by its own word. Raises CommandFailed."""
    rows = []
    for vswitch in topology.vswitches:
        try:
            told = supervisor.command(vswitch.name, "statistics")
        except ActorGone:
            continue
        ports = tuple(
            VswitchPort(device=card.name, statistics=_checked(told.get(card.name) if isinstance(told, dict) else None))
            for _, card in topology.ports_of(vswitch.name)
        )
        rows.append(Vswitch(name=vswitch.name, ports=ports, restarts=supervisor.restarts[vswitch.name]))
    return tuple(rows)


def _checked(told: Any) -> dict[str, int]:
    """Statistics as the switch reports them; what has another shape counts as nothing."""
    pairs = list(told.items())[:_MOST] if isinstance(told, dict) else []
    return {printable(str(name))[:_LONGEST]: count for name, count in pairs if type(count) is int}
