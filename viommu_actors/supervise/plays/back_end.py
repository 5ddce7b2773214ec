"""Attacks by the back end of an emulated card, where its means differ from a device's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from viommu_actors.attacks.catalogue import Target
from viommu_actors.attacks.evidence import Fault
from viommu_actors.pci.watch import Aim
from viommu_actors.spec.virtio_net import MIN_FRAME
from viommu_actors.supervise.back_end_stage import BackEndStage
from viommu_actors.supervise.stage import PAGE, PATTERN, Keep, Mission, Stage, Steps
from viommu_actors.supervise.supervisor import CommandFailed

#: What others do before, meanwhile and afterwards.
_OPERATIONS = 8
_FUZZED = 2000
_CALLS = 4000
_FAULTS = 3000
_FORGED = 64
#: Mapped by nobody, and no memory anywhere; within the narrowest domain.
_NOWHERE = 0x70_0000_0000
#: Seconds in which a back end has the queue that a driver has started.
_STARTED = 5.0
_LIES = ("unknown", "long", "ahead")


def stale(stage: Stage, target: Target) -> Mission:
    """The back end has asked for its buffer; the kernel unmaps it, and uses the page for other things. The back end has
    said that it forgot it, and goes on."""
    kernel = stage.owner.kernel
    offer = _held(stage, "keep")
    stage.rogue([{"do": "translate", "address": offer["iova"]}])
    stage.command(kernel, "take_back")
    before = stage.command(kernel, "digest")
    return Mission(
        steps=[{"do": "write", "address": offer["iova"], "data": PATTERN}],
        aims=[Aim(offer["iova"], offer["iova"], PAGE)],
        keeps=(Keep(kernel),),
        before=before,
        guarded=stage.guarded(kernel, offer["pages"]),
    )


def unacknowledged(stage: Stage, target: Target) -> Mission:
    """The kernel unmaps a buffer of the back end, which never says that it forgot it: the unmap ends all the same, and
    so does what the back end is served."""
    own = _back_end(stage)
    kernel = stage.owner.kernel
    stage.undone_by(own.reconnect)
    offer = _held(stage, "ignore")
    stage.rogue([{"do": "translate", "address": offer["iova"]}])

    def unmap() -> None:
        while not stage.evidence()["tried"]:
            stage.supervisor.poll(0.01)
        stage.command(kernel, "take_back")

    steps: Steps = [{"do": "read", "address": offer["iova"], "length": 4}]
    return _service(own, steps, "virtio_cut_off", "invalidation not acknowledged, and the back end is cut off", unmap)


def calls(stage: Stage, target: Target) -> Mission:
    """Interrupts for its queues, though it has used no buffer."""
    steps: Steps = [{"do": "message", "name": "Call", "fields": (queue,), "times": _CALLS} for queue in range(2)]
    return _service(_back_end(stage), steps, "virtio_calls_coalesced", "interrupts that were one with others")


def misshapen(stage: Stage, target: Target) -> Mission:
    """A fuzzer's frames on the vhost wire."""
    own = _back_end(stage)
    # Some say that a queue is broken, and the device needs a reset then.
    stage.undone_by(lambda: stage.driver("listen"))
    stage.undone_by(lambda: stage.own("rebind"))
    stage.undone_by(own.reconnect)
    before = own.rejected()

    def record() -> Fault | None:
        count = own.rejected() - before
        return _record(own, own.hypervisor, "message rejected", count) if count else None

    return _service(own, [{"do": "fuzz", "seed": 44, "times": _FUZZED}], "", "", record=record)


def forged(stage: Stage, target: Target) -> Mission:
    """Acknowledgements of invalidations and stops that nobody asked for, and features told again."""
    steps: Steps = [
        *({"do": "message", "name": "IotlbInvalidated", "fields": (number,)} for number in range(_FORGED)),
        {"do": "message", "name": "VringBase", "fields": (0, 0), "times": _FORGED},
        {"do": "message", "name": "Features", "fields": (0,), "times": _FORGED},
    ]
    return _service(_back_end(stage), steps, "virtio_unexpected", "answer to no request")


