"""The views of the report in a real browser: a head's page, the circuit, runs, links, contrast."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import GRPO, SFT, STORY, large_run, make_metrics, make_run
from factories import make_timeline as regime
from test_report_browser import (
    GRAPH,
    HOSTILE,
    PROBES,
    Open,
    Page,
    browser,
    open_page,
    pytestmark,
    timeline,
    until,
)
from test_report_edges import by_hand

from sparks.timeline.comparison import Comparison
from sparks.timeline.timeline import Timeline
from sparks.views.report import SCRIPTS, render_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

# The fixtures are those of the report's own browser tests.
__all__ = ["browser", "open_page", "pytestmark", "timeline"]


@pytest.fixture(scope="module")
def run() -> Timeline:
    """Nine checkpoints with their edges."""
    found = large_run(checkpoints=9, graph=GRAPH, probes=PROBES, emergent_share=0.3)
    return Timeline(found, metrics=make_metrics(range(10, 801, 10)), name="nine")


def at_link(page: Page, text: str) -> None:
    """Follow a link of the open report."""
    page.browser.execute_script("location.hash = arguments[0]", text)
    until(lambda: page.browser.execute_script("return location.hash") != "")
    wanted = dict(part.split("=") for part in text.lstrip("#").split("&"))
    until(lambda: all(page.data(k) == v for k, v in wanted.items() if k in ("view", "head")))


def number(text: str) -> float:
    return float(text.replace("\u2212", "-").replace("\u2013", "nan").split(" ")[0])


def edges_of(run: Timeline, at: int) -> dict[tuple[str, str], tuple[float, ...]]:
    """Strongest first."""
    found = by_hand(run.snapshots[at], list(range(PROBES)))
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


# -- one head --------------------------------------------------------------------------------


def born_head(run: Timeline) -> tuple[str, int, int]:
    layer, head = map(int, np.argwhere((run.cohort > 0) & run.active[-1] & (run.cohort < 7))[0])
    return f"L{layer}H{head}", layer, head


def test_a_head_is_found_by_name_and_has_its_numbers(open_page: Open, run: Timeline):
    page, (name, layer, head) = open_page(run), born_head(run)
    page.press("find", name.lower(), Keys.ENTER)
    assert (page.data("view"), page.data("head")) == ("head", name)
    assert page["page-title"].text == f"Head {name}"
    assert page["page-words"].text.startswith(f"Born at step {run.steps[run.cohort[layer, head]]};")
    facts = dict(zip(page.texts("#page-facts dt"), page.texts("#page-facts dd"), strict=True))
    share = run.importance[-1]
    assert number(facts["Importance (95 %)"]) == pytest.approx(100 * share[layer, head], rel=6e-3)
    assert facts["Rank"] == f"{1 + (share > share[layer, head]).sum()} of {share.size}"
    mean = run.effect()[1:, layer, head].mean()
    assert number(facts["Mean change so far"]) == pytest.approx(mean, abs=0.006)
    events = run.events().query(f"head == '{name}'")
    expected = [f"{kind} {step}" for step, kind in zip(events.step, events.kind, strict=True)]
    assert page.texts("#page-history li") == expected
    page.browser.find_element("css selector", "#page-history button").click()
    assert page.data("step") == str(events.step.iloc[0])
    for plot in ("importance-plot", "usage-plot"):
        assert len(set(page.pixels(plot))) > 5


def test_strongest_edges_of_a_head_at_birth_and_at_the_cursor(open_page: Open, run: Timeline):
    page, (name, layer, head) = open_page(run), born_head(run)
    page.press("find", name, Keys.ENTER)
    tables = page.browser.find_elements("css selector", "#page-edges table")
    assert len(tables) == 4
    group = f"L{layer}KV{head // (GRAPH.num_heads // GRAPH.num_kv_heads)}"
    for pair, at in ((tables[:2], int(run.cohort[layer, head])), (tables[2:], 8)):
        edges = edges_of(run, at)
        into = [(u, x, v.split(".")[1]) for (u, v), x in edges.items()
                if v.split(".")[0] in (name, group)]  # fmt: skip
        out = [(v, x, "") for (u, v), x in edges.items() if u == name]
        for table, expected in zip(pair, (into, out), strict=True):
            rows = table.find_elements("css selector", "tbody tr")
            assert len(rows) == min(6, len(expected)) > 0
            for row, (other, (strength, signed, share), part) in zip(rows, expected, strict=False):
                cells = [c.text for c in row.find_elements("tag name", "td")]
                assert cells[0] == other + (f" ({part})" if part else "")
                assert number(cells[1]) == pytest.approx(strength, rel=0.02)
                assert number(cells[2]) == pytest.approx(signed, rel=0.03, abs=0.01)
                assert cells[3] == f"{round(share * PROBES)} of {PROBES}"
    assert "250 strongest edges" in page["page-edges-caption"].text


def test_wrong_names_are_told(open_page: Open, run: Timeline):
    page = open_page(run)
    for text in ("L9H9", "L1", HOSTILE):
        page["find"].clear()
        page.press("find", text, Keys.ENTER)
        assert page["find-state"].text == "no such head"
        assert page.data("view") == "timeline"
    page["find"].clear()
    page.press("find", "5.7", Keys.ENTER)
    assert page.data("head") == "L5H7"


def test_a_name_in_the_table_and_a_double_click_open_a_head(open_page: Open, run: Timeline):
    page = open_page(run)
    button = page.browser.find_element("css selector", "#births tbody button")
    name = button.text
    button.click()
    assert (page.data("view"), page.data("head")) == ("head", name)
    assert page["page-title"].rect["y"] >= page.browser.execute_script("return scrollY")
    page["tab-timeline"].click()
    grid = page["grid-plot"]
    at = (45 - int(grid.rect["width"]) // 2, 10 - int(grid.rect["height"]) // 2)
    ActionChains(page.browser, duration=10).move_to_element_with_offset(
        grid, *at
    ).double_click().perform()
    assert (page.data("view"), page.data("head")) == ("head", "L0H0")


def test_keys_change_the_view(open_page: Open, run: Timeline):
    page = open_page(run)
    page.press("grid-plot", Keys.ENTER)
    assert page.data("view") == "head"
    for key, view in (("3", "circuit"), ("1", "timeline"), ("2", "head")):
        page.press("tab-head", key)
        assert page.data("view") == view
        pressed = page.texts('#tabs [aria-pressed="true"]')
        assert [text.lower() for text in pressed] == [view]
        assert page[f"{view}-view"].is_displayed()
    page.press("tab-head", "/")
    assert page.browser.switch_to.active_element.get_attribute("id") == "find"


def test_cursor_and_zoom_are_shared_by_the_views(open_page: Open, run: Timeline):
    page = open_page(run)
    page.press("cohorts-plot", Keys.ARROW_LEFT, Keys.ARROW_LEFT, "+")
    window = (page.data("from"), page.data("to"))
    opener = page["head-open"]  # not under the bar that stays on top
    page.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", opener)
    opener.click()
    assert page.data("step") == "600"
    assert (page.data("from"), page.data("to")) == window
    line = page.browser.find_element("css selector", "#importance-plot .cursor")
    before = line.rect["x"]
    page.press("importance-plot", Keys.ARROW_RIGHT)
    assert page.data("step") == "700"
    assert line.rect["x"] > before + 20


# -- effect map, component shift -------------------------------------------------------------


def test_effect_map_differs_from_the_change_at_a_step(open_page: Open, run: Timeline):
    page = open_page(run)
    page.choose("colour", "effect")
    now = page.pixels("grid-plot")
    page.choose("colour", "mean")
    assert page.pixels("grid-plot") != now
    assert page["grid-caption"].text.startswith("Effect map")


def test_component_shift_shows_the_numbers_of_the_timeline(open_page: Open, run: Timeline):
    page = open_page(run)
    totals = run.component_totals().set_index(["step", "component", "layer"])["effect"]
    plot = page["shift-plot"]
    page.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    box = plot.rect
    seen = set()
    for down in (20, 30, 215, 400):  # pixels: in the blocks, and on the last row
        ActionChains(page.browser, duration=10).move_to_element_with_offset(
            plot, 200, down - int(box["height"]) // 2
        ).perform()
        found = re.match(
            r"(?:layer (\d) )?(attention|MLP|embedding)\nstep (\d+): change (\S+)",
            page["tip"].get_attribute("textContent"),
        )
        if found is None:
            continue
        layer, part, step, change = found.groups()
        component = {"embedding": "embed"}.get(part, part.lower())
        if layer is None:
            values = run.component_totals().query(f"component == 'embed' and step == {step}")
            expected = values["effect"].item()
        else:
            expected = totals[int(step), component, int(layer)]
        assert number(change) == pytest.approx(expected, abs=0.01)
        seen.add((part, layer))
    assert len(seen) >= 2


# -- the circuit -----------------------------------------------------------------------------


def paths(page: Page) -> set[tuple[str, str]]:
    found = page.browser.execute_script(
        "return [...document.querySelectorAll('#circuit-plot path')]"
        ".map(p => [p.dataset.from, p.dataset.to])"
    )
    return {(source, target) for source, target in found}


def drawn(edges: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """As lines between nodes: the inputs of a node are one place."""
    return {(u, v.split(".")[0]) for u, v in edges}


def test_circuit_draws_the_strongest_edges_of_the_step(open_page: Open, run: Timeline):
    page = open_page(run)
    page["tab-circuit"].click()
    for at in (8, 3):
        if at == 3:
            page.press("step", *[Keys.ARROW_LEFT] * 5)
        edges = edges_of(run, at)
        half = [ends for ends, (_, _, share) in edges.items() if share >= 0.5]
        assert paths(page) == drawn(half[:40])
        page.choose("edge-share", "0")
        assert paths(page) == drawn(list(edges)[:40])
        page.choose("edge-share", "0.5")
    page.choose("edge-share", "0")
    page.press("edge-count", Keys.HOME)
    strongest = list(edges_of(run, 3))[:5]
    assert paths(page) == drawn(strongest)
    weakest = edges_of(run, 3)[strongest[-1]][0]
    shown = re.match(r"5 strongest through heads, down to (\S+) nats", page["circuit-text"].text)
    assert number(shown[1]) == pytest.approx(weakest, rel=0.02)
    page["circuit-words"].click()
    until(lambda: len(page.texts("#circuit-table tbody tr")) == 5)
    assert page.texts("#circuit-table tbody tr td:first-child") == [u for u, _ in strongest]


def test_layers_rise_from_the_bottom_and_filter_the_circuit(open_page: Open, run: Timeline):
    page = open_page(run)
    page["tab-circuit"].click()
    page.choose("edge-share", "0")
    places = page.browser.execute_script(
        "return [...document.querySelectorAll('#circuit-plot .node')]"
        ".map(n => [n.dataset.name, n.getBoundingClientRect().top])"
    )
    heights: dict[int, list[float]] = {}
    for name, top in places:
        if "H" in name:
            heights.setdefault(int(name[1]), []).append(top)
    means = [np.mean(heights[layer]) for layer in sorted(heights)]
    assert len(means) == 6
    assert (np.diff(means) < -10).all()
    page.choose("low", 2)
    page.choose("high", 3)
    assert {name[1] for pair in paths(page) for name in pair if name[0] == "L"} == {"2", "3"}


def test_hover_shows_the_edges_of_a_node_and_a_click_opens_it(open_page: Open, run: Timeline):
    page = open_page(run)
    page["tab-circuit"].click()
    node = page.browser.find_element("css selector", "#circuit-plot [role=button]")
    name = node.get_attribute("data-name")
    ActionChains(page.browser, duration=10).move_to_element(node).perform()
    bright = page.browser.execute_script(
        "return [...document.querySelectorAll('#circuit-plot path:not(.dim)')]"
        ".map(p => [p.dataset.from, p.dataset.to])"
    )
    assert 0 < len(bright) < len(page.browser.find_elements("css selector", "#circuit-plot path"))
    assert all(name in ends for ends in bright)
    assert page["tip"].get_attribute("textContent").startswith(f"{name}, ")
    node.click()
    assert (page.data("view"), page.data("head")) == ("head", name)


# -- several runs ----------------------------------------------------------------------------


def test_map_shows_heads_of_one_run_and_of_all(open_page: Open):
    runs = [regime(SFT, "sft"), regime(GRPO, "grpo")]
    comparison, page = Comparison.of(runs), open_page(*runs)
    for when in ("end", "ever"):
        page.choose("map-when", when)
        counts = [len(comparison.exclusive(name, when)) for name in ("sft", "grpo")]
        common = len(comparison.common(when))
        legend = page.texts("#map-legend b")
        assert legend == [*(f"{n + common}, {n} alone" for n in counts), str(common)]
    row = comparison.common("ever")[0]
    grid = page["map-plot"]
    layer, head = int(row[1]), int(row[3])
    cell = (34, 20)  # pixels of a cell of so small a model
    x = 30 + (head + 0.4) * cell[0] - grid.rect["width"] / 2
    y = 2 + (layer + 0.4) * cell[1] - grid.rect["height"] / 2
    move = ActionChains(page.browser, duration=10)
    move.move_to_element_with_offset(grid, int(x), int(y)).click().perform()
    tip = page["tip"].get_attribute("textContent")
    assert tip == f"{row}: emergent in sft, grpo"
    assert page.data("head") == row


# -- links -----------------------------------------------------------------------------------

STAMPS = ("run", "view", "step", "head", "rows", "from", "to")


def link_of(page: Page) -> str:
    page["link"].click()
    until(lambda: page["link-state"].text != "")
    return page["link-text"].get_attribute("value")


def test_a_link_brings_the_view_back(open_page: Open, run: Timeline):
    page = open_page(Timeline(make_run(STORY), name=HOSTILE), run)
    page.choose("run", 1)
    page.choose("show", "born")
    page.choose("colour", "mean")
    page.choose("order", "layer")
    page.choose("low", 1)
    page.choose("high", 4)
    page.choose("metric", page.texts("#metric option").index("learning_rate"))
    page.press("cohorts-plot", *[Keys.ARROW_LEFT] * 3, "+")
    page.press("find", "L2H3", Keys.ENTER)
    before, link = {name: page.data(name) for name in STAMPS}, link_of(page)
    assert link.startswith("file:///")
    page.browser.get("about:blank")
    page.open(link)
    after = {name: page.data(name) for name in STAMPS}
    assert {k: v for k, v in after.items() if k not in ("from", "to")} == {
        k: v for k, v in before.items() if k not in ("from", "to")
    }
    for name in ("from", "to"):
        assert float(after[name]) == pytest.approx(float(before[name]), abs=0.01)
    chosen = [page[name].get_attribute("value") for name in ("show", "colour", "order")]
    assert chosen == ["born", "mean", "layer"]
    assert page.texts("#metric option:checked") == ["learning_rate"]
    until(lambda: "head=L2H3" in page.browser.current_url)  # the address follows the view
    at_link(page, "#view=circuit&head=L0H1")
    assert page.data("view") == "circuit"


@pytest.mark.parametrize(
    "text",
    [
        "#view=constructor&head=L99H0&step=7&layers=4-1&zoom=9~1&edges=-3&share=7&heads=__proto__",
        "#%E0%A4%A&run=%00&head=%3Cimg%20src=x%20onerror=alert(1)%3E&curve=toString",
        "#=&&==&view",
    ],
)
def test_links_that_make_no_sense_change_nothing(open_page: Open, run: Timeline, text: str):
    page = open_page(run)
    before = {name: page.data(name) for name in STAMPS}
    url = page.browser.current_url.split("#")[0]
    page.browser.get("about:blank")
    page.open(url + text)
    assert page.data("error") is None
    assert {name: page.data(name) for name in STAMPS} == before


def test_links_and_views_work_in_a_sandboxed_frame(open_page: Open, run: Timeline, tmp_path: Path):
    """How trackers show it: scripts allowed, no origin of its own, no clipboard."""
    page = open_page(run)
    outer = tmp_path / "outer.html"
    outer.write_text(
        '<!doctype html><title>x</title><iframe sandbox="allow-scripts" src="report.html" '
        'width="900" height="700"></iframe>'
    )
    page.browser.get(outer.as_uri())
    page.browser.switch_to.frame(0)
    try:
        page.wait()
        page["tab-circuit"].click()
        link = link_of(page)
        assert link.startswith("#rule=growth&view=circuit&step=800")
        page["tab-head"].click()
        until(lambda: page.data("view") == "head")
        page.browser.execute_async_script("setTimeout(arguments[0], 600)")  # the address follows
        assert page.data("error") is None
    finally:
        page.browser.switch_to.default_content()


# -- contrast, width, paper ------------------------------------------------------------------

CONTRAST = r"""
const parts = text => (text.match(/[\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ratio = (a, b) => {
  const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
};
const below = element => {
  for (let e = element; e; e = e.parentElement) {
    const colour = parts(getComputedStyle(e).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const found = [];
for (const element of document.body.querySelectorAll('*')) {
  const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!own || !element.getClientRects().length || element.matches(':disabled')) continue;
  if (/SCRIPT|NOSCRIPT|OPTION|STYLE/i.test(element.tagName)) continue;
  const style = getComputedStyle(element);
  if (style.visibility === 'hidden' || element.closest('.hidden')) continue;
  const isDrawn = element instanceof SVGElement;
  const ink = parts(isDrawn ? style.fill : style.color);
  const mark = isDrawn && element.previousElementSibling;
  const paper = mark && mark.tagName === 'rect' ? parts(getComputedStyle(mark).fill) :
    below(element);
  found.push([element.textContent.trim().slice(0, 40), ratio(ink, paper)]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_every_view(open_page: Open, run: Timeline, scheme: str):
    other = large_run(checkpoints=4, graph=GRAPH, probes=PROBES, emergent_share=0.2)
    page = open_page(run, Timeline(other, name="other", problems=["a problem"]))
    page.media(prefers_color_scheme=scheme)
    until(lambda: page.data("theme") == scheme)
    for view in ("timeline", "head", "circuit"):
        page[f"tab-{view}"].click()
        for details in page.browser.find_elements("css selector", "details:not([open]) > summary"):
            if details.is_displayed():
                details.click()
        found = page.browser.execute_script(CONTRAST)
        assert len(found) > 60
        assert [(text, ratio) for text, ratio in found if ratio < 4.5] == []
    page.browser.execute_script("document.getElementById('title').style.color = '#777'")
    low = [ratio for _, ratio in page.browser.execute_script(CONTRAST) if ratio < 4.5]
    assert len(low) == 1  # the measure would see it


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def ratio(a: str, b: str) -> float:
    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


def test_text_on_canvases_has_contrast():
    folder = Path(render_report.__code__.co_filename).parent / "page"
    script = "".join((folder / name).read_text() for name in SCRIPTS)
    table = re.search(r"COHORT_COLOURS = \[(.*?)\];", script, re.DOTALL)
    pairs = re.findall(r'\["(#\w+)", "(#\w+)"\]', table[1])
    assert len(pairs) == 6
    assert all(ratio(*pair) >= 4.5 for pair in pairs)
    style = (folder / "page.css").read_text()
    for block in re.findall(r":root[^{]*\{([^}]*--[^}]*)\}", style):
        colours = dict(re.findall(r"--([\w-]+): (#\w+)", block))
        for ink in ("ink", "soft", "accent"):
            for paper in ("paper", "raised"):
                assert ratio(colours[ink], colours[paper]) >= 4.5


@pytest.mark.parametrize("view", ["head", "circuit"])
def test_views_fit_a_narrow_screen(open_page: Open, run: Timeline, view: str):
    page = open_page(run)
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 800, "deviceScaleFactor": 2, "mobile": True},
    )
    until(lambda: page.browser.execute_script("return innerWidth") == 360)
    page[f"tab-{view}"].click()
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 360
    drawing = page.browser.find_element(
        "css selector", {"head": "#importance-plot canvas", "circuit": "#circuit-plot svg"}[view]
    )
    assert 250 < drawing.rect["width"] <= 360


def test_every_view_has_a_caption(open_page: Open, run: Timeline):
    page = open_page(run, Timeline(make_run(STORY), name="story"))
    for view in ("timeline", "head", "circuit"):
        page[f"tab-{view}"].click()
        for section in page.browser.find_elements("css selector", f"#{view}-view section"):
            captions = section.find_elements("css selector", ".caption")
            assert captions, section.get_attribute("outerHTML")[:200]
            assert all(15 < len(caption.text) < 450 for caption in captions)


def test_paper_is_white(open_page: Open, run: Timeline):
    page = open_page(run, folded=True)
    page.media(prefers_color_scheme="dark")
    until(lambda: page.data("theme") == "dark")
    page.browser.execute_script(
        """window.addEventListener('beforeprint', () => {
        window.seen = document.documentElement.dataset.theme;});"""
    )
    printed: dict[str, Any] = page.browser.execute_cdp_cmd("Page.printToPDF", {})
    assert len(printed["data"]) > 20_000
    assert page.browser.execute_script("return window.seen") == "light"
    assert not page.browser.find_elements("css selector", "details:not([open])")
    until(lambda: page.data("theme") == "dark")
