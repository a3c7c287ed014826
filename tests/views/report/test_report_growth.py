"""Growth in the report: what is sent is what the timeline says, and the page shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import STORY, grown_run, make_run
from report_payload import unpacked
from selenium.webdriver.common.by import By
from test_report_browser import browser, needs_browser

from sparks.timeline.timeline import Timeline
from sparks.views.report import write_report
from sparks.views.report.growth import OCTAVE, growth_data
from sparks.views.words import growth_in_words

__all__ = ["browser"]


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return Timeline(grown_run(), name="grown")


def test_what_is_sent_is_what_the_timeline_says(timeline):
    grown, sent = timeline.grown, growth_data(timeline)["growth"]
    heads, times = sent["heads"], len(timeline)
    assert set(heads) == set(np.flatnonzero((grown.moved != 0).any(axis=0)))
    assert (np.diff(grown.factor[-1, heads]) < 0).all()  # the most grown first
    steps = unpacked(sent["factors"], "i1").reshape(len(heads), times)
    octaves = np.cumsum(steps, axis=1, dtype=np.int8).T / OCTAVE
    np.testing.assert_allclose(octaves, np.log2(grown.factor[:, heads]), atol=0.51 / OCTAVE)
    bits = np.unpackbits(unpacked(sent["named"], "u1"), count=len(heads) * times)
    named = np.cumsum(bits.reshape(len(heads), times), axis=1).T % 2 == 1
    np.testing.assert_array_equal(named, grown.moved[:, heads] != 0)
    for place, *ends, now in sent["told"]:
        row = timeline.growth(-1).iloc[heads[place]]
        assert ends == pytest.approx([row.factor, row.factor_low, row.factor_high], rel=0.006)
        assert now == row.now
    places = [(heads[place], time, way) for place, time, way in sent["changes"]]
    assert sorted(places) == sorted(
        (head, time, grown.change[time, head]) for time, head in np.argwhere(grown.change)
    )


def test_a_run_without_growth_sends_its_verdict_alone():
    still = Timeline(make_run({step: ["L0H0"] for step in STORY}, probes=4))
    verdict = growth_in_words(still)
    assert growth_data(still) == {"verdict": verdict, "growth": None}
    assert "too few probes: 4" in verdict


@pytest.mark.browser
@needs_browser
def test_the_page_begins_with_the_verdict_and_shows_growth(
    browser: Any, timeline: Timeline, tmp_path: Path
):
    still = Timeline(make_run(STORY, probes=4), name="still")
    page = write_report([timeline, still], tmp_path / "report.html")
    browser.get(page.as_uri())

    def text(name: str) -> str:
        return browser.find_element(By.ID, name).text

    assert text("verdict") == growth_in_words(timeline)
    first = browser.find_element(By.CSS_SELECTOR, "header > p:not(.linkline)")
    assert first.get_attribute("id") == "verdict"
    browser.execute_script(
        "for (const fold of document.querySelectorAll('details')) fold.open = true"
    )
    assert text("growth-text") == "step 30: 1 grew, 1 shrank"
    rows = browser.find_elements(By.CSS_SELECTOR, "#growth-table tbody tr")
    cells = [row.find_elements(By.TAG_NAME, "td") for row in rows]
    shown = {line[0].text: (line[1].text, line[3].text) for line in cells}
    assert shown == {"L1H2": ("grew", "in"), "L2H3": ("shrank", "out")}
    for line in cells:
        row = timeline.growth(-1).set_index("head").loc[line[0].text]
        assert line[2].text.startswith(f"\u00d7 {float(f'{row.factor:.3g}'):g} (")
    rows[0].find_element(By.TAG_NAME, "button").click()
    root = browser.find_element(By.TAG_NAME, "html")
    assert root.get_attribute("data-view") == "head"
    browser.get(f"{page.as_uri()}#run=still")
    assert text("verdict") == growth_in_words(still)
    assert not browser.find_element(By.ID, "growth").is_displayed()
    assert root_error(browser) is None


def root_error(browser: Any) -> str | None:
    return browser.find_element(By.TAG_NAME, "html").get_attribute("data-error")
