"""Percentiles, ratios by round, orders, shares."""

from __future__ import annotations

import random

import pytest

from viommu_actors.measure.statistics import percentile, ratios, rounds_of, shares, spread, summarize


def test_percentiles_are_values_that_were_measured() -> None:
    ordered = list(range(1, 101))
    assert [percentile(ordered, percent) for percent in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert percentile([7], 50) == percentile([7], 99) == 7
    assert percentile([1, 2], 50) == 1
    with pytest.raises(ValueError):
        percentile([], 50)


def test_a_summary_is_in_microseconds() -> None:
    values = [1000 * n for n in range(1, 1001)]
    random.Random(1).shuffle(values)
    assert summarize(values) == (500.0, 900.0, 990.0, 1000.0, 500.5, 1000)


def test_a_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_medians() -> None:
    # A machine that slows down for both alike changes no ratio.
    slow = [1.0, 10.0, 100.0, 3.0]
    ours, floor = [3 * each for each in slow], [2 * each for each in slow]
    assert ratios(ours, floor) == (1.5, 1.5, 1.5, 4)
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 2.0, 4.0, 5)
    assert spread([2.0]) == (2.0, 2.0, 2.0, 1)
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])
    with pytest.raises(ValueError):
        spread([])


def test_each_round_has_every_name_once_in_an_order_of_its_own() -> None:
    names = [f"n{number}" for number in range(12)]
    orders = rounds_of(names, 1)
    seen = [next(orders) for _ in range(5)]
    assert all(sorted(order) == sorted(names) for order in seen)
    assert len({tuple(order) for order in seen}) == 5
    again = rounds_of(names, 1)
    assert [next(again) for _ in range(5)] == seen


def test_shares_add_up_and_leave_out_what_went_another_way() -> None:
    usual = [[("a", 100 + n), ("wire", 50), ("b", 30), ("wire", 20)] for n in range(20)]
    odd = [[("a", 9000), ("other", 9000)]] * 5
    parts = shares([*odd, *usual])
    assert set(parts) == {"a", "wire", "b"}
    assert sum(parts.values()) == pytest.approx(1.0)
    assert parts["wire"] == pytest.approx(70 / 210, rel=0.02)
    assert shares([]) == {}
