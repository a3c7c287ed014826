"""The report in a real browser: two rules, what is undecided, how sure each number is, the null."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from factories import SMALL, STORY, holding, make_run
from test_report_browser import Open, Page, browser, open_page, pytestmark, until
from test_report_views import at_link, link_of, luminance

from sparks.attribution.snapshot import Snapshot
from sparks.timeline.comparison import Comparison
from sparks.timeline.nulls import null_of
from sparks.timeline.regimes.regime import Regime, circuit_turnover
from sparks.timeline.timeline import Timeline

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.keys import Keys  # noqa: E402

# The fixtures are those of the report's own browser tests.
__all__ = ["browser", "open_page", "pytestmark"]

PROBES = 16
STEPS = range(0, 170, 10)


def planted(counts: dict[str, Any], step: int) -> np.ndarray:
    """[probes, layers, heads]: name -> number of probes at the step, of each half of them."""
    held = np.zeros((2, PROBES, SMALL.num_layers, SMALL.num_heads), dtype=bool)
    for name, of_step in counts.items():
        for group, count in enumerate(of_step(step)):
            held[group, :count, *SMALL.head(name)] = True
    return held.reshape(2 * PROBES, SMALL.num_layers, SMALL.num_heads)


HEADS = {
    "L0H0": lambda _: (16, 16),  # base
    "L1H1": lambda step: (step // 10, 0),  # a probe more a checkpoint: settled late; specific
    "L2H3": lambda step: (16, 16) if step >= 20 else (0, 0),  # shared
    "L2H0": lambda step: (16 if step >= 50 else 0, 5),  # the control cannot tell
    "L2H1": lambda step: (5 if step < 20 else 7 if step < 50 else 10, 0),  # undecided throughout
    "L0H3": lambda step: (1 if step % 20 else 0, 0),  # flickers in one probe
}


def mixed_run() -> list[Snapshot]:
    groups = [""] * PROBES + ["control"] * PROBES
    run = make_run({step: dict.fromkeys(HEADS, 32) for step in STEPS}, probes=32, groups=groups)
    out = []
    for snapshot in run:
        out.append(holding(snapshot, planted(HEADS, snapshot.step)))
    return out


@pytest.fixture(scope="module")
def mixed() -> Timeline:
    return Timeline(mixed_run(), name="mixed")


def choose_head(page: Page, name: str) -> dict[str, str]:
    """Its facts at the cursor."""
    page.press("find", name, Keys.ENTER)
    page["find"].clear()
    return dict(zip(page.texts("#page-facts dt"), page.texts("#page-facts dd"), strict=True))


def row_of(page: Page, name: str) -> dict[str, str]:
    names = [re.sub(" [↑↓]$", "", text) for text in page.texts("#births th")]
    for row in page.browser.find_elements("css selector", "#births tbody tr"):
        cells = [cell.text for cell in row.find_elements("tag name", "td")]
        if cells[0] == name:
            return dict(zip(names, cells, strict=True))
    raise AssertionError(name)


def show(page: Page, curve: str) -> None:
    page.choose("metric", page.texts("#metric option").index(curve))


# -- two rules -------------------------------------------------------------------------------


def test_the_rule_of_growth_is_the_default_and_a_control_changes_it(
    open_page: Open, mixed: Timeline
):
    page, paper = open_page(mixed), mixed.by("paper")
    assert page["rule"].get_attribute("value") == page.data("rule") == "growth"
    for _ in range(2):
        for rule, run in (("paper", paper), ("growth", mixed)):
            page.choose("rule", rule)
            counts, last = run.counts(), len(run) - 1
            assert page.data("rule") == rule
            for name in ("active", "emergent", "retained", "undecided"):
                assert page.data(name) == str(counts[name][last]), (rule, name)
            assert page.data("born") == str((run.cohort >= 0).sum())
            assert page["notes"].text.startswith({"paper": "Paper", "growth": "Rule of"}[rule])
            assert page.texts("#numbers dd")[2].split(" / ")[0] == str((run.cohort >= 0).sum())
    assert paper.counts()["active"].iloc[-1] != mixed.counts()["active"].iloc[-1]


def test_every_view_changes_with_the_rule_and_changes_back(open_page: Open, mixed: Timeline):
    page = open_page(mixed)
    plots = ("cohorts-plot", "rows-plot", "grid-plot", "strip-plot")

    def seen() -> dict[str, Any]:
        words = {name: page[name].text for name in ("summary", "notes", "births", "checkpoints")}
        return words | {name: page.pixels(name) for name in plots}

    page.press("grid-plot", *[Keys.ARROW_UP] * 3, *[Keys.ARROW_LEFT] * 4)
    page.press("grid-plot", *[Keys.ARROW_DOWN] * 2, Keys.ARROW_RIGHT)  # L2H1
    before = seen()
    page.choose("rule", "paper")
    other = seen()
    assert [name for name in before if before[name] == other[name]] == []
    page.choose("rule", "growth")
    assert seen() == before


def test_states_of_the_paper_are_worked_out_by_the_page(open_page: Open, mixed: Timeline):
    page, paper = open_page(mixed.by("paper")), mixed.by("paper")
    assert page.data("rule") == "paper"  # as the timeline was read
    page.press("cohorts-plot", Keys.HOME)
    for _, row in paper.counts().iterrows():
        found = [int(page.data(k)) for k in ("step", "active", "emergent", "retained", "newly")]
        assert found == [row[k] for k in ("step", "active", "emergent", "retained", "born")]
        page.press("cohorts-plot", Keys.ARROW_RIGHT)
    for name in ("L0H3", "L1H1"):
        choose_head(page, name)
        events = paper.events().query(f"head == '{name}'")
        assert page.texts("#page-history li") == [
            f"{kind} {step}" for step, kind in zip(events.step, events.kind, strict=True)
        ]


def test_the_rule_is_in_the_link(open_page: Open, mixed: Timeline):
    page = open_page(mixed)
    page.choose("rule", "paper")
    show(page, "emergent heads")
    link = link_of(page)
    assert "#rule=paper&" in link
    page.browser.get("about:blank")
    page.open(link)
    assert (page.data("rule"), page["rule"].get_attribute("value")) == ("paper", "paper")
    assert page.texts("#metric option:checked") == ["emergent heads"]
    at_link(page, "#rule=growth&view=head")
    until(lambda: page.data("rule") == "growth")
    page.browser.execute_script("location.hash = '#rule=nonsense'")
    until(lambda: "nonsense" in page.browser.current_url)
    assert (page.data("rule"), page.data("error")) == ("growth", None)


def test_compared_runs_follow_the_rule(open_page: Open, mixed: Timeline):
    flat = Timeline(mixed_run()[:1] * 1 + mixed_run()[5:], name="late")
    runs = [mixed, flat]
    page = open_page(*runs)
    for rule in ("growth", "paper"):
        page.choose("rule", rule)
        frame = Comparison.of([run.by(rule) for run in runs]).runs()
        born = page.texts("#compared-runs tbody td:nth-child(3)")
        assert born == [str(count) for count in frame["born"]]
        page.choose("run", 1)
        assert page.data("rule") == rule
        assert page.data("born") == str((flat.by(rule).cohort >= 0).sum())
        page.choose("run", 0)


# -- what is undecided -----------------------------------------------------------------------

CELL = """
const canvas = document.querySelector('#grid-plot canvas'), ratio = window.devicePixelRatio;
const [row, column] = arguments;
const pen = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d');
pen.drawImage(canvas, 0, 0);
const wide = Math.round(32 * ratio), tall = Math.round(20 * ratio);
const {data} = pen.getImageData(Math.round((30 + 32 * column + 4) * ratio),
  Math.round((2 + 20 * row + 4) * ratio), wide - 14, tall - 10);
