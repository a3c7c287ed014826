"""What the page works out again is what Python works out, for every head at every checkpoint.

The paper's states, the effect E of A.6, and the ends of intervals of shares are not sent: the
page has their parts, and sending them would weigh more. Here the page's own scripts run in a
browser beside the Python that they repeat, on random runs.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from factories import STORY, large_run, make_run
from test_report import PARTS, cells, intervals_of_shares, steady_run
from test_report_browser import browser, pytestmark
from test_report_weight import run_of

from sparks.attribution.snapshot import Snapshot
from sparks.models.graph import Graph
from sparks.timeline.numbers import effect_of
from sparks.timeline.timeline import EVENT_KINDS, RULES, Timeline
from sparks.views.report import SCRIPTS, render_report
from sparks.views.report.data import run_data

# The fixture is that of the report's own browser tests.
__all__ = ["browser", "pytestmark"]

GRAPH = Graph(num_layers=5, num_heads=6, num_kv_heads=2)
RUNS: dict[str, list[Snapshot]] = {
    "story": make_run(STORY),
    "one checkpoint": make_run({7: ["L0H0", "L2H1"]}),
    "one probe": steady_run(1),
    "graded": steady_run(16),
    "more probes than a byte tells apart": steady_run(600, checkpoints=3),
    **{f"flickers {seed}": large_run(graph=GRAPH, probes=5, emergent_share=0.4, seed=seed)
       for seed in (1, 2)},
    **{f"noise {seed}": run_of(GRAPH, 9, probes=6, edges=60, seed=seed) for seed in (3, 4)},
}  # fmt: skip

WORK_OUT = """
const [text, rules, done] = arguments;
unpackAll(text).then(({runs: [run]}) => {
  decodeRun(run, "growth");
  const cells = of => run.steps.map((_, at) =>
    Array.from({length: run.rows}, (_, row) => of(run, at, row)));
  const found = {
    effect: cells(effectAt),
    mean: cells((run, at, row) => at ? meanEffectAt(run, at, row) : 0),
    ends: [0, 1].map(end => cells((run, at, row) => massEnds(run, at, row)[end])),
  };
  for (const rule of rules) {
    applyRule(run, rule);
    found[rule] = {active: cells(isActive), undecided: cells(isUndecided), base: run.isBase,
      cohort: Array.from(run.cohortOf), history: run.history, sums: run.sums};
  }
  done(JSON.stringify(found));
}).catch(reason => done(JSON.stringify({reason: reason.stack})));
"""


def worked_out(browser: Any, timeline: Timeline) -> dict[str, Any]:
    """By the page's scripts, from what a report sends."""
    names = ["load.js", *(name for name in SCRIPTS if name.startswith("read/"))]
    scripts = "".join((PARTS / name).read_text() for name in names)
    sent = render_report([timeline]).partition('id="data">')[2].partition("</script>")[0]
    browser.get("about:blank")
    found = json.loads(browser.execute_async_script(scripts + WORK_OUT, sent, list(RULES)))
    assert "reason" not in found, found
    return found


@pytest.mark.parametrize("name", RUNS)
def test_the_page_works_out_what_python_does(browser: Any, name: str):
    timeline = Timeline(RUNS[name])
    times, shape = len(timeline), timeline.active.shape
    found, sent = worked_out(browser, timeline), run_data(timeline)

    effect = effect_of(cells(sent)[1])
    np.testing.assert_allclose(np.reshape(found["effect"], shape), effect, atol=1e-5)
    mean = effect.cumsum(axis=0) / np.maximum(1, np.arange(times))[:, None, None]
    np.testing.assert_allclose(np.reshape(found["mean"], shape), mean, atol=1e-5)
    for ends, expected in zip(found["ends"], intervals_of_shares(sent)[1:], strict=True):
        known = np.array(ends, dtype=float).reshape(shape)  # null is NaN: heads that never are near
        np.testing.assert_allclose(known, expected, rtol=1e-5)

    for rule in RULES:
        mine, other = found[rule], timeline.by(rule)
        np.testing.assert_array_equal(np.reshape(mine["active"], shape), other.active)
        np.testing.assert_array_equal(np.reshape(mine["undecided"], shape), other.undecided)
        np.testing.assert_array_equal(np.reshape(mine["base"], shape[1:]), other.base)
        np.testing.assert_array_equal(np.reshape(mine["cohort"], shape[1:]), other.cohort)
        events = {
            (row, other.steps[event["at"]], event["kind"], other.steps[event["onset"]])
            for row, history in enumerate(mine["history"])
            for event in history
        }
        assert events == {
            (event.layer * shape[2] + event.head, event.step, event.kind, event.onset)
            for event in other.event_list()
        }
        counts = other.counts()
        for count in ("active", "undecided", "emergent", "retained", *EVENT_KINDS):
            assert mine["sums"][count] == counts[count].tolist(), (rule, count)
