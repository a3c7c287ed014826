"""The report in a real browser: it draws, it follows the reader, and hostile text stays text."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import STORY, large_run, make_metrics, make_run, make_snapshot

from sparks.models.graph import Graph
from sparks.timeline.timeline import Timeline
from sparks.views.report import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

BROWSER = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="chromium and chromedriver are not on the PATH"
)
pytestmark = [pytest.mark.browser, needs_browser]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\"><b>{{script}}</b>"
GRAPH = Graph(num_layers=6, num_heads=8, num_kv_heads=2)
PROBES = 16


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.add_argument("--window-size=1400,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """A report on screen."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def __getitem__(self, name: str) -> Any:
        return self.browser.find_element(By.ID, name)

    def open(self, url: str) -> None:
        """Go there; the page is drawn a moment after it is loaded."""
        self.browser.get(url)
        self.wait()

    def unfold(self) -> None:
        """Open all that is folded, as a reader does who wants the evidence."""
        self.browser.execute_async_script(
            """const [done] = arguments;
            const folds = document.querySelectorAll('details:not(.changes *)');
            for (const fold of folds) fold.open = true;
            setTimeout(done, 20);"""
        )

    def wait(self) -> None:
        """Until it is drawn, or has said why it cannot be."""
        until(lambda: self.data("ready") or self.data("error"))

    def data(self, name: str) -> str:
        return self.browser.execute_script(
            "return document.documentElement.dataset[arguments[0]]", name
        )

    def choose(self, name: str, value: Any) -> None:
        Select(self[name]).select_by_value(str(value))

    def press(self, name: str, *keys: str) -> None:
        self[name].send_keys(*keys)

    def pixels(self, name: str) -> list[int]:
        """A sum of each row of the picture: differs where the drawing does."""
        return self.browser.execute_script(
            """const c = document.querySelector('#' + arguments[0] + ' canvas');
            const copy = new OffscreenCanvas(c.width, c.height).getContext('2d');
            copy.drawImage(c, 0, 0);
            const {data, width} = copy.getImageData(0, 0, c.width, c.height);
            const sums = new Array(c.height).fill(0);
            for (let i = 0; i < data.length; i++) sums[Math.floor(i / 4 / width)] += data[i];
            return sums;""",
            name,
        )

    def lines(self, kind: str = "cursor") -> list[float]:
        """Place of the line in the three plots over time, in pixels of the window."""
        return self.browser.execute_script(
            """return ['metric-plot', 'cohorts-plot', 'rows-plot'].map(name => {
            const line = document.querySelector('#' + name + ' .' + arguments[0]);
            return line.hidden ? null : line.getBoundingClientRect().left;});""",
            kind,
        )

    def texts(self, selector: str) -> list[str]:
        found = self.browser.find_elements(By.CSS_SELECTOR, selector)
        return [element.get_attribute("textContent") for element in found]

    def media(self, **features: str) -> None:
        self.browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]},
        )


Open = Callable[..., Page]


def until(holds: Callable[[], bool]) -> None:
    """Wait for what the page does on its own time."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "waited for 10 s"
        time.sleep(0.02)


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Writes a report and opens it; afterwards the browser must have nothing to complain about."""

    def show(*timelines: Timeline, title: str | None = None, folded: bool = False) -> Page:
        out = write_report(timelines, tmp_path / "report.html", title=title)
        browser.get_log("browser")
        page = Page(browser)
        page.open(out.as_uri())
        assert page.data("error") is None
        assert page.data("ready") == "1"
        if not folded:
            page.unfold()
        return page

    yield show
    messages = browser.get_log("browser")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert messages == []


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    run = large_run(checkpoints=9, graph=GRAPH, probes=PROBES, emergent_share=0.3)
    return Timeline(run, metrics=make_metrics(range(10, 801, 10)), name="nine")


# -- it is drawn -----------------------------------------------------------------------------


def test_counts_on_the_root_element(open_page: Open):
    page = open_page(Timeline(make_run(STORY), name="story"))
    expected = {
        "runs": 1, "checkpoints": 5, "layers": 3, "heads": 4, "step": 40, "active": 4,
        "emergent": 2, "retained": 2, "newly": 1, "born": 3, "activeAtEnd": 4, "rows": 6,
        "groups": 3, "problems": 0,
    }  # fmt: skip
    assert {name: page.data(name) for name in expected} == {k: str(v) for k, v in expected.items()}


