"""One run, one number: what two views show of a fact is the same."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from factories import make_run
from report_payload import counts_of

from sparks.attribution.snapshot import Snapshot
from sparks.timeline.timeline import Timeline
from sparks.training.recorder import _line
from sparks.views.live.page import View
from sparks.views.report.data import run_data
from sparks.views.text.page import Page
from sparks.views.text.timeline import render
from sparks.views.trackers.data import scalars
from sparks.views.words import growth_in_words

GROUPS = ["sums"] * 16 + ["control"] * 8
PLAN = {
    0: {"L0H0": 24, "L0H1": 5},
    10: {"L0H0": 24, "L0H1": 5, "L1H1": 24},
    20: {"L0H0": 24, "L0H1": 6, "L1H1": 24, "L2H0": 5},
}
"""L0H1 and L2H0 are undecided; the control probes, the last eight, hold what no other does."""


@pytest.fixture(scope="module")
def run() -> list[Snapshot]:
    """Control probes have circuits, points and faithfulness of their own at every checkpoint."""
    found = []
    for snapshot in make_run(PLAN, groups=GROUPS, overhead=0.01):
        active, grid = snapshot.active.copy(), snapshot.grid_active.copy()
        active[16:, 2, 1:], grid[:, 16:, 2, 1:] = True, True
        ones = np.ones(24, np.float32)
        kept = ones * (0.9 - 0.03 * snapshot.step)  # what the circuits lose: 90, 60, 30 % of L
        kept[16:] = 0.05
        points = np.array([12] * 10 + [36] * 6 + [324] * 8, np.int32)
        found.append(
            replace(
                snapshot, active=active, grid_active=grid, loss_corrupted=ones, loss_circuit=kept,
                points=points,
            )
        )  # fmt: skip
    return found


def said(text: str) -> str:
    return " ".join(text.split())


def one(pattern: str, text: str) -> tuple[str, ...]:
    """The groups of the only match."""
    (found,) = re.finditer(pattern, text)
    return found.groups()


def tile(timeline: Timeline, label: str) -> str:
    tiles = run_data(timeline)["looks"]["growth"]["numbers"]
    (found,) = (tile for tile in tiles if tile["label"] == label)
    return f"{found['value']}: {found['detail']}"


def test_active_heads_at_every_checkpoint(run):
    """Training line, watch line, terminal, page, trackers: beyond doubt, and with the undecided."""
    for last in range(1, len(run) + 1):
        timeline = Timeline(run[:last])
        counts = timeline.counts().iloc[-1]
        low, high = int(counts["active"]), int(counts["active"] + counts["undecided"])
        assert low < high
        step, shown = run[last - 1].step, f"{low}-{high}"
        told = one(
            r"step (\d+): (\S+) active heads, (\d+) emergent", _line(timeline, run[last - 1])
        )
        assert told == (str(step), shown, str(int(counts["emergent"])))
        watched = View(timeline, None).line(step)
        assert one(r"step (\d+): (\S+) active heads, (\d+) emergent", watched) == told
        text = render(timeline, width=160)
        assert re.search(rf"^ +{step} +{shown} ", text, re.M)
        assert f" → {low}: " in tile(timeline, "active heads")
        assert f"; {high - low} undecided" in tile(timeline, "active heads")
        values = scalars(timeline)
        assert (values["sparks/heads_active"], values["sparks/heads_undecided"]) == (
            low,
            high - low,
        )


def test_growth_is_one_sentence_and_four_numbers(run):
    """Text, watch, page, trackers, and the frame."""
    timeline = Timeline([grown(snapshot) for snapshot in run])
    frame = timeline.growth()
    last, changes = frame[frame["step"] == 20], frame["change"].tolist()
    numbers = [(last["verdict"] == kind).sum() for kind in ("grew", "shrank")]
    numbers += [changes.count("born"), changes.count("pruned") + changes.count("silenced")]
    assert numbers[0] == numbers[2] == 1
    verdict = growth_in_words(timeline)
    found = one(r"(\d+) heads? grew, (\d+) shrank .*; (\d+) w.* born .*, (\d+) fell", verdict)
    assert [int(number) for number in found] == numbers
    assert said(render(timeline, width=100)).startswith(f"Verdict {verdict} Run")
    watched = Page(100, False)
    View(timeline, None).write(watched, 0.0, rows=40)
    assert said(" ".join(watched.lines)).startswith(f"Verdict {verdict} Run")
    page = run_data(timeline)
    assert page["verdict"] == verdict
    assert [page["growth"][kind][-1] for kind in ("grew", "shrank")] == numbers[:2]
    ways = [way for *_, way in page["growth"]["changes"]]
    assert [ways.count(1), ways.count(-1)] == numbers[2:]
    keys = ("heads_grew", "heads_shrank", "births", "prunings")
    assert [scalars(timeline)[f"sparks/{key}"] for key in keys] == numbers


def grown(snapshot: Snapshot) -> Snapshot:
    """L1H1 grows from a fifth less than an even share to a half more."""
    totals = np.random.default_rng(0).uniform(0.95, 1.05, snapshot.node_totals.shape)
    totals[:, snapshot.graph.head_sources[1, 1]] *= 0.8 + 0.035 * snapshot.step
    return replace(snapshot, node_totals=totals.astype(np.float32))


def test_control_probes_count_nowhere(run):
    """24 probes hold four heads more; no view of the behaviour has them."""
    timeline = Timeline(run)
    assert run[-1].active.any(axis=0).sum() > (timeline.active | timeline.undecided)[-1].sum()
    heads = [_line(timeline, snapshot) for snapshot in run]
    assert heads == [_line(Timeline([*map(without_control, run)]), s) for s in run]


def without_control(snapshot: Snapshot) -> Snapshot:
    active, grid = snapshot.active.copy(), snapshot.grid_active.copy()
    active[16:], grid[:, 16:] = False, False
    return replace(snapshot, active=active, grid_active=grid)


def test_faithfulness_is_that_of_the_last_checkpoint(run):
    timeline = Timeline(run)
    assert timeline.counts()["faithfulness"].tolist() == pytest.approx([0.1, 0.4, 0.7])
    text = said(render(timeline, width=100))
    assert one(r"circuits keep (\S+)% of L \(step (\d+), median over probes", text) == ("70", "20")
    assert tile(timeline, "faithfulness").startswith(
        "70 %: step 20, median over probes; least 10 %"
    )
    (line,) = (line for line in run_data(timeline)["looks"]["paper"]["summary"] if "Alone" in line)
    assert one(r"carry (\d+) % .*\(step (\d+), median over probes", line) == ("70", "20")
    assert scalars(timeline)["sparks/faithfulness"] == pytest.approx(0.7)
    assert counts_of(run_data(timeline))["faithfulness"][-1] == pytest.approx(0.7)


def test_points_are_those_of_the_counted_probes(run):
    timeline, shown = Timeline(run), "12 to 36 points (median 12)"
    assert f"miss ({shown})" in said(render(timeline, width=100))
    assert tile(timeline, "completeness gap").endswith(f"; {shown}")
    assert f"EAP-IG, {shown}" in dict(run_data(timeline)["settings"])["Attribution"]
    counts = counts_of(run_data(timeline))
    ends = [counts[f"points_{name}"][-1] for name in ("min", "median", "max")]
    assert ends == [12, 12, 36]
    assert [timeline.counts()[f"points_{n}"].iloc[-1] for n in ("min", "median", "max")] == ends
    assert dict(View(timeline, None)._beside)["Error  "].endswith("up to 36 points")