const seen = {};
for (let i = 0; i < data.length; i += 4) {
  const colour = [data[i], data[i + 1], data[i + 2]].join();
  seen[colour] = (seen[colour] || 0) + 1;
}
return seen;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_undecided_heads_are_striped_in_both_colour_modes(
    open_page: Open, mixed: Timeline, scheme: str
):
    page = open_page(mixed)
    page.media(prefers_color_scheme=scheme)
    until(lambda: page.data("theme") == scheme)

    def cell(layer: int, head: int) -> list[str]:
        return list(page.browser.execute_script(CELL, layer, head))

    for colour in ("frequency", "importance", "effect", "mean"):
        page.choose("colour", colour)
        striped, plain = cell(2, 1), cell(0, 0)
        assert len(plain) == 1
        assert len(striped) > 3
        lights = [
            luminance("#" + "".join(f"{int(part):02x}" for part in text.split(",")))
            for text in striped
        ]
        assert (max(lights) + 0.05) / (min(lights) + 0.05) >= 3  # not by colour alone
    page.choose("rule", "paper")
    assert len(cell(2, 1)) == 1


def test_undecided_is_told_in_legends_and_words(open_page: Open, mixed: Timeline):
    page = open_page(mixed)
    assert mixed.undecided[-1].sum() == 1
    assert "1 more is undecided there, so 4 to 5." in page["summary"].text
    assert any(text.startswith("undecidedstriped") for text in page.texts("#scale .ramp"))
    assert page["cohorts-text"].text.endswith("base, 1 undecided")
    assert "Striped" in page["grid-caption"].text
    page.choose("show", "open")
    assert page.data("rows") == str(mixed.undecided.any(axis=0).sum())
    assert row_of(page, "L2H1")["state at the end"] == "undecided"
    assert choose_head(page, "L2H1")["State"] == "undecided"
    assert page["page-kind"].text == "never active for sure"
    assert page["page-words"].text == ("Never active; undecided at 17.")
    page.choose("rule", "paper")
    page["tab-timeline"].click()
    assert not [text for text in page.texts("#scale .ramp, #cohorts-legend li")
                if "undecided" in text]  # fmt: skip


