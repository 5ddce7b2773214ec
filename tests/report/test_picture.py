"""The picture tells by words what was observed, whatever the configuration hopes for."""

from __future__ import annotations

import msgspec
import pytest

from tests.report.samples import sample
from viommu_actors.report.picture import COLUMN, picture
from viommu_actors.report.results import AppPort, Results
from viommu_actors.report.text import Line, plain
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve
from viommu_actors.topology.resolved import ResolvedTopology


def drawn(topology: ResolvedTopology, results: Results, width: int = 100) -> str:
    return "\n".join(plain(each) for each in picture(topology, results, width)).split("arrows are DMA")[0]


def with_outcome(results: Results, target: str, observed: str) -> Results:
    verdicts = tuple(
        msgspec.structs.replace(verdict, observed=observed) if verdict.target == target else verdict
        for verdict in results.verdicts
    )
    return msgspec.structs.replace(results, verdicts=verdicts)


def styles(lines: list[Line], words: str) -> set[str]:
    return {span.style for each in lines for span in each if words in span.text}


def test_with_a_viommu_the_rogues_arrows_are_safe_and_the_other_is_not_observed() -> None:
    text = drawn(*sample("assigned-viommu"))
    for words in ("▲ memory: safe", "├▶ page tables: safe", "├▶ host memory: safe", "▲ memory: not observed"):
        assert words in text
    for words in ("vIOMMU", "translates, strict", "00:03.0 nic0", "00:05.0 edu0", "rogue: A1 A2 A31 A32", "pid 42"):
        assert words in text
    assert "UNSAFE" not in text


def test_without_a_viommu_the_own_guest_is_unsafe_and_the_rest_safe() -> None:
    text = drawn(*sample("assigned-no-viommu"))
    for words in ("▲ memory: UNSAFE", "no vIOMMU", "├▶ host memory: safe", "├▶ other guest: safe", "from nic0: safe"):
        assert words in text


def test_a_host_driven_device_ends_in_the_host() -> None:
    text = drawn(*sample("host-driver"))
    assert "▲ host memory: safe" in text
    assert "├▶ page tables: safe" in text
    assert "guest" not in text
    assert text.startswith("┌")


@pytest.mark.parametrize(
    ("name", "title", "place"),
    [("switch", "sw0: switch, with ACS", " port 1 "), ("bridge", "br0: PCI bridge", " device 1 ")],
)
def test_a_switch_or_bridge_stands_between_root_port_and_devices(name: str, title: str, place: str) -> None:
    rows = drawn(*sample(name)).splitlines()
    start = next(number for number, row in enumerate(rows) if title in row)
    assert "root port 1" in rows[start - 2] and place in rows[start + 1] and "nic at" in rows[start + 4]
    assert title not in drawn(*sample("assigned-viommu"))


@pytest.mark.parametrize(
    ("name", "way", "viommu"),
    [("dpdk", "nic1 by UIO", "passes all but VFIO's"), ("dpdk-noiommu", "nic1 by VFIO no-iommu", "translates, strict")],
)
def test_one_device_of_an_application_is_safe_and_the_other_is_not(name: str, way: str, viommu: str) -> None:
    topology, results = sample(name)
    text = drawn(topology, results)
    for words in ("testpmd: app, pid 42", "nic0 by VFIO  ", way, "its kernel", viommu, "shadow tables, or all RAM"):
        assert words in text
    [memory] = [row for row in text.splitlines() if "▲" in row]
    assert memory.index("memory: safe") < memory.index("memory: UNSAFE")
    assert ("no vIOMMU" in text) is (name == "dpdk-noiommu")
    assert len({len(row) for row in text.splitlines() if row.startswith(("│", "├"))}) == 1
    assert "app, pid" not in drawn(*sample("assigned-viommu"))


def test_what_the_kernel_refused_an_application_stands_in_its_box() -> None:
    topology, results = sample("dpdk")
    [app] = results.apps
    refused = AppPort(device="nic1", asked="uio", granted=False, expected=False, errno="EACCES", reason="no root")
    results = msgspec.structs.replace(results, apps=(msgspec.structs.replace(app, ports=(app.ports[0], refused)),))
    assert "nic1: refused, EACCES" in drawn(topology, results)


@pytest.mark.parametrize("observed", ["leaked", "corrupted"])
def test_one_that_got_through_makes_the_arrow_unsafe(observed: str) -> None:
    topology, results = sample("assigned-viommu")
    assert "▲ memory: UNSAFE" in drawn(topology, with_outcome(results, "guest memory", observed))
    assert "├▶ host memory: UNSAFE" in drawn(topology, with_outcome(results, "host memory", observed))


def test_what_is_unproven_is_not_called_safe() -> None:
    topology, results = sample("assigned-viommu")
    text = drawn(topology, with_outcome(results, "host memory", "unproven"))
    assert "├▶ host memory: not observed" in text


def test_colours_repeat_the_words() -> None:
    lines = picture(*sample("assigned-no-viommu"))
    assert styles(lines, "memory: UNSAFE") == {"unsafe"}
    assert styles(lines, "host memory: safe") == {"safe"}


def test_all_lines_of_a_box_are_of_one_width() -> None:
    for name in ("host-driver", "assigned-viommu", "two-guests", "dynamic-vs-static"):
        text = drawn(*sample(name))
        boxes = [each.rstrip() for each in text.splitlines() if each.rstrip().endswith(("│", "┐", "┘", "┤"))]
        widths = {len(each) for each in boxes if not each.startswith(" ")}
        assert len(widths) == 1, (name, widths)


def crowded() -> ResolvedTopology:
    devices = "".join(f'[[device]]\nname = "nic{i}"\nmodel = "nic"\n' for i in range(16))
    assigned = "".join(f'[[vm.assign]]\ndevice = "nic{i}"\n' for i in range(10))
    return resolve(parse(f'name = "crowd"\n{devices}[[vm]]\nname = "{"v" * 32}"\n[vm.viommu]\n{assigned}'))


def test_a_crowd_comes_in_bands_that_fit() -> None:
    empty = Results(topology="crowd", ok=True, processes=(), verdicts=(), io=(), faults=())
    text = drawn(crowded(), empty, width=100)
    assert max(len(each) for each in text.splitlines()) <= 100
    assert all(f" nic{i}: nic at" in text for i in range(16))
    assert len(drawn(crowded(), empty, width=10).splitlines()[0].rstrip()) == COLUMN


def test_a_device_that_is_handed_on_stands_with_the_vm_that_has_it_at_last() -> None:
    text = drawn(*sample("nested"))
    assert "vm0: guest" in text and "vm1 in vm0" in text
    assert text.count("nic0: nic at 01:00.0") == 1
    # L1's vIOMMU is there for L2, which has none of its own.
    assert "for VMs in it" in text and "no vIOMMU" in text and "shadow tables, by VFIO" in text
