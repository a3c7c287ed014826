"""Several runs in a real browser: the table above the run on view, or why there is none."""

from __future__ import annotations

from factories import GRPO, SFT, STORY
from factories import make_timeline as timeline
from test_report_browser import HOSTILE, Open, browser, open_page, pytestmark, until

# The fixtures are those of the report's own browser tests.
__all__ = ["browser", "open_page", "pytestmark"]

RUNS, OVERLAP = "#compared-runs tbody", "#compared-overlap tbody"


def test_runs_are_compared_and_a_name_chooses_the_run(open_page: Open):
    page = open_page(timeline(SFT, "sft"), timeline(GRPO, "grpo"))
    assert page["compared"].is_displayed()
    assert page.texts(f"{RUNS} td") == [
        *("sft", "0–20", "3", "3", "100 %", "0", "1 of 3"),
        *("grpo", "0–15", "2", "1", "50 %", "2", "3 of 3"),
    ]
    assert page.texts(f"{OVERLAP} td") == ["sft", "3", "1 (0.33)", "grpo", "1 (0.33)", "1"]
    assert page["about"].text.startswith("sft · ")
    for table in (RUNS, OVERLAP):
        for index, name in ((1, "grpo"), (0, "sft")):
            page.browser.find_elements("css selector", f"{table} button")[index].click()
            assert page.data("run") == page["run"].get_attribute("value") == str(index)
            assert page["about"].text.startswith(f"{name} · ")
            assert page.texts(f"{table} tr.chosen button") == [name]


def test_one_run_shows_no_comparison(open_page: Open):
    page = open_page(timeline(SFT, "sft"))
    assert not page["compared"].is_displayed()
    assert page["about"].text.startswith("tiny/llama")


def test_runs_that_do_not_fit_are_shown_with_the_reason(open_page: Open):
    page = open_page(timeline(SFT, "a"), timeline(STORY, "b", probes=5))
    assert page["compared-refused"].text.startswith(
        "These runs are not compared: runs to compare must have the same probes, got 16"
    )
    assert not page["compared-tables"].is_displayed()
    page.choose("run", 1)
    assert page.data("checkpoints") == str(len(STORY))


def test_hostile_names_of_runs_are_inert(open_page: Open):
    page = open_page(timeline(SFT, HOSTILE), timeline(SFT, HOSTILE, model_hash=HOSTILE))
    assert HOSTILE[:40] in page.texts(f"{RUNS} button")[0]
    assert page.browser.title != "pwned"
    assert not page.browser.find_elements("css selector", "#compared img, #compared b:not(li > b)")


def test_many_runs_fit_a_narrow_dark_screen(open_page: Open):
    runs = [timeline(make, f"{'a-long-name-' * 4}{n}") for n, make in enumerate([SFT, GRPO] * 3)]
    page = open_page(*runs)
    page.media(prefers_color_scheme="dark")
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 800, "deviceScaleFactor": 2, "mobile": True},
    )
    until(lambda: page.browser.execute_script("return innerWidth") == 360)
    until(lambda: page.data("theme") == "dark")
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 360
    text, paper = page.browser.execute_script(
        """const cell = document.querySelector('#compared-runs td:last-child');
        return [getComputedStyle(cell).color, getComputedStyle(document.body).backgroundColor];"""
    )
    light = [sum(map(int, colour[4:-1].split(","))) for colour in (text, paper)]
    assert light[0] > 600 > 100 > light[1]