def test_undecided_heads_of_the_circuit_have_a_dashed_frame(open_page: Open, mixed: Timeline):
    page = open_page(mixed)
    page["tab-circuit"].click()

    def dashed() -> list[str]:
        found = page.browser.find_elements(
            "css selector", "#circuit-plot [stroke-dasharray] ~ text"
        )
        return [text.text for text in found]

    assert dashed() == ["L2H1"]
    node = page.browser.find_element("css selector", "#circuit-plot [data-name=L2H1]")
    assert "undecided, share 0." in node.get_attribute("data-tip")
    assert "dashed frame: undecided" in page["circuit-caption"].text
    page.choose("rule", "paper")
    assert dashed() == []


def test_active_heads_have_a_band_up_to_the_undecided_ones(open_page: Open, mixed: Timeline):
    page, counts = open_page(mixed), mixed.counts()
    show(page, "active heads")
    for at in (0, 7, 16):
        page.press("metric-plot", Keys.HOME, *[Keys.ARROW_RIGHT] * at)
        row = counts.iloc[at]
        high = row.active + row.undecided
        assert page["metric-text"].text == (
            f"step {row.step:.0f}: {row.active:.0f} ({row.active:.0f}\u2013{high:.0f})"
        )
    assert "Band: up to the active and undecided" in page["metric-caption"].text
    band = page.pixels("metric-plot")
    page.choose("rule", "paper")
    assert page.pixels("metric-plot") != band
    assert "Band" not in page["metric-caption"].text


def test_with_too_few_probes_the_base_is_shown_and_nothing_is_born(open_page: Open):
    page = open_page(Timeline(make_run({0: ["L0H0"], 10: ["L1H1"]}, probes=2)))
    assert page["show"].get_attribute("value") == "ever"
    assert (page.data("active"), page.data("born")) == ("1", "0")
    assert "too few probes: 2" in page["verdict"].text


# -- how sure --------------------------------------------------------------------------------


