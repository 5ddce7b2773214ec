"""Counts of what crossed a wire, kept at both of its ends independently."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container
from typing import Any


class Tally:
    """One end of one wire. Keys are message classes; what did not decode is `malformed`."""

    def __init__(self, wire: str, end: str) -> None:
        self.wire = wire
        self.end = end
        self.sent: defaultdict[type, int] = defaultdict(int)
        self.received: defaultdict[type, int] = defaultdict(int)
        #: frames received that were no message of this wire
        self.malformed = 0
        #: frames sent on purpose that are no message (a rogue's)
        self.raw = 0

    def as_dict(self) -> dict[str, Any]:
        """For the control wire: {"wire", "end", "sent": {name: n}, "received": {name: n}}."""
        sent = {cls.__name__: n for cls, n in self.sent.items() if n}
        received = {cls.__name__: n for cls, n in self.received.items() if n}
        if self.raw:
            sent["malformed"] = self.raw
        if self.malformed:
            received["malformed"] = self.malformed
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
        if len(pair) == 1 and wire.partition(":")[2] in gone:
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