def test_counts_agree_with_the_timeline_at_every_step(open_page: Open, timeline: Timeline):
    page, counts = open_page(timeline), timeline.counts()
    page.press("cohorts-plot", Keys.HOME)
    for _, row in counts.iterrows():
        found = [int(page.data(k)) for k in ("step", "active", "emergent", "retained", "newly")]
        expected = [row["step"], row["active"], row["emergent"], row["retained"], row["born"]]
        assert found == expected
        entries = page.texts("#cohorts-legend b")
        alive = [text.split("/")[0] for text in entries if "/" in text]
        assert sum(map(int, alive)) == row["emergent"]
        page.press("cohorts-plot", Keys.ARROW_RIGHT)


LABELS = """
const pen = document.querySelector('#rows-plot canvas').getContext('2d'), found = [];
const write = pen.fillText.bind(pen);
pen.fillText = (text, x, y) => {
  const box = pen.measureText(text);
  const ends = [y - box.actualBoundingBoxAscent, y + box.actualBoundingBoxDescent];
  if (/^(L\\d+H\\d+|layer \\d+)$/.test(text)) found.push([text, ...ends]);
  write(text, x, y);
};
document.getElementById('order').dispatchEvent(new Event('change', {bubbles: true}));
pen.fillText = write;
return found;
"""
"""Names of rows as they are drawn, with the upper and the lower end of their letters."""


@pytest.mark.parametrize("order", ["birth", "layer"])
@pytest.mark.parametrize("rows", [1, 20, 38, 63, 66, 67, 130])
def test_names_of_rows_do_not_overlap(open_page: Open, rows: int, order: str):
    graph = Graph(num_layers=15, num_heads=9, num_kv_heads=3)
    heads = [f"L{row // 9}H{row % 9}" for row in range(rows)]
    page = open_page(Timeline([make_snapshot(step, heads, graph=graph) for step in (0, 10)]))
    page.choose("order", order)
    assert page.data("rows") == str(rows)
    names = page.browser.execute_script(LABELS)
    assert len(names) >= min(rows, 8)
    for (one, _, bottom), (other, top, _) in pairwise(names):
        assert bottom + 1 <= top, (one, other)  # a pixel between them


def test_every_view_is_painted(open_page: Open, timeline: Timeline):
    page = open_page(timeline)
    for plot in ("metric-plot", "cohorts-plot", "rows-plot", "grid-plot", "strip-plot"):
        assert len(set(page.pixels(plot))) > 5, plot
    for section in page.browser.find_elements(By.CSS_SELECTOR, "section:not([hidden])"):
        assert section.find_elements(By.CSS_SELECTOR, ".caption")


def load_with(browser: Any, script: str) -> None:
    """Load the page again; the script runs before all of it."""
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    try:
        browser.refresh()
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


SLOW = """const read = Response.prototype.arrayBuffer;
Response.prototype.arrayBuffer = async function () {
  await new Promise(go => setTimeout(go, 300));
  return read.call(this);
};
"""
"""Long after the browser has all of the page it is unpacked."""


def test_nothing_is_seen_before_the_whole_page(open_page: Open, timeline: Timeline):
    page = open_page(timeline)
    watch = """
    new MutationObserver(() => {
      if (document.documentElement.dataset.ready) window.readyAt ??= performance.now();
    }).observe(document, {attributes: true, childList: true, subtree: true});"""
    load_with(page.browser, SLOW + watch)
    ready, painted = page.browser.execute_async_script(
        """const [done] = arguments;
        new PerformanceObserver(list => {
          const paint = list.getEntriesByName('first-contentful-paint')[0];
          if (paint) done([window.readyAt, paint.startTime]);
        }).observe({type: 'paint', buffered: true});"""
    )
    assert 0 < ready <= painted


@pytest.mark.parametrize("what", ["an old browser", "a damaged file"])
def test_a_page_that_cannot_be_unpacked_says_so(open_page: Open, what: str, tmp_path: Path):
    page = open_page(Timeline(make_run(STORY)))
    text = (tmp_path / "report.html").read_text()
    if what == "a damaged file":
        cut = text.index('id="code">') + 2000
        (tmp_path / "report.html").write_text(text[:cut] + text[cut + 40 :])
    script = "delete window.DecompressionStream" if what == "an old browser" else ""
    load_with(page.browser, script)
    until(lambda: page["failure"].is_displayed())
    assert page["failure"].text.startswith("This report could not be unpacked")
    assert page.data("ready") is None


