"""report.html as a browser shows it: nothing asked for, nothing complained of, colours that agree with the results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.judges import require
from tests.report.browser import Browser
from tests.report.samples import LATENCIES, SOAK, crowd, sample
from viommu_actors.report.html import html

pytestmark = pytest.mark.judge("chromium")

INK = {
    "light": {"safe": "rgb(26, 127, 55)", "unsafe": "rgb(207, 34, 46)", "unknown": "rgb(110, 119, 129)"},
    "dark": {"safe": "rgb(63, 185, 80)", "unsafe": "rgb(255, 106, 97)", "unknown": "rgb(139, 148, 158)"},
}
#: By topology, what was observed of each arrow of nic0.
OBSERVED = {
    "assigned-viommu": {"memory": "safe", "page tables": "safe", "host memory": "safe", "interrupts": "unknown"},
    "assigned-no-viommu": {"memory": "unsafe", "host memory": "safe", "other guest": "safe", "interrupts": "unknown"},
    "interrupts-protected": {"memory": "unknown", "interrupts": "safe"},
    "interrupts-unprotected": {"memory": "unknown", "interrupts": "unsafe"},
    "dynamic-vs-static": {"memory": "unknown", "interrupts": "unknown"},
    "dpdk": {"memory": "safe", "host memory": "safe", "interrupts": "unknown"},
    "host-driver": {"host memory": "safe", "page tables": "safe", "interrupts": "unknown"},
}
ARROWS = """[...document.querySelectorAll(".arrow")].map(arrow => {
  const shaft = getComputedStyle(arrow.querySelector(".shaft"));
  return {
    device: arrow.dataset.device, what: arrow.dataset.what, stroke: shaft.stroke, dash: shaft.strokeDasharray,
    head: getComputedStyle(arrow.querySelector(".head")).stroke,
    words: arrow.querySelector(".words").textContent, ink: getComputedStyle(arrow.querySelector(".words")).fill,
  };
})"""
#: Words that stand out of the pill or the picture that they belong to.
ASTRAY = """[...document.querySelectorAll("svg text")].filter(text => {
  const frame = (text.parentNode.querySelector(":scope > .pill") || text.closest("svg")).getBoundingClientRect();
  const box = text.getBoundingClientRect();
  return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
    || box.bottom > frame.bottom + 1;
}).map(text => text.textContent)"""
#: The bars of the two charts of one map, by depth.
TOWER = """[...document.querySelectorAll("svg")].filter(
  svg => svg.querySelector("title")?.textContent.endsWith(": one map with its unmap")
).map(svg => [...svg.querySelectorAll(".bar")].map(
  bar => ({colour: getComputedStyle(bar).fill, width: bar.getBoundingClientRect().width})
))"""
TOO_WIDE = "document.documentElement.scrollWidth > innerWidth"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(require("chromium"), tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def shows_well(browser: Browser, page: Path) -> None:
    assert browser.complaints == []
    assert browser.requests == [page.as_uri()]
    assert browser.ask(ASTRAY) == []
    assert browser.ask(TOO_WIDE) is False


@pytest.mark.parametrize("scheme", INK)
@pytest.mark.parametrize("name", OBSERVED)
def test_arrows_have_the_colours_of_what_was_observed(browser: Browser, tmp_path: Path, name: str, scheme: str) -> None:
    page = tmp_path / "report.html"
    page.write_text(html(*sample(name)))
    browser.open(page, scheme)
    arrows = [arrow for arrow in browser.ask(ARROWS) if arrow["device"] == "nic0"]
    assert {arrow["what"] for arrow in arrows} == set(OBSERVED[name])
    for arrow in arrows:
        state = OBSERVED[name][arrow["what"]]
        assert arrow["stroke"] == arrow["head"] == arrow["ink"] == INK[scheme][state], arrow
        assert (arrow["dash"] != "none") == (state == "unknown"), arrow
        assert {"safe": ": safe", "unsafe": ": UNSAFE", "unknown": ": not observed"}[state] in arrow["words"]
    shows_well(browser, page)


@pytest.mark.parametrize("width", [1240, 420])
def test_a_crowd_is_readable(browser: Browser, tmp_path: Path, width: int) -> None:
    page = tmp_path / "report.html"
    page.write_text(html(*crowd()))
    browser.open(page, width=width)
    assert len({arrow["device"] for arrow in browser.ask(ARROWS)}) == 16
    shows_well(browser, page)


def test_latencies_and_proofs_show(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(html(*sample("assigned-viommu"), latencies=LATENCIES))
    browser.open(page)
    shows_well(browser, page)
    closed, opened = (
        browser.ask(
            f"(() => {{ const fold = document.querySelector('#verdicts details'); fold.open = {state};"
            " return fold.getBoundingClientRect().height; })()"
        )
        for state in ("false", "true")
    )
    assert opened > closed + 50


def test_a_soak_shows(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(html(sample("assigned-viommu")[0], None, soak=SOAK))
    browser.open(page)
    shows_well(browser, page)
    drawn = browser.ask(
        "[...document.querySelectorAll('.curve')].map(each => [getComputedStyle(each).stroke,"
        " each.getBoundingClientRect().width])"
    )
    assert len(drawn) == 3 and all(colour.startswith("rgb") and width > 300 for colour, width in drawn)


def test_the_tower_is_as_high_as_its_figures(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(html(*sample("nested-depths")))
    browser.open(page)
    shows_well(browser, page)
    messages, latencies = browser.ask(TOWER)
    colours = [bar["colour"] for bar in messages[-3:]]
    # Each level in a colour of its own, the same at each depth, and as long as at each other level.
    assert len(set(colours)) == 3
    assert [bar["colour"] for bar in messages] == [*colours[:1], *colours[:2], *colours]
    assert {round(bar["width"] / messages[0]["width"], 1) for bar in messages} == {1.0}
    assert [round(bar["width"] / latencies[0]["width"], 1) for bar in latencies] == [1.0, 2.0, 3.0]


def test_what_a_text_smuggles_in_is_neither_run_nor_fetched(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    evil = "<script>console.log('run')</script><img src='https://example.invalid/x.png' onerror='console.log(1)'>"
    page.write_text(html(*sample("assigned-viommu"), {evil: evil}, ended=evil))
    browser.open(page)
    shows_well(browser, page)
    assert browser.ask("document.scripts.length + document.images.length") == 0
