"""A policy as a seccomp program: a binary search over the numbers, so that no call pays for how many there are.

A call without checks reaches its answer by its number alone, so the kernel (since 5.11) keeps the answer in a bitmap,
and does not run the program for it.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import NamedTuple

from viommu_actors.confine.policy import Check, Null, OneOf, Policy
from viommu_actors.spec import seccomp, syscalls


class Architecture(NamedTuple):
    """AUDIT_ARCH of a machine, and the numbers of its system calls."""

    audit: int
    numbers: Mapping[str, int]


#: By the machine's name as uname has it.
ARCHITECTURES = {
    "x86_64": Architecture(seccomp.AUDIT_ARCH_X86_64, syscalls.X86_64),
    "aarch64": Architecture(seccomp.AUDIT_ARCH_AARCH64, syscalls.AARCH64),
}


class Instruction(NamedTuple):
    """struct sock_filter; jumps count the instructions that are skipped."""

    code: int
    if_true: int = 0
    if_false: int = 0
    k: int = 0


_ALLOW = Instruction(seccomp.RETURN, k=seccomp.RET_ALLOW)
_REFUSE = Instruction(seccomp.RETURN, k=seccomp.RET_ERRNO | errno.EPERM)
#: What a library takes for an older kernel, and goes on without.
_UNKNOWN = Instruction(seccomp.RETURN, k=seccomp.RET_ERRNO | errno.ENOSYS)


class _Leaf(NamedTuple):
    """Numbers `first` to `last`, all with the same checks."""

    first: int
    last: int
    checks: tuple[Check, ...]


def program(policy: Policy, architecture: Architecture) -> list[Instruction]:
    """Allows what the policy names, as far as the architecture has it; refuses the rest with EPERM.

    Numbers beyond the newest known are answered by ENOSYS, those of another architecture's calls by EPERM.
    """
    return [
        Instruction(seccomp.LOAD, k=seccomp.DATA_ARCH),
        Instruction(seccomp.JUMP_EQUAL, 1, 0, architecture.audit),
        _REFUSE,
        Instruction(seccomp.LOAD, k=seccomp.DATA_NUMBER),
        Instruction(seccomp.JUMP_GREATER, 0, 1, syscalls.NEWEST),
        _UNKNOWN,
        *_search(_leaves(policy, architecture.numbers)),
    ]


def encode(instructions: list[Instruction]) -> bytes:
    """As the kernel takes it."""
    return b"".join(seccomp.INSTRUCTION.pack(*each) for each in instructions)


def _leaves(policy: Policy, numbers: Mapping[str, int]) -> list[_Leaf]:
    leaves: list[_Leaf] = []
    for number, checks in sorted((numbers[name], checks) for name, checks in policy.items() if name in numbers):
        if leaves and not checks and not leaves[-1].checks and leaves[-1].last == number - 1:
            leaves[-1] = leaves[-1]._replace(last=number)
        else:
            leaves.append(_Leaf(number, number, checks))
    return leaves


def _search(leaves: list[_Leaf]) -> list[Instruction]:
    if len(leaves) == 1:
        return _leaf(leaves[0])
    middle = len(leaves) // 2
    lower, upper = _search(leaves[:middle]), _search(leaves[middle:])
    # A conditional jump reaches 255 instructions, an unconditional one reaches all.
    over = Instruction(seccomp.JUMP, k=len(lower))
    return [Instruction(seccomp.JUMP_GREATER_EQUAL, 0, 1, leaves[middle].first), over, *lower, *upper]


def _leaf(leaf: _Leaf) -> list[Instruction]:
    allowed = [each for check in leaf.checks for each in _check(check)] + [_ALLOW]
    if leaf.first == leaf.last:
        return [Instruction(seccomp.JUMP_EQUAL, 1, 0, leaf.first), _REFUSE, *allowed]
    return [
        Instruction(seccomp.JUMP_GREATER_EQUAL, 0, 1, leaf.first),
        Instruction(seccomp.JUMP_GREATER, 0, 1, leaf.last),
        _REFUSE,
        *allowed,
    ]


def _check(check: Check) -> list[Instruction]:
    """Falls through where the check holds."""
    low = seccomp.DATA_ARGUMENTS + 8 * check.argument
    load = Instruction(seccomp.LOAD, k=low)
    if isinstance(check, OneOf):
        left = range(len(check.values), 0, -1)
        jumps = [Instruction(seccomp.JUMP_EQUAL, n, 0, value) for n, value in zip(left, check.values, strict=True)]
        return [load, *jumps, _REFUSE]
    if isinstance(check, Null):
        high = Instruction(seccomp.LOAD, k=low + 4)
        zero = [Instruction(seccomp.JUMP_EQUAL, 1, 0, 0), _REFUSE]
        return [load, *zero, high, *zero]
    return [load, Instruction(seccomp.JUMP_ANY_BIT, 0, 1, check.bits), _REFUSE]
