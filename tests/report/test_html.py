"""report.html without a browser: well-formed, self-contained, escaped, and all of the results are in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from tests.report.samples import LATENCIES, SOAK, crowd, sample
from viommu_actors.report.charts import Bar, Range, bars, ranges
from viommu_actors.report.html import html
from viommu_actors.report.latency import Latencies, LatencyRow, read_latencies
from viommu_actors.report.markup import element, escape
from viommu_actors.report.results import Results
from viommu_actors.report.scene import LABELS
from viommu_actors.report.soak import read_soak
from viommu_actors.report.text import Style
from viommu_actors.topology.resolved import ResolvedTopology

NAMES = (
    *("host-driver", "assigned-no-viommu", "assigned-viommu", "dynamic-vs-static", "two-guests", "switch", "bridge"),
    *("interrupts-protected", "interrupts-unprotected", "dpdk", "dpdk-noiommu", "nested-depths"),
)
EVIL = '<b onclick="x()">&amp;\'\x00\x1b[31m</b></script><!--'


def tree(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def words(text: str) -> str:
    return " ".join("".join(tree(text).itertext()).split())


def arrows(text: str) -> dict[tuple[str, str], str]:
    """State by device and what the arrow ends at."""
    found = {}
    for group in tree(text).iter():
        kinds = group.get("class", "").split()
        if kinds[:1] == ["arrow"]:
            found[group.get("data-device", ""), group.get("data-what", "")] = kinds[2]
    return found


class Balance(HTMLParser):
    """What HTML itself, without XML's help, makes of the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "meta"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", NAMES)
def test_it_is_well_formed_as_html_and_as_xml(name: str) -> None:
    text = html(*sample(name), {"Python": "3"}, LATENCIES, "interrupted")
    assert tree(text).tag == "html"
    balance = Balance()
    balance.feed(text)
    balance.close()
    assert balance.open == []
    identifiers = [each.get("id") for each in tree(text).iter() if each.get("id")]
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("name", NAMES)
def test_it_needs_nothing_from_elsewhere(name: str) -> None:
    text = html(*sample(name), latencies=LATENCIES)
    for each in tree(text).iter():
        tag = each.tag.rpartition("}")[2]
        assert tag not in {"script", "link", "img", "image", "iframe", "object", "embed", "use", "a", "base"}
        assert not {key for key in each.attrib if key in {"src", "href", "style"} or key.startswith("on")}
    assert "url(" not in text and "@import" not in text


@pytest.mark.parametrize("name", NAMES)
def test_every_verdict_count_and_fault_is_there(name: str) -> None:
    topology, results = sample(name)
    told = words(html(topology, results))
    for verdict in results.verdicts:
        assert f"{verdict.observed}, expected {verdict.expected}" in told
        assert verdict.evidence.canary_after in told
    rows = list(tree(html(topology, results)).iter("tr"))
    cells = [["".join(cell.itertext()) for cell in row] for row in rows]
    for verdict in results.verdicts:
        beginning = [verdict.attack, verdict.target, str(verdict.evidence.attempts)]
        assert any([c[0].split()[0], *c[1:3]] == beginning and verdict.observed in c[3] for c in cells if len(c) == 4)
    for row in results.io:
        assert f"{row.device}, {row.mapping}" in told
    for process in results.processes:
        assert str(process.pid) in told


@pytest.mark.parametrize("name", NAMES)
def test_each_picture_tells_in_words_what_it_shows(name: str) -> None:
    text = html(*sample(name))
    described = [svg for svg in tree(text).iter("{http://www.w3.org/2000/svg}svg") if svg.get("role") == "img"]
    for svg in described:
        first, second = [*svg][:2]
        assert (first.tag.rpartition("}")[2], second.tag.rpartition("}")[2]) == ("title", "desc")
        assert first.text and second.text
    desc = " ".join(svg[1].text or "" for svg in described if svg.get("class") == "topology")
    for (device, what), state in arrows(text).items():
        style: Style = "safe" if state == "safe" else "unsafe" if state == "unsafe" else "unknown"
        assert re.search(rf"\b{device}, [^.]*\b{what}: {LABELS[style]}", desc)


