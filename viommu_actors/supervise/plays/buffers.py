"""Attacks on what a driver gave to a device: for a time, one way, in part, or to another device."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from viommu_actors.attacks.catalogue import Target
from viommu_actors.pci.watch import Aim
from viommu_actors.spec import pci
from viommu_actors.spec.tlp import AtomicKind
from viommu_actors.supervise.owner import Owner
from viommu_actors.supervise.stage import PAGE, PATTERN, Attacker, Keep, Mission, Stage, Steps
from viommu_actors.supervise.supervisor import CommandFailed

_READ = 64
#: Behind the small buffer, in the same page.
_BEYOND_SMALL = 2048
#: Writes of a stream that is to outlast an unmap.
_STREAM = 2000

#: Of a faulty device: which bits of an address go wrong, how often, and the seed of that.
_LOW_BITS, _HIGH_BITS = range(2, 19), range(46, 52)
_FAULTS = 96
_SEED = 53

Play = Callable[[Stage, Target], Mission]


def write_to(kind: str) -> Play:
    """A write into a buffer of this kind (`attacks.offers`)."""

    def play(stage: Stage, target: Target) -> Mission:
        offer = stage.offer(kind)
        return _mission(stage, offer, [_write(offer["iova"])])

    return play


def read_of(kind: str, offset: int = 0) -> Play:
    """A read of a buffer of this kind."""

    def play(stage: Stage, target: Target) -> Mission:
        offer = stage.offer(kind)
        return _mission(stage, offer, [_read(offer["iova"] + offset)])

    return play


def without_invalidation(stage: Stage, target: Target) -> Mission:
    """The rogue uses its buffer, so that the translation is cached; the kernel clears the entry, and no more."""
    offer = stage.offer("both ways")
    stage.rogue([_read(offer["iova"])])
    stage.own("clear_entry", iova=offer["iova"])
    return _mission(stage, offer | _as_it_stands(stage), [_read(offer["iova"])])


def race(stage: Stage, target: Target) -> Mission:
    """A stream of writes, under way while the kernel unmaps the buffer; what is guarded is the page after that."""
    offer = stage.offer("both ways")
    stream = stage.ask_rogue([_write(offer["iova"]) | {"times": _STREAM}])
    stage.command(stage.owner.kernel, "take_back")
    return _mission(
        stage,
        offer | _as_it_stands(stage),
        # The answer to the read tells that all of the stream has arrived.
        [_write(offer["iova"]), _read(offer["iova"])],
        meanwhile=lambda: stage.supervisor.answer(stream),
    )


def detached(stage: Stage, target: Target) -> Mission:
    """The driver is taken away from the device, buffer and all; it comes back when all is judged."""
    stage.undone_by(lambda: stage.own("rebind"))
    offer = stage.offer("both ways")
    stage.command(stage.owner.kernel, "take_back")
    stage.own("unbind")
    return _mission(stage, offer | _as_it_stands(stage), [_write(offer["iova"])])


def across_page(stage: Stage, target: Target) -> Mission:
    """One transfer from the last bytes of a buffer into what lies behind it."""
    offer = stage.offer("last of a range")
    behind = offer["iova"] + PAGE
    step = {"do": "write", "address": behind - len(PATTERN), "data": PATTERN * 2}
    return _mission(stage, offer, [step], aims=[Aim(behind, behind, PAGE)])


def byte_enables(stage: Stage, target: Target) -> Mission:
    """Odd sizes at odd addresses of a buffer; the kernel writes the same, and what it then has is what must stand."""
    offer = stage.offer("both ways")
    pieces = [(at, size) for at, size in zip(range(1, 512, 37), range(1, 15), strict=False)]
    expected = stage.command(stage.owner.kernel, "expect", pieces=pieces, data=PATTERN)
    steps: Steps = [{"do": "write", "address": offer["iova"] + at, "data": PATTERN[:size]} for at, size in pieces]
    aims = [Aim(offer["iova"] + at & ~3, offer["iova"] + at & ~3, PAGE) for at, _ in pieces]
    return _mission(stage, offer | {"digest": expected, "pages": []}, steps, aims=aims)


def atomics(stage: Stage, target: Target) -> Mission:
    """Each kind of AtomicOp on a buffer that may only be read."""
    offer = stage.offer("read only")
    operands = {AtomicKind.FETCH_ADD: PATTERN[:8], AtomicKind.SWAP: PATTERN[:8], AtomicKind.COMPARE_SWAP: PATTERN[:16]}
    steps: Steps = [
        {"do": "atomic", "kind": int(kind), "address": offer["iova"], "data": data} for kind, data in operands.items()
    ]
    return _mission(stage, offer, steps)


def faulty(stage: Stage, target: Target) -> Mission:
    """Honest writes to a buffer, of which every other address has one bit wrong: at random within a block of pages, or
    beyond all memory."""
    offer = stage.offer("among others")
    iova, own = offer["iova"], stage.mapped()
    chance = random.Random(_SEED)
    addresses = [iova]
    for bit in chance.choices([*_LOW_BITS, *_HIGH_BITS], k=_FAULTS):
        wrong = iova ^ 1 << bit
        # Another mapping of its own is the device's to write, and its driver's to lose: it would end its honest work.
        if wrong ^ iova < PAGE or not any(base <= wrong < base + size for base, size in own):
            addresses += [wrong, iova]
    return _mission(stage, offer, [_write(address) for address in addresses])


def neighbours(stage: Stage, target: Target) -> Mission:
    """A read, by its own requester ID, of a buffer that the same kernel gave to another device."""
    _, owner = _other(stage.neighbour())
    return read_other(stage, owner)


def read_other(stage: Stage, owner: Owner) -> Mission:
    """A read of a buffer that was given to the device of that owner, outside of what the rogue may reach itself."""
    offer = stage.offer("both ways", owner, avoid=stage.mapped())
    return _mission(stage, offer, [_read(offer["iova"])], keeper=owner.kernel)


def spoofed(stage: Stage, target: Target) -> Mission:
    """A write with another device's requester ID, to a buffer of that one."""
    device, owner = _other(stage.stranger())
    offer = stage.offer("both ways", owner)
    requester = pci.parse_bdf(device.bdf)
    step = _write(offer["iova"]) | {"requester": requester}
    return _mission(stage, offer, [step], keeper=owner.kernel, source=device.bdf)