def ends_of(text: str) -> list[float]:
    return [float(part) for part in re.findall(r"[\d.]+", text)][:3]


def test_share_and_importance_have_intervals_at_every_checkpoint(open_page: Open, mixed: Timeline):
    page = open_page(mixed)
    choose_head(page, "L1H1")
    for at in (3, 9, 16):
        page.press("usage-plot", Keys.HOME, *[Keys.ARROW_RIGHT] * at)
        facts = dict(zip(page.texts("#page-facts dt"), page.texts("#page-facts dd"), strict=True))
        place = (at, 1, 1)
        expected = [values[place] for values in
                    (mixed.share, mixed.share_low, mixed.share_high)]  # fmt: skip
        assert ends_of(facts["Share, in even ones (95 %)"]) == pytest.approx(expected, rel=0.1)
        low, high = (100 * float(end[1, 1]) for end in mixed.importance_interval(at))
        found = ends_of(facts["Importance (95 %)"])
        assert found[1:] == pytest.approx([low, high], rel=0.15, abs=0.2)
        assert found[1] < found[0] < found[2]
    band = page.pixels("usage-plot")
    assert len(set(band)) > 5
    page["tab-timeline"].click()
    row = row_of(page, "L1H1")
    assert ends_of(row["share at the end, in even ones (95 %)"]) == pytest.approx(expected, rel=0.1)
    assert len(ends_of(row["importance at the end (95 %)"])) == 3