def test_loaded_again_the_page_keeps_its_place(open_page: Open, timeline: Timeline):
    page = open_page(timeline)
    page.browser.execute_script("scrollTo(0, 300)")
    until(lambda: page.browser.execute_script("return history.state") == [0, 300])
    load_with(page.browser, SLOW)
    page.wait()
    assert page.browser.execute_script("return scrollY") == 300


def test_policy_blocks_what_is_not_the_report(open_page: Open):
    page = open_page(Timeline(make_run(STORY)))
    blocked = page.browser.execute_async_script(
        """const done = arguments[arguments.length - 1];
        document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective));
        const added = document.createElement('script');
        added.textContent = 'document.title = "pwned"';
        document.body.append(added);"""
    )
    assert blocked == "script-src-elem"
    assert page.browser.title != "pwned"
    assert len(page.browser.get_log("browser")) == 1  # the report of the block itself


def test_hostile_names_are_inert(open_page: Open):
    run = make_run(STORY, model_name=HOSTILE, versions={HOSTILE: HOSTILE})
    metrics = [{"step": step, HOSTILE: step / 40} for step in range(0, 41, 5)]
    timeline = Timeline(run, name=HOSTILE, metrics=metrics, problems=[HOSTILE])
    page = open_page(timeline, title=HOSTILE)
    # An image of the page that failed to load would have acted before one that fails now.
    page.browser.execute_async_script(
        """const [done] = arguments, image = new Image();
        image.onerror = () => done();
        image.src = "x";"""
    )
    assert len(page.browser.get_log("browser")) == 1  # of this image
    assert page.browser.title == HOSTILE
    assert page["title"].text == HOSTILE
    assert HOSTILE in page["about"].text
    assert page.texts("#problem-list li") == [HOSTILE]
    assert page.texts("#metric option")[0] == HOSTILE
    assert page.browser.find_elements(By.CSS_SELECTOR, "img, main b:not(li b), #title b") == []


def test_probe_groups_are_inert(open_page: Open):
    run = make_run(STORY, groups=[HOSTILE] * 16)
    page = open_page(Timeline(run, group=HOSTILE, name="x"))
    assert HOSTILE in page["about"].text
    assert page.browser.title.startswith(f"x \u00b7 llama \u00b7 {HOSTILE[:40]}")
    assert page.browser.find_elements(By.TAG_NAME, "img") == []


def test_limits_and_problems_are_on_the_page(open_page: Open):
    page = open_page(Timeline(make_run({5: ["L0H0"], 10: []}), problems=["a file was skipped"]))
    assert "over 16 probes" in page["notes"].text
    assert "an unchanged model measured with other probes gives" in page["notes"].text
    assert page["problems"].is_displayed()
    assert page.texts("#problem-list li")[0] == "a file was skipped"
    assert "no snapshot of step 0" in page.texts("#problem-list li")[1]
    assert "completeness gap" in page["more-numbers"].text


# -- it follows the reader -------------------------------------------------------------------


