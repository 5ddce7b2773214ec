"""The attack before the boot: no kernel has turned translation on, or even found the device."""

from __future__ import annotations

from viommu_actors.attacks.catalogue import Target
from viommu_actors.pci.watch import Aim
from viommu_actors.spec import pci
from viommu_actors.supervise.stage import PAGE, PATTERN, Keep, Mission, Stage, Steps, digest_of

_PAGES = 16


def window(stage: Stage, target: Target) -> Mission:
    """Writes to pages in the middle of the target's memory; nobody uses it yet."""
    [keeper] = stage.keepers(target)
    base, size = stage.memory_of(keeper)[0]
    middle = base + size // 2 // PAGE * PAGE
    pages = list(range(middle, middle + _PAGES * PAGE, PAGE))
    told = {keeper: stage.command(keeper, "guard_memory", pages=pages)}
    # A device learns its requester ID from the kernel that finds it; this one does not wait for that.
    own = pci.parse_bdf(stage.device.bdf)
    steps: Steps = [{"do": "write", "address": page, "data": PATTERN, "requester": own} for page in pages]
    return Mission(
        steps=steps,
        aims=[Aim(pages[0], pages[-1], PAGE)],
        keeps=(Keep(keeper),),
        before=digest_of(told),
        guarded=stage.guarded_pages(told),
    )


PLAYS = {"A47": window}
