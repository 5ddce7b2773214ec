"""Control commands about what the back ends of emulated cards do to a guest's memory while they attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from viommu_actors.actors.attack_watch import told_of
from viommu_actors.hypervisor.virtio.function import VirtioNetFunction
from viommu_actors.pci.watch import Aim, Watch


class BackEndWatch:
    """One watch for each card that is watched; as `attack_watch.AttackWatch`, by the card's name."""

    def __init__(self, cards: Mapping[str, VirtioNetFunction]) -> None:
        self._cards = cards
        self._watches: dict[str, Watch] = {}

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """By command name."""
        return {"watch": self.watch, "evidence": lambda device: told_of(self._watches[device]), "unwatch": self.unwatch}

    def watch(self, device: str, aims: tuple[tuple[int, int, int], ...] | None, guarded: tuple[int, ...]) -> None:
        """From here on each access is judged: `aims` as `pci.watch.Aim`, `guarded` pages of the guest."""
        watch = self._watches[device] = Watch(None if aims is None else [Aim(*aim) for aim in aims], guarded)
        self._cards[device].front_end.watch(watch)

    def unwatch(self, device: str) -> None:
        """Forgets it."""
        self._watches.pop(device, None)
        self._cards[device].front_end.watch(None)
