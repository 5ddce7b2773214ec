"""Attacks by address translation services: translated requests that nobody translated, and stale translations."""

from __future__ import annotations

from typing import Any

from viommu_actors.attacks.catalogue import Target
from viommu_actors.attacks.evidence import Fault
from viommu_actors.pci.watch import Aim
from viommu_actors.spec.tlp import AddressType
from viommu_actors.supervise.stage import PAGE, PATTERN, Keep, Mission, Stage, Steps, digest_of

_TRANSLATED = int(AddressType.TRANSLATED)
#: Operations of each other device.
_WORK = 8
#: Looks at what a rogue has done, and seconds between them.
_PATIENCE = 200
_MOMENT = 0.01


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
    offer = _held(stage, "keep")
    stage.rogue([{"do": "translate", "address": offer["iova"]}])
    stage.command(kernel, "take_back")
    pages = sorted(stage.physical(kernel, page) for page in offer["pages"])

    before = stage.command(kernel, "digest")
    return Mission(steps=_writes(pages), aims=_aims(pages), keeps=(Keep(kernel),), before=before, guarded=pages)


def unanswered(stage: Stage, target: Target) -> Mission:
    """The kernel unmaps the rogue's buffer, and the rogue does not complete the invalidation: the others work on.

    In the end a reset brings the rogue back from its quarantine, and its driver with it.
    """
    kernel = stage.owner.kernel
    stage.undone_by(lambda: stage.own("rebind"))
    stage.undone_by(lambda: stage.command("host", "reset", bdf=stage.device.bdf))
    offer = _held(stage, "ignore")
    keeps = tuple(
        Keep(owner.kernel, "service", arguments={"bdf": owner.bdf, "operations": _WORK}) for _, owner in stage.others()
    )
    before = " ".join(stage.command(keep.actor, keep.digest, **keep.arguments) for keep in keeps)
    timeouts = _timeouts(stage)

    def unmap() -> None:
        # It has used the buffer by then: what is judged is that the unmap ends.
        for _ in range(_PATIENCE):
            if stage.command("host", "evidence", link=stage.device.link)["tried"]:
                break
            stage.supervisor.poll(_MOMENT)
        stage.command(kernel, "take_back")

    def record() -> Fault | None:
        count = _timeouts(stage) - timeouts
        if not count:
            return None
        return Fault(
            kind="rejected",
            unit="host iommu",
            source=stage.device.bdf,
            address=f"{offer['iova']:#x}",
            write=False,
            text="invalidation time-out (ITE), and the device is blocked",
            count=count,
        )

    return Mission(
        steps=[{"do": "read", "address": offer["iova"], "length": 4}],
        aims=None,
        least=1,
        keeps=keeps,
        before=before,
        meanwhile=unmap,
        record=record,
    )


def _held(stage: Stage, policy: str) -> dict[str, Any]:
    """A buffer of the rogue, which from here on deals with invalidations by that policy."""
    offer = stage.offer("both ways")
    stage.undone_by(lambda: stage.rogue([{"do": "invalidations", "policy": "honest"}]))
    stage.rogue([{"do": "invalidations", "policy": policy}])
    return offer


def _timeouts(stage: Stage) -> int:
    counters: dict[str, int] = stage.command("host", "counters")
    return counters.get("ats_timeouts", 0)


def _writes(pages: list[int]) -> Steps:
    return [{"do": "write", "address": page, "data": PATTERN, "at": _TRANSLATED} for page in pages]


def _aims(pages: list[int]) -> list[Aim]:
    return [Aim(page, page, PAGE) for page in pages]


PLAYS = {"A16": forged, "A17": stale, "A18": unanswered}