def test_slider_moves_one_cursor_in_every_view(open_page: Open, timeline: Timeline):
    page = open_page(timeline)
    before, grid = page.lines(), page.pixels("grid-plot")
    assert before[0] is not None
    assert max(before) - min(before) < 0.5
    page.press("step", Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    after = page.lines()
    assert page.data("step") == "600"
    assert max(after) - min(after) < 0.5
    assert after[0] < before[0] - 20
    assert page.pixels("grid-plot") != grid
    assert page["grid-title"].text.endswith("at step 600")
    assert page["step"].get_attribute("aria-valuetext") == "step 600"


def test_cursor_lies_at_the_true_step(open_page: Open):
    run = make_run({step: ["L0H0"] for step in (0, 10, 20, 100)})
    page = open_page(Timeline(run))
    page.press("metric-plot", Keys.HOME)
    places = []
    for _ in range(4):
        places.append(page.lines()[0])
        page.press("metric-plot", Keys.ARROW_RIGHT)
    plot = page["metric-plot"].rect
    full = [float(page.data("from")), float(page.data("to"))]
    assert full == [0, 100]  # from the first checkpoint to the last
    axis = [plot["x"] + 60, plot["x"] + plot["width"] - 12]
    np.testing.assert_allclose(np.interp([0, 10, 20, 100], full, axis), places, atol=1.5)
    gaps = np.diff(places)
    np.testing.assert_allclose(gaps / gaps[0], [1, 1, 8], atol=0.02)


def test_keys_choose_heads(open_page: Open):
    page = open_page(Timeline(make_run(STORY)))
    page.browser.execute_script("document.getElementById('grid-plot').focus()")
    page.press("grid-plot", *[Keys.ARROW_UP] * 3, *[Keys.ARROW_LEFT] * 5)
    assert page.data("head") == "L0H0"
    page.press("grid-plot", Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert page.data("head") == "L1H1"
    assert page["head-title"].text == "Head L1H1"
    assert page["head-kind"].text == "born at step 10"
    assert page["head-history"].text == "born 10 \u00b7 pruned 30 \u00b7 revived 40"
    page.choose("order", "layer")
    page.press("rows-plot", Keys.ARROW_DOWN)
    assert page.data("head") == "L2H0"
    chosen = page.texts("#births tr.chosen td:first-child")
    assert chosen == ["L2H0"]


def test_head_panel_shows_the_numbers_of_the_timeline(open_page: Open, timeline: Timeline):
    page = open_page(timeline)
    effect = timeline.effect()
    for row in (timeline.heads()["importance_last"].argmax(), int(np.argmax(timeline.base))):
        layer, head = divmod(int(row), GRAPH.num_heads)
        page.press("grid-plot", *[Keys.ARROW_UP] * 6, *[Keys.ARROW_LEFT] * 8)
        page.press("grid-plot", *[Keys.ARROW_DOWN] * layer, *[Keys.ARROW_RIGHT] * head)
        names, texts = page.texts("#head-facts dt"), page.texts("#head-facts dd")
        facts = dict(zip(names, texts, strict=True))
        assert facts["State"] == timeline.state_names()[-1, layer, head]
        used = f"{round(timeline.frequency[-1, layer, head] * PROBES)} of {PROBES}"
        assert facts["Probes that use it"] == used
        importance = [float(x) for x in re.findall(r"[\d.]+", facts["Importance (95 %)"])]
        low, high = (end[layer, head] for end in timeline.importance_interval(-1))
        mid = float(timeline.importance[-1, layer, head])
        assert importance[0] == pytest.approx(100 * mid, rel=6e-3, abs=1e-3)
        if mid:
            assert importance[1] == pytest.approx(100 * low, abs=8 * mid)
            assert importance[2] == pytest.approx(100 * high, rel=0.12)
        shown = float(facts["Change since start"].replace("\u2212", "-"))
        assert shown == pytest.approx(effect[-1, layer, head], abs=0.006)
        held = f"{timeline.active[:, layer, head].sum()} of 9 checkpoints"
        assert facts["Active at"].split(",")[0] == held


@pytest.mark.parametrize("show", ["all", "ever", "born", "base", "end"])
def test_filters(open_page: Open, timeline: Timeline, show: str):
    page = open_page(timeline)
    page.choose("show", show)
    kept = {
        "all": np.ones_like(timeline.base),
        "ever": timeline.active.any(axis=0),
        "born": timeline.cohort >= 0,
        "base": timeline.base,
        "end": timeline.active[-1],
    }[show]
    assert int(page.data("rows")) == kept.sum()
    page.choose("low", 2)
    page.choose("high", 3)
    assert int(page.data("rows")) == kept[2:4].sum()
    assert int(page.data("born")) == (timeline.cohort[2:4] >= 0).sum()
    assert int(page.data("emergent")) == timeline.emergent[-1, 2:4].sum()
    layers = {re.match(r"L(\d+)H", text)[1] for text in page.texts("#births tbody td:first-child")}
    assert layers <= {"2", "3"}
    page.choose("low", 5)  # pushes the other end along
    assert page["high"].get_attribute("value") == "5"


def test_order_and_colour_redraw(open_page: Open, timeline: Timeline):
    page = open_page(timeline)
    seen = [page.pixels("rows-plot")]
    for name, value in (("order", "importance"), ("colour", "importance"), ("colour", "effect")):
        page.choose(name, value)
        seen.append(page.pixels("rows-plot"))
        assert seen[-1] != seen[-2]
    assert "more important than" in page["grid-caption"].text


def test_table_sorts(open_page: Open, timeline: Timeline):
    page = open_page(timeline)
    page.choose("show", "born")
    heads = timeline.heads().dropna(subset="cohort_step")

    def click(name: str) -> list[str]:
        for button in page.browser.find_elements(By.CSS_SELECTOR, "#births th button"):
            if button.text.startswith(name):
                button.click()
                return page.texts("#births tbody td:first-child")
        raise AssertionError(name)

    strongest = heads.sort_values("importance_last", ascending=False, kind="stable")["head"]
    assert click("importance")[:3] == strongest[:3].tolist()
    assert click("importance")[-3:] == strongest[:3].tolist()[::-1]
    most = heads.sort_values("checkpoints_active", ascending=False, kind="stable")["head"]
    assert click("checkpoints")[:5] == most[:5].tolist()
    births = [text.split()[0] for text in page.texts("#births tbody td:nth-child(2)")]
    assert sorted(map(int, births)) == sorted(heads["cohort_step"].tolist())


def test_drag_zooms_and_escape_shows_all(open_page: Open, timeline: Timeline):
    page = open_page(timeline)
    full = (page.data("from"), page.data("to"))
    plot = page["cohorts-plot"]
    drag = ActionChains(page.browser, duration=20).move_to_element_with_offset(plot, -150, 0)
    drag.click_and_hold().move_by_offset(120, 5).move_by_offset(120, 0).release().perform()
    low, high = float(page.data("from")), float(page.data("to"))
    assert 100 < low < high < 700
    assert page["unzoom"].is_enabled()
    places = [place for place in page.lines() if place is not None]
    assert places == []  # the cursor stands at step 800, outside
    page.press("cohorts-plot", Keys.ARROW_LEFT)
    assert float(page.data("from")) <= 700 <= float(page.data("to"))
    page.press("cohorts-plot", Keys.ESCAPE)
    assert (page.data("from"), page.data("to")) == full
    page.press("cohorts-plot", "+")
    assert float(page.data("to")) - float(page.data("from")) < float(full[1]) - float(full[0])
    page["unzoom"].click()
    assert (page.data("from"), page.data("to")) == full


def test_click_pins_and_hover_only_reads(open_page: Open, timeline: Timeline):
    page = open_page(timeline)
    plot = page["cohorts-plot"]
    ActionChains(page.browser, duration=20).move_to_element_with_offset(plot, 0, 0).perform()
    assert page.data("step") == "800"
    assert page["cohorts-text"].text.startswith("step 400:")
    ghosts = page.lines("ghost")
    assert max(ghosts) - min(ghosts) < 0.5
    ActionChains(page.browser).click().perform()
    assert page.data("step") == "400"
    rows = page["rows-plot"]
    ActionChains(page.browser, duration=20).move_to_element_with_offset(rows, 60, 0).perform()
    kind = r"(born at step \d+.*|base head|active, birth not known.*)"
    state = r"step 400: (active|undecided|inactive), share [\d.]+( \([\d.]+\u2013[\d.]+\))?"
    assert re.match(rf"L\dH\d, {kind}\n{state}\n\d+ of 16 probes", page["tip"].text)


def test_any_metric_can_be_chosen(open_page: Open, timeline: Timeline):
    page = open_page(timeline)
    names = page.texts("#metric option")
    assert {"loss", "learning_rate", "completeness gap (worst probe)"} <= set(names)
    assert names[int(page["metric"].get_attribute("value"))] == "loss"
    before = page.pixels("metric-plot")
    page.choose("metric", names.index("completeness gap (worst probe)"))
    assert page.pixels("metric-plot") != before
    assert page["metric-text"].text == "step 800: 0.01"


def test_several_runs(open_page: Open, timeline: Timeline):
    page = open_page(timeline, Timeline(make_run(STORY), name="story"), title="both")
    assert page.browser.title == "both"
    assert page.texts("#run option") == ["nine", "story"]
    assert page.data("checkpoints") == "9"
    page.choose("run", 1)
    assert (page.data("checkpoints"), page.data("heads"), page.data("step")) == ("5", "4", "40")
    assert len(page.texts("#checkpoints tbody tr")) == 5
    page.choose("run", 0)
    assert page.data("checkpoints") == "9"


def test_play_runs_to_the_end(open_page: Open):
    page = open_page(Timeline(make_run({0: ["L0H0"], 10: ["L0H0"]})))
    page["play"].click()
    assert page.data("step") == "0"
    until(lambda: page.data("step") == "10")


# -- edges of the data -----------------------------------------------------------------------


def test_one_checkpoint_without_any_head(open_page: Open):
    page = open_page(Timeline([make_snapshot(0, [])]))
    assert page.data("rows") == "0"
    assert not page["step"].is_enabled()
    page.choose("show", "all")
    assert page.data("rows") == "12"


def test_gaps_are_grey_columns(open_page: Open):
    run = make_run({step: ["L0H0", "L1H1"] for step in (0, 10, 30)})
    lost = Timeline(run, problems=["step-00000020.safetensors: damaged"])
    grey = "return [...document.querySelector('#rows-plot canvas').getContext('2d')"
    grey += ".getImageData(arguments[0], 10, 1, 1).data].slice(0, 3)"

    def colour_at_20(timeline: Timeline) -> list[int]:
        page = open_page(timeline)
        page.media(prefers_color_scheme="light")
        page.press("rows-plot", Keys.ARROW_LEFT)
        left, right = (page.lines()[2], page["rows-plot"].rect["x"])
        scale = (page["rows-plot"].rect["width"] - 72) / 30  # pixels a step: 0 to 30
        return page.browser.execute_script(grey, round(left - right + 10 * scale))

    red, green, blue = colour_at_20(lost)
    assert 120 < red <= green <= blue < 210
    base = colour_at_20(Timeline(run))  # a base head, fading with its share: another grey
    assert sum(base) < 0.9 * (red + green + blue)


def test_big_model_opens(open_page: Open):
    graph = Graph(num_layers=60, num_heads=40, num_kv_heads=8)
    run = large_run(checkpoints=3, graph=graph, probes=2)
    page = open_page(Timeline(run))
    page.choose("show", "all")
    assert page.data("rows") == "2400"
    assert page["rows-plot"].size["height"] < 800
    assert page["births-more"].text == "Show all 2400"


# -- where it is read ------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 768])
def test_narrow_screens_have_one_column_and_no_sideways_scroll(
    open_page: Open, timeline: Timeline, width: int
):
    page = open_page(timeline, title="a_very_long_name_without_any_place_to_break_" * 3)
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": True},
    )
    canvas = page["metric-plot"].find_element(By.TAG_NAME, "canvas")
    until(lambda: page.browser.execute_script("return innerWidth") == width)
    until(lambda: canvas.rect["width"] <= width)  # the page redraws on the next frame
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width
    time_views, now_views = page["rows-plot"].rect, page["grid-plot"].rect
    assert now_views["y"] > time_views["y"] + time_views["height"]
    for name in ("metric-plot", "cohorts-plot", "rows-plot", "grid-plot", "strip-plot"):
        canvas = page[name].find_element(By.TAG_NAME, "canvas").rect
        assert canvas["x"] >= 0
        assert canvas["x"] + canvas["width"] <= width


def test_dark_mode_follows_the_system_until_the_reader_chooses(open_page: Open):
    page = open_page(Timeline(make_run(STORY)))
    paper = "return getComputedStyle(document.body).backgroundColor"
    page.media(prefers_color_scheme="light")
    light, drawn = page.browser.execute_script(paper), page.pixels("cohorts-plot")
    page.media(prefers_color_scheme="dark")
    until(lambda: page.data("theme") == "dark")
    assert page.browser.execute_script(paper) != light
    assert page.pixels("cohorts-plot") != drawn
    page["theme"].click()
    assert page.data("theme") == "light"
    # The page, which listens longer, has heard what a later listener has.
    page.browser.execute_script(
        """window.heard = 0;
        matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => heard++);"""
    )
    for number, scheme in enumerate(("light", "dark"), start=1):
        page.media(prefers_color_scheme=scheme)
        until(lambda number=number: page.browser.execute_script("return heard") == number)
    assert page.data("theme") == "light"


def test_works_in_a_sandboxed_frame(open_page: Open, timeline: Timeline, tmp_path: Path):
    """How trackers show it: scripts allowed, no origin of its own."""
    page = open_page(timeline)
    outer = tmp_path / "outer.html"
    outer.write_text(
        '<!doctype html><title>x</title><iframe sandbox="allow-scripts" src="report.html" '
        'width="400" height="500"></iframe>'
    )
    page.browser.get(outer.as_uri())
    page.browser.switch_to.frame(0)
    try:
        page.wait()
        assert page.data("ready") == "1"
        assert page.data("checkpoints") == "9"
    finally:
        page.browser.switch_to.default_content()
