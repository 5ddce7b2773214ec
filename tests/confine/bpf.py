"""Runs a seccomp program as the kernel's interpreter does, to see what it answers."""

from __future__ import annotations

from collections.abc import Sequence

from viommu_actors.confine.program import Instruction
from viommu_actors.spec import seccomp


def run(program: Sequence[Instruction], arch: int, number: int, arguments: Sequence[int] = ()) -> tuple[int, set[int]]:
    """The answer, and at which offsets of struct seccomp_data the program looked."""
    given = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = seccomp.DATA.pack(number, arch, 0, *(value % (1 << 64) for value in given))
    accumulator, at, looked = 0, 0, set()
    while True:
        code, if_true, if_false, k = program[at]
        at += 1
        if code == seccomp.RETURN:
            return k, looked
        if code == seccomp.LOAD:
            accumulator = int.from_bytes(data[k : k + 4], "little")
            looked.add(k)
        elif code == seccomp.JUMP:
            at += k
        else:
            holds = {
                seccomp.JUMP_EQUAL: accumulator == k,
                seccomp.JUMP_GREATER: accumulator > k,
                seccomp.JUMP_GREATER_EQUAL: accumulator >= k,
                seccomp.JUMP_ANY_BIT: bool(accumulator & k),
            }[code]
            at += if_true if holds else if_false