def faults(stage: Stage, target: Target) -> Mission:
    """Writes to where nothing is, and misses of that."""
    step = {"do": "write", "address": _NOWHERE, "data": bytes(4), "times": _FAULTS}
    return _service(_back_end(stage), [step], "", "")


def lies(stage: Stage, target: Target) -> Mission:
    """Each kind of lie in the receive queue's used ring; the guest's driver is asked for a frame after each."""
    own = _back_end(stage)
    refused: list[str] = []
    # Whatever it believed, it is set up anew.
    stage.undone_by(lambda: stage.driver("listen"))
    stage.undone_by(lambda: stage.own("rebind"))

    def receive() -> None:
        for number, kind in enumerate(_LIES):
            if number:
                stage.driver("listen")
                _lie(stage, kind)
            wanted = {"first": 0, "count": 2, "size": MIN_FRAME, "destination": bytes(6), "source": bytes(6)}
            try:
                stage.driver("receive", **wanted)
            except CommandFailed as error:
                if "the device has" in str(error):
                    refused.append(str(error))

    def record() -> Fault | None:
        if len(refused) < len(_LIES):
            return None
        return _record(own, stage.owner.kernel, "used ring that cannot be true", len(refused))

    return _service(own, [{"do": "lie", "kind": _LIES[0]}], "", "", receive, record)


# --- what they are made of


def _lie(stage: Stage, kind: str) -> None:
    """As soon as the back end has the queue: it hears of it by its wire, and by another one of what it is to do."""
    deadline = time.monotonic() + _STARTED
    while "refused" in stage.rogue([{"do": "lie", "kind": kind}]) and time.monotonic() < deadline:
        stage.supervisor.poll(0.001)


def _held(stage: Stage, policy: str) -> dict[str, Any]:
    """A buffer of the back end, which from here on deals with invalidations by that policy."""
    offer = stage.offer("both ways")
    stage.undone_by(lambda: stage.rogue([{"do": "invalidations", "policy": "honest"}]))
    stage.rogue([{"do": "invalidations", "policy": policy}])
    return offer


def _service(
    stage: BackEndStage,
    steps: Steps,
    counter: str,
    text: str,
    also: Callable[[], None] | None = None,
    record: Callable[[], Fault | None] | None = None,
) -> Mission:
    """`counter` of the hypervisor counts what was refused, and `text` says what that is; without it, a fault is.

    The first of the others works while the attack lasts, all of the rest afterwards.
    """
    first, *rest = ((owner.kernel, {"bdf": owner.bdf, "operations": _OPERATIONS}) for _, owner in stage.others())
    keeps = (
        Keep(first[0], "served", "end_serve"),
        *(Keep(kernel, "service", arguments=work) for kernel, work in rest),
    )

    def serve() -> None:
        stage.command(first[0], "serve", **first[1])

    def meanwhile() -> None:
        if also is not None:
            also()
        serve()

    serve()
    before = " ".join(stage.command(keep.actor, keep.digest, **keep.arguments) for keep in keeps)
    counted = stage.counters().get(counter, 0)

    def refused() -> Fault | None:
        count = stage.counters().get(counter, 0) - counted
        return _record(stage, stage.hypervisor, text, count) if count else None

    return Mission(
        steps=steps,
        aims=None,
        least=1,
        keeps=keeps,
        before=before,
        meanwhile=meanwhile,
        record=record or (refused if counter else None),
    )


def _record(stage: Stage, unit: str, text: str, count: int) -> Fault:
    return Fault(kind="rejected", unit=unit, source=stage.source, address="", write=False, text=text, count=count)


def _back_end(stage: Stage) -> BackEndStage:
    assert isinstance(stage, BackEndStage), "a play of back ends alone"
    return stage


PLAYS = {
    "A17": stale,
    "A18": unacknowledged,
    "A26": calls,
    "A44": misshapen,
    "A45": forged,
    "A49": faults,
    "A55": lies,
}
