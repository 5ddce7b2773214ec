"""Frames over a virtual switch as tables: messages a packet on each wire, latency, and the switch's own statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from viommu_actors.app.pci import UserDriver
from viommu_actors.report.io_tables import DEVICES_ABREAST
from viommu_actors.report.results import Io, Results
from viommu_actors.report.scene import WAYS
from viommu_actors.report.text import Line, Table, line

#: Of a wire between front and back end, by the kind of message.
_KINDS = {
    "MemoryRead": "reads of guest memory",
    "MemoryWrite": "writes of guest memory",
    "IotlbMiss": "IOTLB misses",
    "IotlbInvalidate": "IOTLB invalidations",
    "Kick": "kicks",
    "Call": "interrupts asked for",
}
#: What a port counted, by the switch's own words.
_STATISTICS = {
    "rx_packets": "received",
    "tx_packets": "sent",
    "tx_dropped": "dropped",
    "iotlb_misses": "IOTLB misses",
    "iotlb_invalidations": "invalidations",
    "kicks": "kicks",
    "calls": "calls",
    "reads": "reads",
    "writes": "writes",
}


def wire_tables(results: Results) -> list[Table]:
    """What a frame cost on each wire, dynamic beside static mapping; none without frames over a virtual switch."""
    rows = [row for row in results.io if row.wires]
    return [_wire_table(rows[start : start + DEVICES_ABREAST]) for start in range(0, len(rows), DEVICES_ABREAST)]


def vswitch_table(results: Results) -> Table | None:
    """What each port of each virtual switch counted; None without any."""
    if not results.vswitches:
        return None
    ports = [(vswitch, port) for vswitch in results.vswitches for port in vswitch.ports]
    return Table(
        title="Virtual switches: what each port counted, since the switch was started last",
        columns=("switch", "restarts", "port", *_STATISTICS.values()),
        rows=tuple(
            (
                line(vswitch.name),
                line(str(vswitch.restarts)),
                line(port.device),
                *(line(str(port.statistics.get(key, 0))) for key in _STATISTICS),
            )
            for vswitch, port in ports
        ),
        numbers=frozenset({1, *range(3, 3 + len(_STATISTICS))}),
    )


def _wire_table(rows: Sequence[Io]) -> Table:
    lines = [
        _told("driven by", [_driver(row.driver) for row in rows]),
        _told("mapping of the sender", [row.mapping for row in rows]),
        _told("received by", [_driver(row.peer_driver) for row in rows]),
        _told("frames", [str(row.operations) for row in rows]),
        _told("until delivered, p50, µs", ["" if row.send_us is None else f"{row.send_us:,.0f}" for row in rows]),
        _told("messages on all wires", [_mean(row, sum(wire.messages for wire in row.wires)) for row in rows]),
    ]
    for side, cards in (("sender", [row.device for row in rows]), ("receiver", [row.peer for row in rows])):
        ends = [(row, _on(row, f"vhost:{card}")) for row, card in zip(rows, cards, strict=True)]
        lines.append(_told(f"vhost wire of the {side}", [_mean(row, sum(kinds.values())) for row, kinds in ends]))
        for kind, words in _KINDS.items():
            lines.append(_told(f"  {words}", [_mean(row, kinds.get(kind, 0)) for row, kinds in ends]))
    for name in dict.fromkeys(wire.wire for row in rows for wire in row.wires):
        if not name.startswith("vhost:"):
            lines.append(_told(name, [_mean(row, sum(_on(row, name).values())) for row in rows]))
    if any(row.repeated for row in rows):
        lines.append(_told("frames that came twice", [str(row.repeated) for row in rows]))
    return Table(
        title="Frames over a virtual switch: latency by the wall clock, and messages for each frame, wire by wire",
        columns=("", *(f"{row.device} to {row.peer}" for row in rows)),
        rows=tuple(lines),
        numbers=frozenset(range(1, len(rows) + 1)),
    )


def _told(words: str, cells: Sequence[str]) -> tuple[Line, ...]:
    return (line(words), *map(line, cells))


def _driver(driver: UserDriver | Literal["kernel"]) -> str:
    return "kernel" if driver == "kernel" else f"app, {WAYS[driver]}"


def _on(row: Io, name: str) -> dict[str, int]:
    """Messages of a wire by their kind."""
    return next((wire.kinds for wire in row.wires if wire.wire == name), {})


def _mean(row: Io, messages: int) -> str:
    return f"{messages / row.operations:.4g}" if row.operations else ""