def test_arrows_tell_what_was_observed_not_what_was_hoped() -> None:
    topology, results = sample("assigned-viommu")
    assert arrows(html(topology, results))["nic0", "memory"] == "safe"
    for observed, state in (("leaked", "unsafe"), ("corrupted", "unsafe"), ("unproven", "unknown")):
        first, *rest = results.verdicts
        changed = msgspec.structs.replace(first, observed=observed)
        text = html(topology, msgspec.structs.replace(results, ok=False, verdicts=(changed, *rest)))
        assert arrows(text)["nic0", "memory"] == state
        assert arrows(text)["nic0", "host memory"] == "safe"


def test_an_arrow_ends_where_it_was_stopped() -> None:
    text = html(*sample("assigned-no-viommu"))
    stopped = {
        group.get("data-what")
        for group in tree(text).iter()
        if group.get("data-device") and any(part.get("class") == "stop" for part in group)
    }
    assert stopped == {"host memory", "other guest"}


def test_a_crowd_is_all_there() -> None:
    topology, results = crowd()
    text = html(topology, results)
    assert len({device for device, _ in arrows(text)}) == len(topology.devices) == 16
    told = words(text)
    assert all(f"{vm.name}: guest" in told for vm in topology.vms)
    assert "part 2 of" in told


def test_text_of_others_is_escaped() -> None:
    topology, results = sample("interrupts-unprotected")
    topology = msgspec.structs.replace(
        topology, name=EVIL, description=EVIL, host=msgspec.structs.replace(topology.host, cmdline=EVIL)
    )
    verdict = results.verdicts[0]
    evidence = msgspec.structs.replace(verdict.evidence, canary_before=EVIL, canary_after=EVIL)
    results = msgspec.structs.replace(
        results, verdicts=(msgspec.structs.replace(verdict, target=EVIL, evidence=evidence),)
    )
    rows = (LatencyRow(name=EVIL, p50_us=1.0, p99_us=2.0, hops={EVIL: 1.0}),)
    text = html(topology, results, {EVIL: EVIL}, Latencies(placement=EVIL, rows=rows), EVIL)
    assert "<b " not in text and "</b>&" not in text and "\x1b" not in text and "\0" not in text
    shown = EVIL.replace("\0", "\ufffd").replace("\x1b", "\ufffd")
    assert "".join(tree(text).itertext()).count(shown) >= 10


def test_a_run_that_was_interrupted_says_so_and_shows_what_is_in() -> None:
    topology, results = sample("assigned-viommu")
    partial = msgspec.structs.replace(results, ok=False, verdicts=results.verdicts[:1], io=(), faults=())
    told = words(html(topology, partial, ended="interrupted: ended by SIGINT"))
    assert "This run did not finish: interrupted: ended by SIGINT" in told
    assert "NOT as expected" in told and "A1 scan-read" in told
    nothing = Results(topology="t", ok=False, processes=(), verdicts=(), io=(), faults=())
    assert "No device of this run tried anything" in words(html(topology, nothing))


def test_a_topology_of_nothing_is_shown() -> None:
    topology, results = sample("host-driver")
    bare: ResolvedTopology = msgspec.structs.replace(topology, devices=(), vms=())
    assert tree(html(bare, msgspec.structs.replace(results, verdicts=(), io=(), faults=())))


def test_unsafe_interrupts_are_told_at_the_top() -> None:
    assert "Interrupts are NOT protected" in words(html(*sample("interrupts-unprotected")))
    assert "Interrupts are NOT protected" not in words(html(*sample("interrupts-protected")))


def test_latencies_where_there_are_any() -> None:
    topology, results = sample("assigned-viommu")
    assert "Latency" not in words(html(topology, results))
    assert "Latency" not in words(html(topology, results, latencies=Latencies()))
    told = words(html(topology, results, latencies=LATENCIES))
    for each in ("Placement pack", "map_strict", "modelled", "hypervisor work", "15.1", "0.78"):
        assert each in told
    assert re.search(r"hop ?1\.080 ?at most 1\.15 ?met", told) and re.search(r"at least 0\.8 ?MISSED", told)


