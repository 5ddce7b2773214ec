"""A transcript run as a whole, and which of its differences count.

A unit that follows the specification differs from a recording of QEMU where QEMU deviates. Such a difference is
excused only by a deviation that is on the project's list and that accounts for it: the transcript is run again on
units of the specification with one listed deviation, or with as few as it takes. Those must agree with the recording in
every operation so far, and where a deviation replaces so much that it could hide something else, it must have made a
difference. That unit then runs beside, so that what follows is excused by the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from msgspec import UNSET

from viommu_actors.memory import Unclaimed
from viommu_actors.replay import transcript as t
from viommu_actors.replay.assigned import AssignedMachine
from viommu_actors.replay.compare import Difference, difference
from viommu_actors.replay.machine import Machine
from viommu_actors.replay.memory import MemoryFull
from viommu_actors.vtd.deviations import REPLACING, UNLISTED, Quirk, quirks_of

Result = Literal["passed", "failed", "information"]
Mode = Literal["spec", "qemu"]
#: Operations with their line numbers.
Numbered = Sequence[tuple[int, t.Operation]]


#: The versions of QEMU that were recorded: transcripts of the unit, and of assigned devices.
VERSION: Final = (7, 2)
SHADOW_VERSION: Final = (11, 1)


class Advisory(NamedTuple):
    """A difference that does not count, and why."""

    difference: Difference
    why: str


class Outcome(NamedTuple):
    """Of one transcript: `difference` is the first that counts, or of a file that is information the first at all."""

    result: Result
    difference: Difference | None
    advisory: list[Advisory]


def judge(header: t.Header, operations: Numbered, mode: Mode) -> Outcome:
    """Runs it on a fresh unit. Raises Malformed where it asks for memory that it has not."""
    if mode == "qemu":
        return _as_qemu(header, operations)
    return _as_specified(header, operations)


def first_difference(header: t.Header, operations: Numbered, quirks: frozenset[Quirk]) -> Difference | None:
    """Where a unit with these deviations first differs from a recording. Raises Malformed."""
    return next((found for found, _ in _differences(Machine(header, quirks), operations)), None)


def _as_qemu(header: t.Header, operations: Numbered) -> Outcome:
    """All must be the same, but for the messages of plug-in and machine reset."""
    machine: Machine
    if header.of_shadow:
        machine = AssignedMachine(header, quirks_of(SHADOW_VERSION), as_qemu=True)
    else:
        machine = Machine(header, quirks_of(VERSION))
    first = None
    advisory = []
    for found, operation in _differences(machine, operations):
        if isinstance(operation, t.Shadow) and operation.impl is not UNSET:
            advisory.append(Advisory(found, str(operation.impl)))
        elif first is None:
            first = found
    return Outcome("passed" if first is None else "failed", first, advisory)


def _as_specified(header: t.Header, operations: Numbered) -> Outcome:
    def machine(quirks: frozenset[Quirk]) -> Machine:
        return AssignedMachine(header, quirks, as_qemu=False) if header.of_shadow else Machine(header, quirks)

    counts = header.class_ == "spec" or header.of_shadow
    first = None
    advisory = []
    explanations = _Explanations(machine, operations)
    for found, operation in _differences(machine(frozenset()), operations):
        if operation.impl is not UNSET:
            advisory.append(Advisory(found, str(operation.impl)))
        elif first is None:
            quirks = explanations.of(found.line) if counts else None
            if quirks is None:
                first = found
            else:
                advisory.append(Advisory(found, ", ".join(sorted(quirk.id for quirk in quirks))))
    if not counts:
        return Outcome("information", first, advisory)
    return Outcome("passed" if first is None else "failed", first, advisory)


def _differences(machine: Machine, operations: Numbered) -> Iterator[tuple[Difference, t.Operation]]:
    for line, operation in operations:
        found = _run(machine, line, operation)
        if found is not None:
            yield found, operation


def _run(machine: Machine, line: int, operation: t.Operation) -> Difference | None:
    try:
        return difference(line, operation, machine.run(operation))
    except Unclaimed as error:
        raise t.Malformed(line, f"{t.name_of(operation)}: {error}") from None
    except MemoryFull as error:
        raise t.Malformed(line, f"{t.name_of(operation)}: {error}") from None


class _Beside:
    """A unit with some deviations, run as far as it was asked for, until it disagrees with the recording."""

    def __init__(self, quirks: frozenset[Quirk], machine: Machine, operations: Numbered) -> None:
        self.quirks = quirks
        self._machine = machine
        self._operations = iter(operations)
        self._line = 0
        self._agrees = True

    @property
    def deviated(self) -> bool:
        """Whether each of its deviations that could hide something else has made a difference so far."""
        counters = self._machine.unit.counters
        return all(counters[quirk.counter] for quirk in self.quirks & REPLACING)

    def agrees_until(self, line: int) -> bool:
        """In everything up to that line, but for operations that are implementation-defined."""
        while self._agrees and self._line < line:
            self._line, operation = next(self._operations)
            found = _run(self._machine, self._line, operation)
            self._agrees = found is None or operation.impl is not UNSET
        return self._agrees


class _Explanations:
    """Which listed deviations account for a difference."""

    def __init__(self, machine: Callable[[frozenset[Quirk]], Machine], operations: Numbered) -> None:
        self._machine = machine
        self._operations = operations
        self._beside: _Beside | None = None

    def of(self, line: int) -> frozenset[Quirk] | None:
        """None: no set of them does."""
        if self._beside is not None and self._beside.agrees_until(line):
            return self._beside.quirks
        found = self._search(line)
        if found is None:
            return None
        self._beside = found
        return found.quirks

    def _search(self, line: int) -> _Beside | None:
        """What is known and one more, if that does; else as few as possible, found by leaving out one by one."""
        known = frozenset[Quirk]() if self._beside is None else self._beside.quirks
        listed = [quirk for quirk in Quirk if quirk not in UNLISTED]
        everything = self._try(frozenset(listed), line)
        if everything is None:
            return None
        for quirk in listed:
            alone = self._try(known | {quirk}, line)
            if alone is not None and alone.deviated:
                return alone
        found = everything
        for quirk in listed:
            fewer = self._try(found.quirks - {quirk}, line)
            if fewer is not None:
                found = fewer
        return found if found.deviated else None

    def _try(self, quirks: frozenset[Quirk], line: int) -> _Beside | None:
        beside = _Beside(quirks, self._machine(quirks), self._operations)
        return beside if beside.agrees_until(line) else None
