"""The modelled clock: published figures come out of the published costs, and counts are charged as counted."""

from __future__ import annotations

from typing import Any

import pytest

from viommu_actors.measure.clock import charge, charge_all, counts, percent_of_line_rate
from viommu_actors.measure.costs import CostTable, parse_costs, shipped
from viommu_actors.report.io_tables import modelled_table
from viommu_actors.report.results import Io, Results
from viommu_actors.report.text import plain

RESULTS: dict[str, Any] = {"topology": "t", "ok": True, "processes": (), "verdicts": (), "io": (), "faults": ()}


def row(operations: int = 100, mapping: str = "dynamic", **counted: int) -> Io:
    return Io(
        device="nic0",
        mapping=mapping,  # type: ignore[arg-type]
        operations=operations,
        bytes=operations * 4096,
        verified=True,
        **{"traps": 0, "vfio_maps": 0, "vfio_unmaps": 0} | counted,
    )


def guest(operations: int = 100) -> Io:
    """What a strict guest with caching mode counts."""
    each: dict[str, Any] = dict.fromkeys(("traps", "invalidations", "queue_tail_writes", "pte_writes"), 2 * operations)
    return row(operations, dma_maps=operations, dma_unmaps=operations, vfio_maps=operations, **each)


def host(operations: int = 100) -> Io:
    """What a strict host without caching mode counts."""
    mapped = {"dma_maps": operations, "dma_unmaps": operations, "pte_writes": 2 * operations}
    return row(operations, invalidations=operations, **mapped)


@pytest.mark.parametrize(
    ("table", "counted", "cycles", "percent", "tolerance"),
    [
        ("bare-metal", host(), 6909, 43, 3),
        ("sidecore", guest(), 9225, 32, 4),
        ("trap-and-emulate", guest(), 34969, 10, 3),
    ],
)
def test_the_published_cycles_and_line_rates(
    table: str, counted: Io, cycles: int, percent: float, tolerance: float
) -> None:
    modelled = charge(counted, shipped(table))
    assert modelled.clock == "modelled" and modelled.unit == "cycles" and modelled.line_rate == "10 Gb/s"
    assert modelled.per_mapping == cycles
    assert modelled.per_operation == 2 * cycles
    assert modelled.percent_of_line_rate == pytest.approx(percent, abs=tolerance)
    assert modelled.percent_of_line_rate == pytest.approx(100 * 7313 / (3188 + 2 * cycles))


@pytest.mark.parametrize(("requests", "published"), [(3, 81.3), (2, 92.7), (2, 92), (1, 99.9)])
def test_the_published_bandwidths_of_virtio_iommu(requests: int, published: float) -> None:
    modelled = charge(row(traps=requests * 100, pte_writes=1), shipped("virtio-iommu"))
    assert modelled.percent_of_line_rate == pytest.approx(published, abs=3)


@pytest.mark.parametrize(("table", "published"), [("vtd-nested", 39.3 / 51), ("arm-smmu-host", 2.8 / 16.5)])
def test_the_published_ratios_of_strict_to_the_best(table: str, published: float) -> None:
    assert charge(host(), shipped(table)).percent_of_line_rate == pytest.approx(100 * published, abs=0.1)


@pytest.mark.parametrize("name", ["bare-metal", "sidecore", "trap-and-emulate", "virtio-iommu", "vtd-nested"])
def test_nothing_mapped_costs_nothing(name: str) -> None:
    modelled = charge(row(mapping="static"), shipped(name))
    assert (modelled.per_operation, modelled.per_mapping, modelled.percent_of_line_rate) == (0, None, 100)


def test_a_kernel_without_translation_is_charged_no_logic() -> None:
    assert counts(row(dma_maps=100, dma_unmaps=100))["logic"] == 0
    assert counts(host())["logic"] == 200


TABLE = """
name = "each"
[steps]
{steps}
[line_rate]
of = "x"
io = {{ cost = 10, source = "s" }}
full = {{ cost = 30, source = "s" }}
"""


def _table(**steps: int) -> CostTable:
    lines = (f'{name} = {{ cost = {cost}, source = "s" }}' for name, cost in steps.items())
    return parse_costs(TABLE.format(steps="\n".join(lines)))


def test_each_step_is_charged_by_its_own_count() -> None:
    counted = row(
        10, traps=20, invalidations=30, vfio_maps=40, vfio_unmaps=50, pte_writes=60, dma_maps=70, dma_unmaps=10
    )
    table = _table(trap=1, invalidation=10, vfio_map=100, vfio_unmap=1000, pte_write=10**4, logic=10**5)
    modelled = charge(counted, table)
    assert modelled.steps == {
        "trap": 2,
        "invalidation": 30,
        "vfio_map": 400,
        "vfio_unmap": 5000,
        "pte_write": 60_000,
        "logic": 800_000,
    }
    assert modelled.per_operation == 865_432
    assert modelled.per_mapping == 865_432 / 8
    assert modelled.per_io == 865_442


def test_the_line_is_full_up_to_what_it_leaves_for_mapping() -> None:
    table = _table()
    assert [percent_of_line_rate(table, cost) for cost in (0, 20, 50)] == [100, 100, 50]


def test_devices_that_did_nothing_have_no_row() -> None:
    with pytest.raises(ValueError, match="nic0 did no operation"):
        charge(row(0), _table())
    assert [each.table for each in charge_all([row(0), row(1)], [_table(), shipped("sidecore")], [])] == [
        "each",
        "sidecore",
    ]


def test_the_report_says_which_clock_it_is() -> None:
    assert modelled_table(Results(**RESULTS)) is None
    table = modelled_table(Results(**RESULTS, modelled=charge_all([guest()], [shipped("trap-and-emulate")], ["nic0"])))
    assert table is not None and "MODELLED clock" in table.title
    text = "\n".join(plain(each) for each in table.lines())
    assert "69,938" in text and "34,969  cycles" in text and "10.0 % of 10 Gb/s" in text


def test_a_table_of_another_kind_of_system_is_told_to_mean_nothing() -> None:
    tables = [shipped("bare-metal"), shipped("sidecore"), _table()]
    by_guest = charge_all([guest()], tables, ["nic0"])
    assert [bool(each.misfit) for each in by_guest] == [True, False, False]
    assert [bool(each.misfit) for each in charge_all([host()], tables, [])] == [False, True, False]
    free = charge_all([row(mapping="static")], tables, ["nic0"])
    assert not any(each.misfit for each in free), "nothing is charged"
    table = modelled_table(Results(**RESULTS, modelled=by_guest))
    assert table is not None
    (told,) = [plain(each) for each in table.lines() if "means nothing" in plain(each)]
    assert told.strip().endswith("charges counts of a host's kernel, these are of a guest's")
