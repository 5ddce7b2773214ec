"""What actors counted and noted of their wires, as they report it: nothing of it is taken for what it should be."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any


def checked_counts(result: Any) -> list[dict[str, Any]]:
    """Counts as an actor reports them; what has another shape counts as nothing."""
    ends = []
    for end in result if isinstance(result, tuple | list) else ():
        if isinstance(end, dict) and all(isinstance(end.get(key), dict) for key in ("sent", "received")):
            ends.append({"wire": str(end.get("wire")), "end": str(end.get("end")), **{
                way: {str(k): n for k, n in end[way].items() if isinstance(n, int)} for way in ("sent", "received")
            }})  # fmt: skip
    return ends


def by_wire(ends: Iterable[dict[str, Any]]) -> dict[str, Counter[str]]:
    """How many messages of each kind went over each wire, both ways together, by the counts of whoever sent them."""
    wires: dict[str, Counter[str]] = defaultdict(Counter)
    for end in ends:
        wires[end["wire"]].update(end["sent"])
    return dict(wires)


def all_stamps(ask: Callable[[], Any]) -> dict[str, Any]:
    """What an actor noted since the last time, as `measure.trace.crossings` takes it; `ask` for as much as fits."""
    whole: dict[str, dict[str, Any]] = {}
    while True:
        part = ask()
        more = False
        for wire in part["wires"]:
            held = whole.setdefault(wire["wire"], {**wire, "sent": b"", "received": b""})
            for way in ("sent", "received"):
                held[way] += wire[way]
                more = more or bool(wire[way])
        if not more:
            return {"wires": list(whole.values()), "kinds": part["kinds"]}
