"""What is owed for too long is given up once, and nothing that is not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from viommu_actors.actors.deadlines import Deadlines


def test_each_has_its_time_from_when_it_was_first_seen() -> None:
    deadlines: Deadlines[str] = Deadlines(1.0)
    assert deadlines.watch([], 9.0) is None and not deadlines.ends
    assert deadlines.watch(["a"], 10.0) == 11.0 and deadlines.ends
    assert deadlines.expired(["a", "b"], 10.5) == [] and deadlines.watch(["a", "b"], 10.6) == 11.0
    assert deadlines.expired(["a", "b"], 11.0) == ["a"] and deadlines.watch(["b"], 11.0) == 11.5
    assert deadlines.expired([], 11.2) == [] and deadlines.watch([], 11.2) is None


def test_looking_gives_nothing_up() -> None:
    deadlines: Deadlines[str] = Deadlines(1.0)
    assert deadlines.watch(["a"], 10.0) == deadlines.watch(["a"], 12.0) == 11.0
    assert deadlines.expired(["a"], 12.0) == ["a"]


@given(st.lists(st.sets(st.integers(0, 4)), max_size=30))
def test_what_is_over_was_owed_for_all_of_its_time(seen: list[set[int]]) -> None:
    deadlines: Deadlines[int] = Deadlines(3.0)
    since: dict[int, int] = {}
    for now, owed in enumerate(seen):
        for key in list(since):
            if key not in owed:
                del since[key]
        for key in owed:
            since.setdefault(key, now)
        over = deadlines.expired(owed, float(now))
        assert set(over) == {key for key in owed if now - since[key] >= 3}
        for key in over:
            del since[key]  # its owner owes it no more; what comes again under the key is another