def test_large_reports_say_which_intervals_they_leave_out(
    open_page: Open, mixed: Timeline, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sparks.views.report.cells.MOST_CELLS", 20)
    page = open_page(mixed)
    facts = choose_head(page, "L1H1")
    low, high = (100 * float(end[1, 1]) for end in mixed.importance_interval(-1))
    found = ends_of(facts["Importance (95 %)"])
    assert found[1:] == pytest.approx([low, high], rel=0.15, abs=0.2)
    assert "its interval at the last checkpoint only" in page["importance-caption"].text
    page.press("usage-plot", Keys.ARROW_LEFT)
    facts = dict(zip(page.texts("#page-facts dt"), page.texts("#page-facts dd"), strict=True))
    assert facts["Importance (95 %)"].endswith("(interval at the last checkpoint only)")
    never = choose_head(page, "L0H1")["Share, in even ones (95 %)"]
    assert never == "not in this page: never active or undecided"


def test_a_birth_that_was_settled_late_is_marked(open_page: Open, mixed: Timeline):
    page = open_page(mixed)
    (event,) = [e for e in mixed.event_list() if e.name == "L1H1"]
    since = event.onset
    assert 0 < since < event.step
    late = f"{event.step} (late: shows since {since})"
    assert row_of(page, "L1H1")["born at"] == late
    assert row_of(page, "L2H3")["born at"] == "20"
    choose_head(page, "L1H1")
    kind = f"born at step {event.step}, settled late: shows since step {since}"
    assert page["page-kind"].text == kind
    assert f"settled (it shows since step {since})" in page["page-words"].text
    assert page.texts("#page-history li") == [f"born {event.step}, shows since {since}"]
    assert "settled later than it shows" in page.texts("#summary")[0]
    # Before it is settled, it is not shown as born.
    page.press("usage-plot", Keys.HOME, *[Keys.ARROW_RIGHT] * (since // 10 + 1))
    assert page.data("step") == str(since + 10)
    state = dict(zip(page.texts("#page-facts dt"), page.texts("#page-facts dd"), strict=True))
    assert state["State"] == mixed.state_names()[since // 10 + 1, 1, 1] != "active"


def test_specificity_is_told_where_there_are_controls(open_page: Open, mixed: Timeline):
    page = open_page(mixed)
    expected = mixed.specificity()
    found = {name: row_of(page, name)["specificity"] for name in ("L1H1", "L2H3", "L2H0", "L0H0")}
    assert found == {"L1H1": "specific", "L2H3": "shared", "L2H0": "undecided", "L0H0": "\u2013"}
    assert [expected[1, 1], expected[2, 3], expected[2, 0]] == list(found.values())[:3]
    facts = choose_head(page, "L2H3")
    assert facts["Specificity"] == "shared: born or active on the control probes too"
    assert "shared: born" in page["page-words"].text
    assert "Specificity" not in choose_head(page, "L0H0")
    page["tab-timeline"].click()
    control = mixed.control
    show(page, "control: emergent heads")
    assert page["metric-text"].text == f"step 160: {control.counts()['emergent'].iloc[-1]}"
    bare = open_page(Timeline(make_run(STORY)))
    assert "specificity" not in bare.texts("#births th")
    assert not [text for text in bare.texts("#metric option") if "control" in text]


# -- beside the heads ------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["growth", "paper"])
def test_the_null_is_a_band_behind_the_births(open_page: Open, mixed: Timeline, rule: str):
    run = mixed.by(rule)
    band, page = null_of(run), open_page(run)
    low, high = (round(end, 1) for end in (band.births_low, band.births_high))
    text = f"{low:g}\u2013{high:g}"
    assert page.texts("#cohorts-legend b")[-1] == text
    assert "null (unchanged model)" in page.texts("#cohorts-legend span")
    show(page, "emergent heads")
    assert page["metric-text"].text.endswith(f"; null {text}")
    assert band.source in page["metric-caption"].text
    assert "than its null" in page["notes"].text
    drawn = page.pixels("metric-plot")
    show(page, "base heads retained")  # has no null
    assert "null" not in page["metric-text"].text + page["metric-caption"].text
    assert page.pixels("metric-plot") != drawn


COLUMN = """
const canvas = document.querySelector('#' + arguments[0] + ' canvas');
const pen = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d');
pen.drawImage(canvas, 0, 0);
const ratio = window.devicePixelRatio, right = canvas.width - Math.round(14 * ratio);
const {data} = pen.getImageData(right, 0, 1, canvas.height), inked = [];
for (let y = 0; y < canvas.height; y++) if (data[4 * y + 3] > 20) inked.push(y / ratio);
return inked;
"""
"""Where something is drawn near the right edge, behind the last checkpoint; pixels from the top."""


@pytest.mark.parametrize("births", [(1.0, 2.0, 3.0), (0.0, 0.0, 0.0)])
def test_the_band_of_the_null_lies_where_its_ends_are(
    open_page: Open,
    mixed: Timeline,
    monkeypatch: pytest.MonkeyPatch,
    births: tuple[float, float, float],
):
    ends = dict(zip(("births_low", "births_median", "births_high"), births, strict=True))
    band = replace(null_of(mixed), **ends)
    monkeypatch.setattr("sparks.views.report.looks.null_of", lambda _: band)
    beyond = [{"step": step, "loss": 1.0} for step in (0, int(mixed.steps[-1]) + 27)]
    page = open_page(Timeline(mixed.snapshots, metrics=beyond))  # with room behind the last one
    show(page, "emergent heads")
    most = mixed.counts()["emergent"].max()
    assert most == 3
    for plot, low, high, top, height in (
        ("cohorts-plot", 0, 3 * 1.05, 10, 250 - 32), ("metric-plot", -0.18, 3.18, 10, 138 - 32)
    ):  # fmt: skip
        inked = page.browser.execute_script(COLUMN, plot)
        bottom, unit = top + height, height / (high - low)
        inside = [
            y for y in inked
            if bottom - (births[2] - low) * unit - 2 < y < bottom - (births[0] - low) * unit + 2
        ]  # fmt: skip
        assert len(inside) / len(inked) > 0.7 if births[2] else len(inked) < 12
        if births[2]:
            assert len(set(map(round, inside))) == pytest.approx(2 * unit, abs=5)


def test_without_a_null_the_page_says_why(open_page: Open):
    page = open_page(Timeline(make_run({0: ["L0H0"], 10: ["L1H1"]}, probes=2), rule="paper"))
    assert "2 probes are too few for a null" in page["notes"].text
    assert not [text for text in page.texts("#cohorts-legend li") if "null" in text]
    show(page, "emergent heads")
    assert "null" not in page["metric-text"].text


def test_edges_beside_heads(open_page: Open, mixed: Timeline):
    page, rows = open_page(mixed), circuit_turnover(mixed)
    names = {
        "edges moved since the checkpoint before": "edges_from_previous",
        "heads moved since the first checkpoint": "heads_from_first",
        "stability of edges between probes (Jaccard)": "edges_stability",
    }
    for name, field in names.items():
        show(page, name)
        value = getattr(rows[-1], field)
        expected = [160, value.value, value.low, value.high]
        found = [float(part) for part in re.findall(r"[\d.]+", page["metric-text"].text)]
        assert found == pytest.approx(expected, abs=0.004)
        assert "95 % interval over probes" in page["metric-caption"].text
    heading = page.texts("#checkpoints th")
    last = page.texts("#checkpoints tbody tr:last-child td")
    moved = dict(zip(heading, last, strict=True))["edges moved"]
    assert float(moved.split()[0]) == pytest.approx(
        100 * rows[-1].edges_from_previous.value, abs=0.5
    )


def test_the_regime_has_its_evidence(open_page: Open, mixed: Timeline):
    page = open_page(mixed)
    for rule in ("growth", "paper"):
        page.choose("rule", rule)
        regime = Regime.of(mixed.by(rule))
        assert regime.verdict == "undecided"
        assert page["regime-title"].text == "Regime: undecided"
        assert page["regime-reason"].text == regime.reason
        assert page.texts("#regime-evidence li") == list(regime.evidence)


def test_heads_under_each_setting_follow_the_cursor(open_page: Open):
    run = make_run({0: {"L0H0": 16}, 10: {"L0H0": 16, "L1H1": 16}})
    held = np.array(run[1].grid_active)
    held[:3, :, 1, 1] = False  # the smallest share of edges
    held[8, :4, 2, 2] = True  # in a quarter of the circuits of the last setting
    run[1] = replace(run[1], grid_active=held)
    page = open_page(Timeline(run))
    assert page["settings-title"].text == "Heads under each circuit setting at step 10"
    assert page.texts("#circuit-settings th") == [
        "edges kept", *(f"\u03c4 = {tau} % of L" for tau in ("0.3", "0.6", "1.2"))
    ]  # fmt: skip
    assert page.texts("#circuit-settings td") == [
        *("2 % of all", "1 (1)", "1 (1)", "1 (1)"),
        *("5 % of all", "2 (2)", "2 (2)", "2 (2)"),
        *("10 % of all", "2 (2)", "2 (2)", "2 (3)"),
    ]
    words = page["settings-caption"].text
    assert "top 5000 edges, |score| at least 0.1" in words
    assert "any probe\u2019s circuit holds the head: 2 here" in words
    page.press("cohorts-plot", Keys.ARROW_LEFT)
    assert page.texts("#circuit-settings td:nth-child(2)") == ["1 (1)"] * 3


def test_snapshots_without_a_grid_say_so(open_page: Open):
    page = open_page(Timeline(make_run(STORY, grid=False)))
    assert not page["circuit-settings"].is_displayed()
    assert "hold no grid of settings" in page["settings-caption"].text


def test_points_and_gap_stand_together(open_page: Open):
    run = make_run({0: ["L0H0"], 10: ["L0H0"]})
    run[1] = replace(run[1], points=np.array([36] * 8 + [324] * 8, np.int32))
    page = open_page(Timeline(run))
    cells = dict(zip(page.texts("#checkpoints th"),
                     page.texts("#checkpoints tbody tr:last-child td"), strict=True))  # fmt: skip
    assert cells["points, m"] == "36 \u00b7 180 \u00b7 324"
    show(page, "points a probe, m (median)")
    assert page["metric-text"].text == "step 10: 180 (36\u2013324)"
    assert "4 to 324 points" in page["more-numbers"].text
