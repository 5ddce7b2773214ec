"""What a watch makes of a port's transactions: nothing is judged by a part of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from viommu_actors.pci.link import LogEntry, Outcome
from viommu_actors.pci.watch import Aim, Watch

GUARDED = 0x10_0000


def _entry(address: int, outcome: Outcome = Outcome.FAULT, physical: int | None = None) -> LogEntry:
    return LogEntry("write", 0x100, address, 64, True, outcome, physical, None)


def test_each_address_counts_once_as_tried_and_each_access_as_an_outcome() -> None:
    watch = Watch([Aim(0x1000, 0x3000, 0x1000)], [])
    for address in (0x1000, 0x1000, 0x3000):
        watch.add(_entry(address))
    assert (watch.tried, watch.outcomes[Outcome.FAULT], watch.strays) == (2, 3, 0)


def test_what_was_not_aimed_is_a_stray_and_proves_nothing() -> None:
    watch = Watch([Aim(0x1000, 0x3000, 0x1000)], [])
    for address in (0x0, 0x1800, 0x4000, 1 << 40):
        watch.add(_entry(address))
    assert (watch.tried, watch.strays) == (0, 4) and not watch.outcomes and watch.first_refusal is None


def test_a_stray_that_reaches_what_is_guarded_counts_all_the_same() -> None:
    watch = Watch([Aim(0x1000, 0x1000, 0x1000)], [GUARDED])
    watch.add(_entry(0x9000, Outcome.OK, GUARDED + 0x40))
    assert watch.reached == 1


def test_the_first_refusal_is_of_what_was_aimed() -> None:
    watch = Watch([Aim(0x1000, 0x1000, 0x1000)], [])
    watch.add(_entry(0x9000, Outcome.ACS))
    watch.add(_entry(0x1000, Outcome.FAULT))
    assert watch.first_refusal == _entry(0x1000, Outcome.FAULT)


@given(st.integers(1, 300), st.data())
def test_a_scan_is_counted_whole_however_large(pages: int, data: st.DataObject) -> None:
    missed = data.draw(st.sets(st.integers(0, pages - 1)))
    watch = Watch([Aim(0, (pages - 1) << 12, 1 << 12)], [page << 12 for page in range(pages)])
    for page in range(pages):
        if page not in missed:
            watch.add(_entry(page << 12, Outcome.OK, page << 12))
    assert watch.tried == watch.reached == pages - len(missed)
