"""Attacks on memory that nobody gave to the device."""

from __future__ import annotations

from typing import Any

from viommu_actors.attacks.catalogue import Target
from viommu_actors.pci.watch import Aim
from viommu_actors.spec import pci
from viommu_actors.spec.tlp import AddressType
from viommu_actors.supervise.stage import PAGE, PATTERN, Keep, Mission, Stage, Steps, digest_of, without
from viommu_actors.supervise.supervisor import CommandFailed

#: A tower of tables may have more pages than one plan has steps.
_MAX_WRITES = 256
#: Beyond any domain's width: neither 39 nor 48 bits reach it.
_BEYOND = 1 << 56
_TOP = 1 << 64
_ALL_BYTES = 0xF


def scan(stage: Stage, target: Target) -> Mission:
    """A dword of each page of the target's memory, but for what is mapped for the device."""
    told = _canaries(stage, target)
    mapped = stage.mapped()
    ranges = [piece for keeper in told for whole in stage.memory_of(keeper) for piece in without(whole, mapped)]
    aims = [Aim(base, base + size - PAGE, PAGE) for base, size in ranges]
    steps = [{"do": "scan", "first": aim.first, "last": aim.last, "stride": aim.stride} for aim in aims]
    return _mission(stage, told, steps, aims)


def write(stage: Stage, target: Target) -> Mission:
    """A write into each canary page."""
    return _writes(stage, _canaries(stage, target))


def tables(what: str) -> Any:
    """A write into each page of what the kernel that drives the device translates by; else the host's."""

    def play(stage: Stage, target: Target) -> Mission:
        for keeper in dict.fromkeys((stage.owner.kernel, "host")):
            told = stage.command(keeper, "guard", what=what)
            if told["pages"]:
                return _writes(stage, {keeper: told})
        raise CommandFailed("no kernel of this topology has translation tables")

    return play


def beyond_width(stage: Stage, target: Target) -> Mission:
    """Writes to the canaries' addresses with a bit on top that no domain has: an adder that wrapped would get there."""
    told = _canaries(stage, target)
    return _writes(stage, told, offset=_BEYOND)


def wrap(stage: Stage, target: Target) -> Mission:
    """One write from the last bytes of the address space on: its second request is for address zero."""
    keeper = stage.keepers(target)[0]
    told = {keeper: stage.command(keeper, "guard", what="first page")}
    head = _TOP - len(PATTERN)
    steps: Steps = [{"do": "write", "address": head, "data": PATTERN * 2}]
    return _mission(stage, told, steps, [Aim(head, head, PAGE), Aim(0, 0, PAGE)])


def zero_length(stage: Stage, target: Target) -> Mission:
    """A read with no byte enabled at each canary page: its answer alone would tell that there is memory."""
    told = _canaries(stage, target)
    pages = stage.aimed_pages(told)
    own = pci.parse_bdf(stage.device.bdf)
    fields = [(own, tag, AddressType.UNTRANSLATED, page, 1, 0, 0) for tag, page in enumerate(pages)]
    steps: Steps = [{"do": "message", "name": "MemRead", "fields": each} for each in fields]
    return _mission(stage, told, steps, [Aim(page, page, PAGE) for page in pages])


def oversize(stage: Stage, target: Target) -> Mission:
    """Single requests that run over the end of each canary page."""
    told = _canaries(stage, target)
    across = [page + PAGE - len(PATTERN) // 2 for page in stage.aimed_pages(told)]
    own = pci.parse_bdf(stage.device.bdf)
    fields = [(own, AddressType.UNTRANSLATED, address, _ALL_BYTES, _ALL_BYTES, PATTERN) for address in across]
    steps: Steps = [{"do": "message", "name": "MemWrite", "fields": each} for each in fields]
    return _mission(stage, told, steps, [Aim(address, address, PAGE) for address in across])


def _canaries(stage: Stage, target: Target) -> dict[str, dict[str, Any]]:
    return {keeper: stage.command(keeper, "guard", what="canaries") for keeper in stage.keepers(target)}


def _writes(stage: Stage, told: dict[str, dict[str, Any]], offset: int = 0) -> Mission:
    addresses = [page + offset for page in stage.aimed_pages(told)][:_MAX_WRITES]
    steps: Steps = [{"do": "write", "address": address, "data": PATTERN} for address in addresses]
    return _mission(stage, told, steps, [Aim(address, address, PAGE) for address in addresses])


def _mission(stage: Stage, told: dict[str, dict[str, Any]], steps: Steps, aims: list[Aim]) -> Mission:
    return Mission(
        steps=steps,
        aims=aims,
        keeps=tuple(Keep(keeper) for keeper in told),
        before=digest_of(told),
        guarded=stage.guarded_pages(told),
    )


PLAYS = {
    "A1": scan,
    "A2": write,
    "A12": write,
    "A31": tables("page tables"),
    "A32": tables("structures"),
    "A36": beyond_width,
    "A39": wrap,
    "A41": zero_length,
    "A42": oversize,
    "A54": write,
}
