"""Evaluations in the report: their weight, their texts, and the page in a real browser."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluations_made_here import HOSTILE, SOLVING, make_evaluations
from factories import STORY, make_run
from test_report_browser import Open, browser, needs_browser, open_page

from sparks.timeline.answers import EvaluationHistory
from sparks.timeline.timeline import Timeline
from sparks.views.report import EVALUATED, SCRIPTS, render_report, write_report
from sparks.views.report.data import run_data
from sparks.views.report.evaluation import MOST_TEXT, evaluation_data

# The fixtures are those of the report's own browser tests.
__all__ = ["browser", "open_page"]

PARTS = Path(render_report.__code__.co_filename).parent / "page"


def solving(**keywords) -> Timeline:
    evaluations = make_evaluations(SOLVING, **keywords)
    return Timeline(make_run(STORY), name="solving", evaluations=evaluations)


def detail(timeline: Timeline) -> dict:
    """What the page unpacks."""
    sent = base64.b64decode(evaluation_data(timeline)["evaluation"]["detail"]["packed"])
    return json.loads(zlib.decompress(sent))


# -- what is sent ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain() -> str:
    return render_report([solving()])


def test_a_page_without_evaluations_carries_nothing_of_them(plain: str):
    timeline = Timeline(make_run(STORY), name="solving")
    assert "evaluation" not in run_data(timeline)
    assert len(plain) - len(render_report([timeline])) > 3000
    assert EVALUATED not in SCRIPTS
    assert SCRIPTS[-1] == "steer/controls.js"  # the part that starts the page comes last


def test_numbers_and_changes_are_those_of_the_history():
    timeline = solving()
    found, frame = (
        evaluation_data(timeline)["evaluation"],
        EvaluationHistory.of(timeline).progress(),
    )
    assert found["steps"] == [0, 20, 40]
    assert found["pass_1"] == pytest.approx(frame["pass_1"], abs=1e-4)
    assert found["newly"] == {"solved": [0, 1, 2], "missed": [0, 1, 1]}
    sent = detail(timeline)
    (kind, sure, problem, answer, before, after, then, now) = sent["steps"][1][1]
    assert (kind, sure, before, after) == ("missed", False, 2, 0)
    texts = [sent["texts"][place] for place in (problem, answer, then, now)]
    assert texts == ["What is b?", "b!", "answer 0 of b at 0", "answer 0 of b at 20"]


def test_texts_are_cut_and_cleaned_and_cannot_end_their_element(plain: str):
    timeline = solving(text=HOSTILE + "\x1b[31m\n" + "long " * 1000)
    for text in detail(timeline)["texts"]:
        assert len(text) <= MOST_TEXT
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    page = render_report([timeline])
    assert page.count("</script>") == plain.count("</script>")
    assert "pwned" not in page


def test_many_changes_weigh_less_than_the_run_itself():
    """60 steps, 100 problems, all of them changed, texts of 700 random letters."""
    rng = np.random.default_rng(0)
    names = [f"problem {n}, " + "with many words " * 20 for n in range(100)]
    story = {0: dict.fromkeys(names, "----")}
    story |= {25 * step: dict.fromkeys(names, "++--") for step in range(1, 60)}
    evaluations = []
    for item in make_evaluations(story):
        letters = rng.integers(97, 123, 70_000, dtype=np.uint8).tobytes().decode()
        texts = tuple(letters[700 * row : 700 * (row + 1)] for row in range(100))
        evaluations.append(replace(item, right=texts, wrong=texts))
    timeline = Timeline(make_run(STORY), evaluations=evaluations)
    assert [len(changes) for changes in detail(timeline)["steps"]] == [0] + [3] * 59
    size = len(evaluation_data(timeline)["evaluation"]["detail"]["packed"])
    print(f"{size} bytes for 60 evaluations in which every problem is newly solved")
    assert size < 110_000


def test_its_script_and_style_keep_the_rules_of_the_others():
    script = (PARTS / EVALUATED).read_text(encoding="ascii")
    risky = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|import\("
        r"|localStorage|sessionStorage|indexedDB|\bcookie\b|fetch\(|XMLHttpRequest|WebSocket"
    )
    assert not re.search(risky, script)
    markup = (PARTS / "page.html").read_text()
    ids = set(re.findall(r'\bid="([\w-]+)"', markup)) | set(re.findall(r'\bid: "([\w-]+)"', script))
    assert set(re.findall(r'byId\("([\w-]+)"\)', script)) <= ids
    style = (PARTS / "evaluation.css").read_text(encoding="ascii")
    assert set(re.findall(r"#([a-z][\w-]*)[^{};]*\{", style)) <= ids


# -- in a browser ----------------------------------------------------------------------------


@pytest.mark.browser
@needs_browser
def test_the_page_shows_them_at_the_cursor(open_page: Open):
    page = open_page(solving(text=HOSTILE), Timeline(make_run(STORY), name="other"))
    assert len(set(page.pixels("evaluation-plot"))) > 5
    assert page["evaluation-title"].text == "pass@1 on sums"
    assert page["changes-title"].text == "Problems at step 40"
    assert page["solved-title"].text == "Newly solved: 2"
    assert "newly solved 2 (1 sure), newly missed 1; an unchanged model gives 0.73" in (
        page["changes-text"].text
    )
    heads = [name for name in page["changes-heads"].text.split() if name.startswith("L")]
    assert heads == ["L2H0", "L1H1", "L2H3"]
    first = page["solved"].find_element("css selector", "details")
    assert first.text == "0/4 \u2192 4/4, sure What is a?"
    first.find_element("css selector", "summary").click()
    texts = [found.text for found in first.find_elements("css selector", "pre")]
    assert texts[:2] == ["What is a?", "a!"]
    assert all("</script><img src=x onerror=" in text for text in texts[2:])
    assert page.browser.title != "pwned"
    assert not page.browser.find_elements("css selector", "#changes img, #changes pre b")
    page["metric-plot"].send_keys("\ue012")  # left: step 30, which was not evaluated
    assert page.data("step") == "30"
    assert page["changes-title"].text == "Problems at step 20"
    assert page["missed-title"].text == "Newly missed: 1"
    page.press("evaluation-plot", "\ue011")  # home
    assert page["changes-text"].text.startswith("The first evaluation")
    assert page["changes-heads"].text == ""
    page.choose("run", 1)
    assert not page["evaluation"].is_displayed()
    assert not page["changes"].is_displayed()
    page.choose("run", 0)
    assert page["evaluation"].is_displayed()
    assert len(set(page.pixels("evaluation-plot"))) > 5
    page.choose("rule", "paper")
    assert page["changes-title"].text == "Problems at step 40"
    page["changes-heads"].find_element("css selector", "button").click()
    assert page.data("view") == "head"


@pytest.mark.browser
@needs_browser
def test_it_fits_a_narrow_screen(open_page: Open, tmp_path: Path):
    page = open_page(solving(text="a_very_long_word_without_a_place_to_break_" * 9))
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 800, "deviceScaleFactor": 2, "mobile": True},
    )
    page["solved"].find_element("css selector", "summary").click()
    wide = "return document.documentElement.scrollWidth"
    assert page.browser.execute_script(wide) <= 360
    assert write_report([solving()], tmp_path / "again.html").exists()
