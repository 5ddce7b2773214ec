"""What of an operation's outcome is compared with its recording."""

from __future__ import annotations

from itertools import zip_longest
from typing import NamedTuple

from msgspec import UNSET

from viommu_actors.replay import transcript as t
from viommu_actors.replay.machine import Observed


class Difference(NamedTuple):
    """Where a recording and the unit disagree first in one operation."""

    line: int
    operation: str
    field: str
    expected: object
    observed: object

    def __str__(self) -> str:
        return (
            f"line {self.line}, {self.operation}: {self.field}: expected {_shown(self.expected)},"
            f" observed {_shown(self.observed)}"
        )


def difference(line: int, operation: t.Operation, observed: Observed) -> Difference | None:
    """None where all is as recorded. Registers and addresses are compared as numbers, data as bytes."""
    for field, expected, seen in _compared(operation, observed):
        if expected != seen:
            return Difference(line, t.name_of(operation), field, expected, seen)
    return None


def _compared(operation: t.Operation, observed: Observed) -> list[tuple[str, object, object]]:
    """(field, recorded, observed) of everything that counts; numbers as hex text."""
    match operation:
        case t.RegRead():
            return [("expect", hex(int(operation.expect, 16)), observed["expect"])]
        case t.MemRead():
            return [("expect", operation.expect.lower(), observed["expect"])]
        case t.Irqs():
            sent = [(int(sent.addr, 16), int(sent.data, 16)) for sent in operation.expect]
            return [("expect", sent, [(int(sent.addr, 16), int(sent.data, 16)) for sent in observed["expect"]])]
        case t.Msi():
            pairs: list[tuple[str, object, object]] = [("expect", operation.expect, observed["expect"])]
            if "delivered" in observed:
                pairs.append(("delivered", operation.delivered, observed["delivered"]))
                if operation.remapped is not UNSET:
                    pairs.append(("remapped", operation.remapped, observed["remapped"]))
            return pairs
        case t.DmaRead() | t.DmaWrite():
            return _compared_dma(operation, observed)
        case t.Shadow():
            return _compared_shadow(operation, observed)
    return []


def _compared_shadow(operation: t.Shadow, observed: Observed) -> list[tuple[str, object, object]]:
    """Message by message, or where the container is not as it must be."""
    if "messages" not in observed:
        return [] if observed["container"] is None else [("container", *observed["container"])]
    pairs: list[tuple[str, object, object]] = []
    for number, (recorded, seen) in enumerate(zip_longest(operation.expect, observed["messages"])):
        pairs.append((f"message {number + 1}", _text(recorded), _text(seen)))
    return pairs


def _text(message: t.Message | None) -> str:
    if message is None:
        return "nothing"
    text: str = message.type
    if message.type != "device_reset":
        text += f" {int(message.iova, 16):#x}+{int(message.size, 16):#x}"
    if message.type == "map":
        text += f" -> {'ROM' if message.gpa is None else hex(int(message.gpa, 16))} {message.perm}"
    return text if message.server_reply is UNSET else f"{text} = {message.server_reply}"


def _compared_dma(operation: t.DmaRead | t.DmaWrite, observed: Observed) -> list[tuple[str, object, object]]:
    if not observed:
        return []
    pairs: list[tuple[str, object, object]] = [("expect", operation.expect, observed["expect"])]
    if isinstance(operation, t.DmaRead) and operation.expect_data is not UNSET:
        pairs.append(("expect_data", str(operation.expect_data).lower(), observed.get("expect_data")))
    if operation.errno is not UNSET or "errno" in observed:
        pairs.append(("errno", None if operation.errno is UNSET else operation.errno, observed.get("errno")))
    if "container" in observed and operation.container is not UNSET:
        pairs.append(("container", operation.container, observed["container"]))
    if operation.segments:
        pairs.append(("segments", [_target(s) for s in operation.segments], [_target(s) for s in observed["segments"]]))
    for recorded, seen in zip(operation.segments, observed.get("segments", ()), strict=False):
        if recorded.msi is not UNSET:
            pairs.append((f"msi at {recorded.iova}", recorded.msi, [] if seen.msi is UNSET else seen.msi))
    reasons = [hex(fault.reason) for fault in operation.faults if fault.reason is not UNSET]
    if reasons:
        first = observed["reasons"][:1]
        pairs.append(("fault", reasons[0], hex(first[0]) if first else None))
    return pairs


def _target(segment: t.Segment) -> tuple[int, int | None]:
    """Where a page of a request went."""
    return int(segment.iova, 16), None if segment.gpa is None else int(segment.gpa, 16)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 400 else text[:400] + "…"
