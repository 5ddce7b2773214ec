"""Accesses of a device that does as it likes, sorted by what they were aimed at, or got to."""

from __future__ import annotations

from typing import Any

from viommu_actors.pci.field_watch import Field, FieldWatch
from viommu_actors.pci.link import LogEntry, Outcome

GUEST = Field("guest", ((0, 0x10000),), (0x10_5000,), ((0x10_0000, 0x10000),))
HOST = Field("host", ((0x80_0000, 0x10000),), (0x80_3000,), ())
BORROWED = Field("borrowed", (), (), (), (0x200,))
PEERS = Field("peers", (), (), (), peers=True)
SPARED = 0x10_7000


def _entry(address: int, outcome: Outcome, physical: int | None = None, **more: Any) -> LogEntry:
    fields: dict[str, Any] = {"kind": "read", "requester": 0x100, "length": 4, "write": False, "reason": None, **more}
    return LogEntry(address=address, outcome=outcome, physical=physical, **fields)


def _watch(*entries: LogEntry) -> FieldWatch:
    watch = FieldWatch([BORROWED, PEERS, GUEST, HOST], SPARED)
    for entry in entries:
        watch.add(entry)
    return watch


def test_by_address_and_by_way() -> None:
    watch = _watch(_entry(0x20, Outcome.FAULT), _entry(0x80_0000, Outcome.FAULT, write=True))
    assert watch.seen["guest", "read"].outcomes == {Outcome.FAULT: 1}
    assert watch.seen["host", "write"].outcomes == {Outcome.FAULT: 1}
    assert not watch.seen["guest", "write"].tried and not watch.seen["host", "read"].tried


def test_what_is_reached_at_whatever_address_counts() -> None:
    watch = _watch(_entry(0xFFFF_0000, Outcome.OK, 0x80_3010), _entry(0xFFFF_0000, Outcome.OK, 0x80_4010))
    assert watch.seen["host", "read"].reached == 1 and watch.seen["host", "read"].tried == 1


def test_exposed_memory_is_reached_as_a_whole_but_for_the_own_page() -> None:
    watch = _watch(_entry(0x100, Outcome.OK, 0x10_0100), _entry(0x7010, Outcome.OK, SPARED + 0x10))
    assert watch.seen["guest", "read"].reached == 1 and watch.seen["guest", "read"].tried == 1


def test_what_passed_to_lent_memory_is_no_reach() -> None:
    watch = _watch(_entry(0x80_0100, Outcome.OK, 0x80_9000))
    assert watch.seen["host", "read"].reached == 0 and watch.seen["host", "read"].outcomes == {Outcome.OK: 1}


def test_what_is_reached_counts_before_what_is_aimed_at() -> None:
    watch = _watch(_entry(0x20, Outcome.OK, 0x80_3010))
    assert watch.seen["host", "read"].reached == 1 and not watch.seen["guest", "read"].tried


def test_whatever_memory_is_reached_in_the_name_of_another() -> None:
    named = {"requester": 0x200, "write": True, "kind": "write"}
    watch = _watch(
        _entry(0xFFFF_0000, Outcome.OK, 0x7777_0000, **named),
        _entry(0xFFFF_0000, Outcome.OK, 0x7777_0000),
        _entry(0x20, Outcome.FAULT, **named),
        _entry(0xFEE0_0000, Outcome.OK, **named | {"kind": "msi"}),
        _entry(0xC000_0000, Outcome.OK, 0xC000_0000, **named | {"kind": "peer write"}),
    )
    assert watch.seen["borrowed", "write"].reached == watch.seen["borrowed", "write"].tried == 1
    assert watch.seen["peers", "write"].reached == watch.seen["peers", "write"].tried == 1
    assert watch.seen["guest", "write"].outcomes == {Outcome.FAULT: 1}
    assert not watch.seen["borrowed", "read"].tried
