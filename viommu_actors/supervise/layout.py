"""Where a process finds itself in its address space.

What a CPU keeps of a program it keeps by virtual address: where its branches go, and what its instructions decode to.
Processes of one program that take turns on a CPU find it as the one before has left it, if each has the program at the
same place. With a random place for each, as Linux gives it, each finds nothing: of 16 devices on one CPU a read then
takes 7.2 us of a process's own time (user), in place of 4.0.

The random place is a defence for a process whose memory somebody tries to corrupt. A device needs none: its process is
what others are defended from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from viommu_actors.confine.calls import personality
from viommu_actors.spec.privileges import ADDR_NO_RANDOMIZE, PERSONALITY_ASK


@contextmanager
def fixed_layout() -> Iterator[None]:
    """What this thread executes meanwhile has the layout of all that is executed so; where containers may not have it
    (the system call is refused), a random one."""
    try:
        before = personality(PERSONALITY_ASK)
        personality(before | ADDR_NO_RANDOMIZE)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        personality(before)


def can_fix_layout() -> bool:
    """Whether `fixed_layout` has an effect."""
    with fixed_layout():
        try:
            return bool(personality(PERSONALITY_ASK) & ADDR_NO_RANDOMIZE)
        except OSError:
            return False
