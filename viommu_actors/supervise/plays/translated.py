"""Attacks by address translation services: translated requests that nobody translated, and stale translations."""

from __future__ import annotations

from viommu_actors.attacks.catalogue import Target
from viommu_actors.pci.watch import Aim
from viommu_actors.spec.tlp import AddressType
from viommu_actors.supervise.stage import PAGE, PATTERN, Keep, Mission, Stage, Steps, digest_of

_TRANSLATED = int(AddressType.TRANSLATED)


def forged(stage: Stage, target: Target) -> Mission:
    """A write to each canary page by its host-physical address, said to be translated."""
    told = {keeper: stage.command(keeper, "guard", what="canaries") for keeper in stage.keepers(target)}
    pages = stage.guarded_pages(told)
    keeps = tuple(Keep(keeper) for keeper in told)
    return Mission(steps=_writes(pages), aims=_aims(pages), keeps=keeps, before=digest_of(told), guarded=pages)


def stale(stage: Stage, target: Target) -> Mission:
    """The rogue asks for its buffer's translation; the kernel unmaps the buffer, and uses the page for other things.

    The rogue has said that it forgot the translation. What it was told it uses, and it is told the truth.
    """
    kernel = stage.owner.kernel
    stage.rogue([{"do": "invalidations", "policy": "keep"}])
    offer = stage.own("offer", kind="both ways")
    stage.rogue([{"do": "translate", "address": offer["iova"]}])
    stage.command(kernel, "take_back")
    pages = sorted(stage.physical(kernel, page) for page in offer["pages"])

    def end() -> None:
        stage.rogue([{"do": "invalidations", "policy": "honest"}])
        stage.command(kernel, "end_offer")

    before = stage.command(kernel, "digest")
    return Mission(
        steps=_writes(pages), aims=_aims(pages), keeps=(Keep(kernel),), before=before, guarded=pages, after=end
    )


def _writes(pages: list[int]) -> Steps:
    return [{"do": "write", "address": page, "data": PATTERN, "at": _TRANSLATED} for page in pages]


def _aims(pages: list[int]) -> list[Aim]:
    return [Aim(page, page, PAGE) for page in pages]


PLAYS = {"A16": forged, "A17": stale}
