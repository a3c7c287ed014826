"""What was measured: probe texts reach the page shortened, counted, and as text alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from factories import GROWN_GROUPS, grown_run, make_run, write_run
from test_report_browser import HOSTILE, browser, needs_browser, open_page

from sparks.probes.probes import Probe, ProbeSet
from sparks.runs.run_folder import RunStore
from sparks.timeline.timeline import Timeline
from sparks.views.report import render_report
from sparks.views.report.probes import MOST_BYTES, MOST_CONTROLS, MOST_PROBES, probe_data

__all__ = ["browser", "open_page"]


def probes(groups: list[str] = GROWN_GROUPS, prompt: Any = "1 + 1 =") -> ProbeSet:
    return ProbeSet(tuple(Probe(prompt, f" 2 of {i}", f" 3 of {i}", group=group)
                          for i, group in enumerate(groups)))  # fmt: skip


def sent(texts: ProbeSet | None, **keywords: Any) -> Any:
    return probe_data(Timeline(grown_run(), probes=texts, **keywords))["texts"]


def test_a_few_of_each_kind_are_sent_and_the_rest_counted():
    found = sent(probes())
    assert found["groups"] == [["sums", 24], ["control", 8]]
    assert [text[3] for text in found["shown"]] == ["sums"] * MOST_PROBES + [
        "control"
    ] * MOST_CONTROLS
    assert found["shown"][0] == ["1 + 1 =", "2 of 0", "3 of 0", "sums"]
    assert found["shown"][MOST_PROBES][1] == "2 of 24"
    only = sent(probes(), group="control")
    assert only["groups"] == [["control", 8]]
    assert len(only["shown"]) == 8


def test_long_prompts_keep_both_ends_and_all_texts_fit():
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "\u6f22" * 5000},
    ]
    found = sent(probes(prompt=chat))
    prompt = found["shown"][0][0]
    assert prompt.startswith("system: Be brief. user: \u6f22")
    assert "\u2026" in prompt
    assert len(prompt) < 320
    assert 0 < len(found["shown"]) < MOST_PROBES + MOST_CONTROLS  # six bytes a sign
    assert len(json.dumps(found["shown"])) <= MOST_BYTES


@pytest.mark.parametrize("texts", [None, probes(GROWN_GROUPS[:-1])])
def test_without_the_texts_of_all_probes_nothing_is_said(texts: ProbeSet | None):
    assert sent(texts) is None


def test_the_texts_are_those_of_the_run_folder(tmp_path: Path):
    write_run(tmp_path, grown_run())
    assert Timeline.from_run(tmp_path).probes is None
    RunStore(tmp_path).write_probes(probes().to_jsonl())
    timeline = Timeline.from_run(tmp_path)
    assert timeline.probes == probes()
    assert timeline.by("paper").probes == probes()
    (tmp_path / "probes.jsonl").write_text('{"prompt": "cut')
    assert Timeline.from_run(tmp_path).probes is None
    assert Timeline.from_run(tmp_path).problems == Timeline(grown_run()).problems


def test_texts_are_beside_the_budget():
    bare, full = (len(render_report([Timeline(grown_run(), probes=texts)]))
                  for texts in (None, probes(prompt="\u6f22" * 5000)))  # fmt: skip
    assert full - bare < MOST_BYTES + 3000


@pytest.mark.browser
@needs_browser
def test_the_page_shows_what_was_measured(open_page: Any):
    page = open_page(Timeline(grown_run(), probes=probes()), folded=True)
    assert page["measured-line"].text == (
        "Measured: after \u201c1 + 1 =\u201d, what makes the model write \u201c2 of 0\u201d rather "
        "than \u201c3 of 0\u201d?"
    )
    assert page["measured-text"].text == "24 sums, 8 control"
    assert page.texts("#probes tbody tr:first-child td") == ["1 + 1 =", "2 of 0", "3 of 0", "sums"]
    assert len(page.texts("#probes tbody tr")) == 3
    assert page["measured-more"].text == "Show 20 of 32"
    page["measured-more"].click()
    assert len(page.texts("#probes tbody tr")) == 20
    assert not page["measured-more"].is_displayed()


@pytest.mark.browser
@needs_browser
def test_hostile_texts_are_inert(open_page: Any):
    one = Probe(HOSTILE, f"{HOSTILE}\u202e a", f"{HOSTILE}b", group=HOSTILE)
    evil = ProbeSet((one,) * 16)
    page = open_page(Timeline(make_run({0: ["L0H0"], 10: ["L0H1"]}), name="x", probes=evil))
    assert page.texts("#probes tbody tr:first-child td")[0] == HOSTILE
    assert page.texts("#probes tbody tr:first-child td")[1] == f"{HOSTILE}\ufffd a"
    assert page.browser.find_elements("css selector", "img, #measured b") == []
    assert "pwned" not in page.browser.title


@pytest.mark.browser
@needs_browser
def test_the_first_screen_is_verdict_tiles_and_what_changed(open_page: Any):
    page = open_page(Timeline(grown_run(), probes=probes(), problems=["a file"]), folded=True)
    assert len(page.texts("#numbers dt")) == 3
    hero = page["growth-plot"].rect
    assert hero["y"] + hero["height"] < 700
    for name in ("summary", "notes", "more-numbers", "births", "checkpoints", "settings", "rule"):
        assert not page[name].is_displayed(), name
    words = page.browser.execute_script("return document.body.innerText").split()
    assert len(words) < 700
    assert not page["nothing"].is_displayed()


@pytest.mark.browser
@needs_browser
def test_where_nothing_changed_a_line_says_so_and_the_plots_are_folded(open_page: Any):
    still = Timeline(grown_run(dict.fromkeys((0, 10, 20), 1.0)))
    page = open_page(still, folded=True)
    assert page["nothing"].text == "No head was seen to change: the plots are folded."
    assert not page["rows-plot"].is_displayed()
    page["nothing"].click()
    page.unfold()
    assert page["rows-plot"].is_displayed()
    assert len(set(page.pixels("rows-plot"))) > 5  # drawn once it has a width
    assert not page["cohorts-plot"].is_displayed()  # of no births
