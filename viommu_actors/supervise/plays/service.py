"""Attacks on what everybody else gets of the machine; the canary is another device's work, which has to come out right.

What blocked them is told by the host's own counters of the device's link and of its interrupts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from viommu_actors.attacks.catalogue import Target
from viommu_actors.attacks.evidence import Fault
from viommu_actors.spec.tlp import CompletionStatus
from viommu_actors.supervise.stage import Keep, Mission, Stage, Steps
from viommu_actors.supervise.supervisor import CommandFailed
from viommu_actors.wire.messages import VFIO, CloseHandle, ResetDevice, SetIrqs, UnmapDma

#: What another device does before, and while it lasts.
_OPERATIONS = 8
_FUZZED = 2000
_STORM = 6000
_FAULTS = 3000
_ALL = 1 << 63
#: Mapped by nobody, and no memory anywhere; within the narrowest domain.
_NOWHERE = 0x70_0000_0000


def forged_requests(stage: Stage, target: Target) -> Mission:
    """What a hypervisor asks of the kernel beneath it, for every handle that it may have."""
    requests = [
        request
        for handle in range(3, 19)
        for request in (UnmapDma(handle, 0, _ALL), ResetDevice(handle), SetIrqs(handle, 1, 0, ()), CloseHandle(handle))
    ]
    steps: Steps = [{"do": "raw", "data": VFIO.encode(request)} for request in requests]
    return _mission(stage, steps, "malformed", "message rejected")


def malformed(stage: Stage, target: Target) -> Mission:
    """A fuzzer's messages."""
    return _mission(stage, [{"do": "fuzz", "seed": 44, "times": _FUZZED}], "malformed", "message rejected")


def completions(stage: Stage, target: Target) -> Mission:
    """Completions of every kind, of tags that nobody waits for or somebody does."""
    forged = [(tag, status, 4, bytes(4)) for tag in range(256) for status in CompletionStatus]
    steps: Steps = [{"do": "message", "name": "Completion", "fields": fields} for fields in forged]
    return _mission(stage, steps, "unexpected completion", "completion of no request")


def withhold(stage: Stage, target: Target) -> Mission:
    """No answer to its kernel's read, and at last one that comes too late."""

    def meanwhile() -> None:
        stage.own("config_space")
        stage.rogue([{"do": "withhold", "times": 0}])

    return _mission(stage, [{"do": "withhold", "times": 1}], "completion timeout", "completion timeout", meanwhile)


def faults(stage: Stage, target: Target) -> Mission:
    """Writes to where nothing is."""
    step = {"do": "write", "address": _NOWHERE, "data": bytes(4), "times": _FAULTS}
    return _mission(stage, [step], "", "")


def storm(stage: Stage, target: Target) -> Mission:
    """Its own interrupt, over and over."""
    told = stage.command("host", "guard_device", bdf=stage.device.bdf)
    if told is None:
        raise CommandFailed(f"{stage.device.name} has no interrupt")
    step = {"do": "interrupt", "address": told["address"], "data": told["data"], "times": _STORM}
    before = _interrupts(stage)

    def record() -> Fault | None:
        seen = _interrupts(stage)
        seen.subtract(before)
        held = seen["interrupts_coalesced"]
        return _record(stage, "local APIC", "interrupt beyond the rate", held) if held else None

    return _mission(stage, [step], "", "", record=record)


def _mission(
    stage: Stage,
    steps: Steps,
    counter: str,
    text: str,
    also: Callable[[], None] | None = None,
    record: Callable[[], Fault | None] | None = None,
) -> Mission:
    """`counter` of the device's link counts what was refused, and `text` says what that is."""
    _, owner = next(stage.others())
    serve = {"bdf": owner.bdf, "operations": _OPERATIONS}
    stage.command(owner.kernel, "serve", **serve)
    before = stage.command(owner.kernel, "served")
    counted = _port(stage)[counter]

    def meanwhile() -> None:
        if also is not None:
            also()
        stage.command(owner.kernel, "serve", **serve)

    def refused() -> Fault | None:
        count = _port(stage)[counter] - counted
        return _record(stage, "root port", text, count) if count else None

    return Mission(
        steps=steps,
        aims=None,
        least=1,
        keeps=(Keep(owner.kernel, "served", "end_serve"),),
        before=before,
        meanwhile=meanwhile,
        record=record or (refused if counter else None),
    )


def _record(stage: Stage, unit: str, text: str, count: int) -> Fault:
    return Fault(kind="rejected", unit=unit, source=stage.source, address="", write=False, text=text, count=count)


def _port(stage: Stage) -> Counter[str]:
    ports: dict[str, Any] = stage.command("host", "ports")
    return Counter(ports[stage.device.link])


def _interrupts(stage: Stage) -> Counter[str]:
    counters: dict[str, int] = stage.command("host", "counters")
    return Counter({name: n for name, n in counters.items() if name.startswith("interrupts_")})


PLAYS = {
    "A26": storm,
    "A35": forged_requests,
    "A44": malformed,
    "A45": completions,
    "A46": withhold,
    "A49": faults,
}