def phantom(stage: Stage, target: Target) -> Mission:
    """Writes to its own buffer with the requester IDs of functions that the device does not have."""
    offer = stage.offer("both ways")
    own = pci.parse_bdf(stage.device.bdf)
    phantoms = [own | function for function in range(1, 8)]
    steps: Steps = [_write(offer["iova"]) | {"requester": requester} for requester in phantoms]
    return _mission(stage, offer, steps, source=pci.format_bdf(phantoms[0]))


# --- what they are made of


def _as_it_stands(stage: Stage) -> dict[str, Any]:
    return {"digest": stage.command(stage.owner.kernel, "digest")}


def _other(found: tuple[Attacker, Owner] | None) -> tuple[Attacker, Owner]:
    if found is None:
        raise CommandFailed("there is no other device with a driver")
    return found


def _write(address: int) -> dict[str, Any]:
    return {"do": "write", "address": address, "data": PATTERN}


def _read(address: int) -> dict[str, Any]:
    return {"do": "read", "address": address, "length": _READ}


def _mission(
    stage: Stage,
    offer: dict[str, Any],
    steps: Steps,
    *,
    aims: list[Aim] | None = None,
    keeper: str = "",
    source: str = "",
    meanwhile: Callable[[], Any] | None = None,
) -> Mission:
    """The offer's pages are guarded. Without `aims`, the steps' addresses."""
    kernel = keeper or stage.owner.kernel
    addresses = dict.fromkeys(step["address"] for step in steps)

    return Mission(
        steps=steps,
        aims=aims or [Aim(address, address, PAGE) for address in addresses],
        keeps=(Keep(kernel),),
        before=offer["digest"],
        guarded=sorted(stage.guarded(kernel, offer["pages"])),
        source=source,
        meanwhile=meanwhile,
    )


PLAYS: dict[str, Play] = {
    "A3": write_to("read only"),
    "A4": read_of("write only"),
    "A5": write_to("unmapped"),
    "A6": without_invalidation,
    "A7": race,
    "A8": write_to("reused"),
    "A9": read_of("small", _BEYOND_SMALL),
    "A10": read_of("both ways"),
    "A11": neighbours,
    "A13": spoofed,
    "A14": phantom,
    "A38": across_page,
    "A40": byte_enables,
    "A43": atomics,
    "A48": detached,
    "A53": faulty,
}
