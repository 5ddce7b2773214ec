"""Counts of what crossed a wire, kept at both of its ends independently; and when, if asked.

A wire is FIFO, so the n-th message sent at one end is the n-th received at the other: what is needed to follow a
message is its place in the order, and nothing travels with it.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Container
from time import perf_counter_ns
from typing import Any

from viommu_actors.wire.codec import Defect

#: Stands between the names of a cable's two ends in its wire's name; no actor's name has it.
CABLE = "="


class _Stamped(defaultdict[type, int]):
    """Counts that also note each increment: (index of the kind, nanoseconds of the monotonic clock) in turn.

    Standing in for the plain counts only while a trace is taken, it costs nothing otherwise.
    """

    def __init__(self, counts: dict[type, int], kinds: list[type]) -> None:
        super().__init__(int, counts)
        self._kinds = kinds
        self.stamps = array("q")

    def __setitem__(self, kind: type, count: int) -> None:
        now = perf_counter_ns()
        before = self.get(kind, 0)
        super().__setitem__(kind, count)
        if count < before:  # it could not be sent after all
            del self.stamps[-2:]
        if count <= before:
            return
        if kind not in self._kinds:
            self._kinds.append(kind)
        self.stamps.extend((self._kinds.index(kind), now))


class Tally:
    """One end of one wire. Keys are message classes; what is no message is counted by its defect."""

    def __init__(self, wire: str, end: str) -> None:
        self.wire = wire
        self.end = end
        self.sent: defaultdict[type, int] = defaultdict(int)
        self.received: defaultdict[type, int] = defaultdict(int)
        #: what was received and was no message of this wire
        self.rejected: Counter[Defect] = Counter()
        #: what was sent on purpose and is none (a rogue's)
        self.hostile: Counter[Defect] = Counter()

    @property
    def malformed(self) -> int:
        """How much was received that was no message of this wire."""
        return sum(self.rejected.values())

    def trace(self, kinds: list[type] | None) -> None:
        """Notes from here on when each message is sent or received, kinds as indexes into `kinds`; None stops it."""
        plain = (defaultdict(int, self.sent), defaultdict(int, self.received))
        self.sent, self.received = plain if kinds is None else tuple(_Stamped(each, kinds) for each in plain)

    def start_over(self) -> None:
        """Another process is at the other end, which has counted nothing yet."""
        self.sent.clear()
        self.received.clear()
        self.rejected.clear()
        self.hostile.clear()

    def take_stamps(self, limit: int) -> dict[str, Any] | None:
        """What was noted since the last call, each direction as the bytes of at most `limit` (kind, time) pairs.

        None if not traced. What is beyond the limit comes with the next call.
        """
        if not isinstance(self.sent, _Stamped) or not isinstance(self.received, _Stamped):
            return None
        taken: dict[str, Any] = {"wire": self.wire, "end": self.end}
        for way, counts in (("sent", self.sent), ("received", self.received)):
            taken[way] = counts.stamps[: 2 * limit].tobytes()
            del counts.stamps[: 2 * limit]
        return taken

    def as_dict(self) -> dict[str, Any]:
        """For the control wire: {"wire", "end", "sent": {name: n}, "received": {name: n}}."""
        sent = {cls.__name__: n for cls, n in self.sent.items() if n}
        received = {cls.__name__: n for cls, n in self.received.items() if n}
        sent |= {f"malformed: {defect}": n for defect, n in self.hostile.items()}
        received |= {f"malformed: {defect}": n for defect, n in self.rejected.items()}
        return {"wire": self.wire, "end": self.end, "sent": sent, "received": received}


def disagreements(ends: list[dict[str, Any]], gone: Container[str] = ()) -> list[str]:
    """Every wire whose two ends counted differently, a line each; a wire with one end is one too.

    A wire is left out whose other end was counted by somebody of `gone`: its count is lost with it.
    """
    wires: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for end in ends:
        wires[end["wire"]].append(end)
    lines = []
    for wire, pair in sorted(wires.items()):
        if len(pair) == 1 and any(name in gone for name in wire.partition(":")[2].split(CABLE)):
            continue
        if len(pair) != 2:
            lines.append(f"{wire}: counted at {len(pair)} end(s) only, by {', '.join(end['end'] for end in pair)}")
            continue
        for sender, receiver in (pair, pair[::-1]):
            if Counter(sender["sent"]) != Counter(receiver["received"]):
                lines.append(
                    f"{wire}: {sender['end']} sent {_show(sender['sent'])}, "
                    f"{receiver['end']} received {_show(receiver['received'])}"
                )
    return lines


def _show(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items())) or "nothing"
