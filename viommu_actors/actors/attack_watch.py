"""Control commands about what a device does at its port while it attacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from viommu_actors.pci.field_watch import Field, FieldWatch
from viommu_actors.pci.root_complex import RootComplex
from viommu_actors.pci.watch import Aim, Watch
from viommu_actors.spec import pci


class AttackWatch:
    """One watch for each link that is watched."""

    def __init__(self, root: RootComplex) -> None:
        self._root = root
        self._watches: dict[str, Watch] = {}
        self._fields: dict[str, FieldWatch] = {}

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """By command name."""
        return {
            "watch": self.watch,
            "evidence": self.evidence,
            "watch_fields": self.watch_fields,
            "field_evidence": self.field_evidence,
            "unwatch": self.unwatch,
            "ports": self.ports,
        }

    def watch(self, link: str, aims: tuple[tuple[int, int, int], ...] | None, guarded: tuple[int, ...]) -> None:
        """From here on the port's transactions are judged: `aims` as `pci.watch.Aim`, `guarded` physical pages."""
        self._watches[link] = Watch(None if aims is None else [Aim(*aim) for aim in aims], guarded)
        self._root.ports[link].log = self._watches[link]

    def unwatch(self, link: str) -> None:
        """Forgets it."""
        self._watches.pop(link, None)
        self._fields.pop(link, None)
        self._root.stop_log(link)

    def evidence(self, link: str) -> dict[str, Any]:
        """What was seen by now."""
        return told_of(self._watches[link])

    def watch_fields(self, link: str, fields: tuple[tuple[Any, ...], ...], spared: int | None) -> None:
        """From here on the port's transactions are sorted into `fields` (`pci.field_watch.Field`)."""
        self._fields[link] = FieldWatch([Field(*field) for field in fields], spared)
        self._root.ports[link].log = self._fields[link]

    def field_evidence(self, link: str) -> list[dict[str, Any]]:
        """What was seen by now: a row {"field", "way", ...} for each, as of `evidence`."""
        seen = self._fields[link].seen
        return [{"field": name, "way": way} | told_of(watch) for (name, way), watch in seen.items()]

    def ports(self) -> dict[str, dict[str, int]]:
        """Counters of each port, by the name of its link."""
        ports = self._root.ports
        return {link: {str(kind): n for kind, n in port.counters.items()} for link, port in ports.items()}


def told_of(watch: Watch) -> dict[str, Any]:
    """What a watch has seen by now, as plain values."""
    refused = watch.first_refusal
    return {
        "tried": watch.tried,
        "reached": watch.reached,
        "outcomes": {outcome.value: n for outcome, n in watch.outcomes.items()},
        "first_refusal": refused
        and {
            "outcome": refused.outcome.value,
            "source": pci.format_bdf(refused.requester),
            "address": refused.address,
            "write": refused.write,
            "reason": refused.reason,
        },
    }