def test_what_a_figure_is_worthless_without_stands_with_it_for_each_placement() -> None:
    topology, results = sample("assigned-viommu")
    for each in (
        "Measured: vm0, its nic0 and laboratory-edu (laboratory-edu added for this)",
        "Placement pack (CPU: host 0, vm0.guest free; 2 CPUs), devices with a fixed address layout; wall clock",
        "Idle gap 0 µs within a batch, 100 µs behind a posted write; libzmq 4.3.5",
        "io_strict / io_static2.152.06..2.26",
        "messages of a packet on its link: equal (3 MemRead from device); beside it: 1 inject Inject to guest",
        "p50 of a packet: 483.3 µs by the host, 482.6 µs assigned",
        "Overhead of a trace while it is on: hop +24%",
    ):
        assert each in words(html(topology, results, latencies=LATENCIES)), each
    both = (LATENCIES, msgspec.structs.replace(LATENCIES, placement="free"))
    several = words(html(topology, results, latencies=Latencies(placement="all", rows=LATENCIES.rows, runs=both)))
    assert several.count("Compared round by round") == 2 and "Placement free" in several


def test_a_soak_has_its_curves_its_books_and_what_is_wrong(tmp_path: Path) -> None:
    page = html(sample("assigned-viommu")[0], None, soak=SOAK)
    told = words(page)
    for each in ("150 operations in 2 s", "grown: host by 10240 KiB", "host: VFIO, mappings1521502", "DIFFERS"):
        assert each in told
    drawn = [each.get("points", "") for each in tree(page).iter() if each.get("class") == "curve"]
    places = [[tuple(map(float, point.split(","))) for point in each.split()] for each in drawn]
    rate, host, guest = places
    assert rate[0][1] < rate[1][1], "fewer a second are lower"
    assert host[0][1] > host[1][1] and guest[0][1] == guest[1][1] > host[0][1]
    path = tmp_path / "soak.json"
    assert read_soak(path) is None
    path.write_bytes(msgspec.json.encode(SOAK))
    assert read_soak(path) == SOAK


def test_placements_are_told_apart_where_there_are_several() -> None:
    rows = tuple(LatencyRow(name="hop", placement=each, p50_us=1.0) for each in ("pack", "free"))
    topology, results = sample("assigned-viommu")
    several = words(html(topology, results, latencies=Latencies(placement="all", rows=rows)))
    assert "hop, pack" in several and "hop, free" in several
    assert "hop, pack" not in words(html(topology, results, latencies=Latencies(rows=rows[:1])))


def test_a_run_that_only_measured() -> None:
    text = words(html(sample("assigned-viommu")[0], None, latencies=LATENCIES))
    assert "map_strict" in text and "memory: not observed" in text
    for each in ("xpected", "What rogue devices tried", "Processes"):
        assert each not in text.partition("Arrows are")[2]


def test_the_file_of_latencies(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    assert read_latencies(path) is None
    path.write_bytes(msgspec.json.encode(LATENCIES))
    assert read_latencies(path) == LATENCIES
    path.write_text('{"placement": "free", "more": 1, "rows": [{"name": "hop", "clock": "wall", "mean_us": 3}]}')
    read = read_latencies(path)
    assert read is not None and read.rows[0].p50_us is None
    path.write_text('{"rows": 7}')
    with pytest.raises(msgspec.DecodeError):
        read_latencies(path)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_figures_that_no_scale_has_are_left_out_of_the_charts(value: float) -> None:
    rows = (LatencyRow(name="odd", p50_us=value, p99_us=value, floor_us=value, hops={"wire": value}),)
    assert tree(html(*sample("host-driver"), latencies=Latencies(rows=rows)))


def test_bars_are_as_long_as_their_figures() -> None:
    drawn = tree(bars("b", [Bar("all", (("x", 30.0), ("y", 10.0)), "40"), Bar("none", (("x", 0.0),), "0")]))
    long, short, none = [float(each.get("width", "")) for each in drawn if each.get("class", "").startswith("bar")]
    assert long == pytest.approx(3 * short, rel=0.01)
    assert none == 0


def test_ranges_are_on_a_logarithmic_scale() -> None:
    rows = [Range("a", 1.0, 10.0, (), ""), Range("b", 10.0, 1000.0, (), "")]
    drawn = tree(ranges("r", rows, "µs"))
    first, second = [float(each.get("width", "")) for each in drawn if each.get("class") == "bar span"]
    assert second == pytest.approx(2 * first, rel=0.01)


def test_markup_is_escaped_once() -> None:
    assert element("p", escape("a<b"), "&", title='"') == '<p title="&quot;">a&lt;b&amp;</p>'
    assert element("br-like", data_x=None) == "<br-like></br-like>"
