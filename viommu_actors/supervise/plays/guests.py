"""Attacks that a hostile guest makes with its device: what it writes into its tables is to open the host's memory."""

from __future__ import annotations

from typing import Any

from viommu_actors.attacks.catalogue import Target
from viommu_actors.pci.watch import Aim
from viommu_actors.supervise.stage import PAGE, PATTERN, Keep, Mission, Stage

#: Writes of the device, and invalidations of its guest, while both race with the hypervisor.
_STREAM = 1000
_INVALIDATIONS = 200


def foreign_tables(stage: Stage, target: Target) -> Mission:
    """The guest maps a canary page of the host by its host-physical address; the device writes there."""
    iova, told = _prepared(stage)
    stage.own("point_entry", iova=iova, target=told["pages"][0])
    return _mission(iova, told)


def double_fetch(stage: Stage, target: Target) -> Mission:
    """The guest's other processor puts the host's page into the entry and takes it out while the entry is synced, and
    the device writes all the time. At the end the host's page stands there, and the device writes once more.
    """
    iova, told = _prepared(stage)
    owner, page = stage.owner, told["pages"][0]
    race = {"bdf": owner.bdf, "iova": iova, "target": page, "times": _INVALIDATIONS}
    racing = stage.supervisor.ask(owner.kernel, "race_entry", **race)
    stage.rogue([_write(iova) | {"times": _STREAM}])
    stage.supervisor.answer(racing)
    stage.own("point_entry", iova=iova, target=page)
    return _mission(iova, told)


def _prepared(stage: Stage) -> tuple[int, dict[str, Any]]:
    """A page that is lawfully mapped for the device, and what of the host's is guarded."""
    told: dict[str, Any] = stage.command("host", "guard", what="canaries")
    iova: int = stage.offer("both ways")["iova"]
    stage.undone_by(lambda: stage.own("mend_entry", iova=iova))
    return iova, told


def _write(iova: int) -> dict[str, Any]:
    return {"do": "write", "address": iova, "data": PATTERN}


def _mission(iova: int, told: dict[str, Any]) -> Mission:
    return Mission(
        steps=[_write(iova)],
        aims=[Aim(iova, iova, PAGE)],
        keeps=(Keep("host"),),
        before=told["digest"],
        guarded=list(told["pages"]),
    )


PLAYS = {"A33": foreign_tables, "A34": double_fetch}
