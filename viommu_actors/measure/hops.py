"""Operations of a synchronous chain, split into the work of each process and the way between two. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from viommu_actors.measure.trace import Crossing

Hops = list[tuple[str, int]]


def split(
    messages: Iterable[Crossing], asker: str, first: str, last: str, called: Callable[[str], str] | None = None
) -> list[Hops]:
    """(name, nanoseconds) of each part of every operation: from a message of kind `first` to the next of kind `last`.

    Both are `asker`'s own. `messages` are ordered by when they were sent. In a chain nobody sends before it has
    received; a message beside the chain, that has arrived before the chain has come so far, is left out. The parts add
    up to the time from the sending of the first to the reception of the last. `called` names actors, by their roles if
    it is absent.
    """
    operations: list[Hops] = []
    current: list[Crossing] | None = None
    for message in messages:
        own = asker in (message.sender, message.receiver)
        if own and message.kind == first:
            current = []
        if current is None:
            continue
        current.append(message)
        if own and message.kind == last:
            operations.append(chained(current, called or role))
            current = None
    return operations


def chained(messages: Sequence[Crossing], called: Callable[[str], str]) -> Hops:
    """The parts of one operation whose messages these are, in the order in which they were sent."""
    at = messages[0].sent
    hops: Hops = []
    for message in messages:
        if message.received <= at:
            continue
        if message.sent > at:
            hops.append((f"{called(message.sender)} work", message.sent - at))
            at = message.sent
        hops.append((f"wire {called(message.sender)} to {called(message.receiver)}", message.received - at))
        at = message.received
    return hops


def within(operations: Sequence[Hops], wholes: Sequence[int], asker: str) -> list[Hops]:
    """Each operation with what its asker did before and after the chain, so that it adds up to `wholes`.

    `asker` is as the parts call it.
    """
    work = f"{asker} work"
    return [
        [(work, whole - sum(nanoseconds for _, nanoseconds in hops)), *hops]
        for hops, whole in zip(operations, wholes, strict=False)
    ]


def role(actor: str) -> str:
    """What an actor is: `vm0.guest` is a guest; what is of no VM and not the host is a device."""
    _, dot, kind = actor.partition(".")
    return kind if dot else "host" if actor == "host" else "device"


def by_level(vms: Sequence[str], nested: bool) -> Callable[[str], str]:
    """Names for the actors of a VM and of those around it, from the one on the host down: `L2 guest` where VMs are
    `nested`, or roles."""

    def called(actor: str) -> str:
        vm, dot, _ = actor.partition(".")
        return f"L{vms.index(vm) + 1} {role(actor)}" if dot and nested and vm in vms else role(actor)

    return called
