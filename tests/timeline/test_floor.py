"""Where L is too little there is nothing to attribute: no view calls anything, and each says so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import STORY, make_run, write_run
from models import tiny_model, token_pair
from planted import clear_heads, scaled
from torch import nn

from sparks.attribution.snapshot import Snapshot
from sparks.attribution.take_snapshot import take_snapshot
from sparks.cli import main
from sparks.ground.config import LEAST_LOSS, SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.probes.pairs import TokenizedProbes
from sparks.timeline import nulls
from sparks.timeline.comparison import Comparison
from sparks.timeline.growth.rule import growth
from sparks.timeline.growth.settings import GrowthConfig
from sparks.timeline.regimes.regime import Regime
from sparks.timeline.regimes.tables import regime_row
from sparks.timeline.timeline import Timeline
from sparks.views.live.page import View
from sparks.views.report.data import run_data
from sparks.views.text.timeline import render
from sparks.views.trackers.data import scalars
from sparks.views.words import circuits_in_words, heads_at, null_in_words

LITTLE = "L is too little at step"
WAY_OUT = "take probes whose two beginnings the model tells apart"
CONFIG = SnapshotConfig(points=6, faithfulness=False)
PLAN = {0: ["L0H0"], 10: ["L0H0", "L1H1"], 20: ["L1H1"], 30: ["L0H0"], 40: ["L0H0", "L1H1"]}


def with_loss(run: Sequence[Snapshot], *losses: float) -> list[Snapshot]:
    """The same circuits with these L, of all probes of a checkpoint."""
    return [
        replace(snapshot, loss_corrupted=np.full(snapshot.num_probes, loss, np.float32))
        for snapshot, loss in zip(run, losses, strict=True)
    ]


def said(text: str) -> str:
    return " ".join(text.split())


# -- a model that cannot tell the beginnings apart -------------------------------------------------


def indifferent(seed: int) -> nn.Module:
    """A random model of 3 layers x 8 heads whose words are all about equally likely."""
    shape = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64}
    model = tiny_model("llama-gqa", seed=seed, **shape)
    with torch.no_grad():
        model.lm_head.weight *= 0.01
    return model


def measured(seed: int) -> list[Snapshot]:
    """Two heads are silent at step 0, and write at step 10: births, if L were not 0.0002 nats."""
    pairs = tuple(token_pair(4, 5, seed=index) for index in range(16))
    ids = tuple(f"p{index}" for index in range(16))
    probes = TokenizedProbes(pairs=pairs, ids=ids, groups=("",) * 16, hash="random")
    model = indifferent(seed)
    after = take_snapshot(model, probes, CONFIG, step=10, progress=False)
    with scaled(model, dict.fromkeys(clear_heads(after, 2), 0.0)):
        return [take_snapshot(model, probes, CONFIG, step=0, progress=False), after]


@pytest.fixture(scope="module")
def random_runs() -> list[list[Snapshot]]:
    return [measured(seed) for seed in range(4)]


def test_nothing_is_called_of_random_models(random_runs):
    for run in random_runs:
        timeline = Timeline(run, name="random")
        assert timeline.too_little.all()
        assert timeline.undecided.all()
        assert timeline.events().empty
        assert np.isnan(timeline.counts()["circuit_growth"]).all()
        assert not timeline.active.any()
        (line,) = (text for text in timeline.problems if text.startswith(LITTLE))
        assert line.startswith(f"{LITTLE}s 0, 10 (at most 0.000")
        assert f"the floor is {LEAST_LOSS})" in line
        assert WAY_OUT in line


def test_without_the_floor_they_would_be(random_runs):
    """A check that cannot fail is none."""
    bare = GrowthConfig(least_loss=0)
    called = [len(Timeline(run, growth_config=bare).events()) for run in random_runs]
    assert sum(count > 0 for count in called) >= 2
    assert not any(Timeline(run, growth_config=bare).too_little.any() for run in random_runs)


@pytest.mark.parametrize("rule", ["growth", "paper"])
def test_every_view_says_so_and_gives_no_verdict(random_runs, tmp_path, capsys, rule):
    timeline = Timeline(random_runs[0], name="random", rule=rule)
    text = said(render(timeline, width=100))
    assert LITTLE in text
    assert "beyond luck" not in text.split("Circuits")[1].split("Checkpoints")[0]
    assert "its null" not in text
    assert Regime.of(timeline).verdict == "undecided"
    assert Regime.of(timeline).reason.startswith(LITTLE)
    assert np.isnan(regime_row(timeline)["circuit_growth"])
    assert nulls.nulls_of(timeline) == ()
    assert null_in_words(timeline).endswith("no verdict")
    look = run_data(timeline)["looks"][rule]
    assert any(LITTLE in problem for problem in look["problems"])
    assert any(LITTLE in note for note in look["notes"])
    assert look["null"] is None
    assert look["regime"]["reason"].startswith(LITTLE)
    assert "sparks/null/births_low" not in scalars(timeline)
    view = View(timeline, None)
    assert "nats is too little to say)" in view.line(10)
    assert "nats is too little to say)" in heads_at(timeline, -1)
    warnings = Comparison.of([timeline, timeline]).warnings
    assert sum(LITTLE in warning for warning in warnings) == 2
    folder = write_run(tmp_path / "run", random_runs[0])
    assert main(["watch", str(folder), "--once", "--rule", rule]) == 0
    shown = said(capsys.readouterr().out)
    assert LITTLE in shown
    assert "Null" not in shown
    assert main(["null", str(folder)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert LITTLE in error
    assert WAY_OUT in error
    assert not (folder / "null.json").exists()


def test_nothing_is_read_off_it_in_the_terminal(random_runs):
    text = said(render(Timeline(random_runs[0]), width=100))
    assert "No change can be called: too little L" in text
    assert "No head was born" not in text
    assert "too little L to say whether that changed" in text


# -- some checkpoints of a run ---------------------------------------------------------------------


def test_what_has_enough_is_called_as_before():
    """The planted story, and the same with a floor far below: equal, and no line."""
    timeline = Timeline(make_run(STORY))
    assert not timeline.too_little.any()
    assert timeline.problems == ()
    bare = Timeline(make_run(STORY), growth_config=GrowthConfig(least_loss=0))
    assert timeline.event_list() == bare.event_list() != []


def test_a_base_with_too_little_has_no_heads_and_births_are_held_against_the_next():
    """Copying learnt from nothing: L 1e-5 at first, then heads inactive, then born."""
    run = with_loss(make_run({0: ["L0H0"], 10: ["L2H2"], 20: ["L0H0", "L2H2"]}), 1e-5, 0.2, 5)
    timeline = Timeline(run)
    assert timeline.undecided[0].all()
    assert not timeline.base.any()
    assert [(event.step, event.name, event.kind) for event in timeline.event_list()] == [
        (20, "L0H0", "born")
    ]
    assert timeline.states.undated[2, 2]  # active as soon as one can tell: no date of birth
    assert np.isnan(timeline.counts()["circuit_growth"]).all()


def test_a_checkpoint_with_too_little_changes_nothing_and_no_later_one_is_held_against_it():
    full = Timeline(make_run(PLAN))
    run = with_loss(make_run(PLAN), 1, 1, 0.01, 1, 1)
    timeline = Timeline(run)
    assert timeline.undecided[2].all()
    assert [event.kind for event in full.event_list() if event.step == 20] == ["silenced"]
    assert [(event.step, event.name, event.kind) for event in timeline.event_list()] == [
        (10, "L1H1", "born"), (30, "L1H1", "pruned"), (40, "L1H1", "revived")
    ]  # fmt: skip
    assert timeline.event_list()[1].onset == 30
    assert (
        np.isnan(timeline.counts()["circuit_growth"]).tolist() == [False] * 2 + [True] + [False] * 2
    )


def test_onsets_never_lie_where_l_is_too_little():
    """A rise that shows at 20, where nobody can tell, and is settled at 40 began at 30."""
    plan = {0: {}, 10: {}, 20: {"L0H0": 3}, 30: {"L0H0": 3}, 40: {"L0H0": 16}}
    run = make_run(plan)
    assert [(event.step, event.onset) for event in Timeline(run).event_list()] == [(40, 20)]
    dark = Timeline(with_loss(run, 1, 1, 0.01, 1, 1))
    assert [(event.step, event.onset) for event in dark.event_list()] == [(40, 30)]


def test_what_stands_at_a_checkpoint_does_not_depend_on_later_ones():
    rng = np.random.default_rng(5)
    steps = rng.normal(0, 0.4, (40, 1, 60)) + rng.normal(0, 0.2, (40, 16, 60))
    totals = np.exp(steps.cumsum(axis=0))
    loss = np.repeat(np.where(rng.random(40) < 0.4, 0.01, 2.0)[:, None], 16, axis=1)
    loss[:3] = 0.01
    whole = growth(totals, loss)
    dark = loss[:, 0] < 0.1
    assert whole.base == 3
    assert (whole.change != 0).sum() > 10
    assert not whole.moved[dark].any()
    assert not whole.change[dark].any()
    for end in range(1, 41):
        part = growth(totals[:end], loss[:end])
        for name in ("moved", "change", "inside", "share_low", "share_high", "onset"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:end])


def test_the_regime_of_a_run_with_too_little_is_undecided():
    steps = {10 * index: ["L0H0", *(["L1H1"] if index else [])] for index in range(9)}
    timeline = Timeline(with_loss(make_run(steps), *[1] * 4, 0.05, *[1] * 4), rule="paper")
    assert Regime.of(timeline).reason == (
        "L is too little at step 40 (0.05 nats, median over probes; the floor is 0.1)"
    )


def test_the_last_checkpoint_gives_no_verdict_on_its_births():
    run = with_loss(make_run({0: ["L0H0"], 10: ["L0H0", "L1H1"]}), 1, 0.01)
    timeline = Timeline(run, rule="paper")
    assert nulls.null_of(timeline) is not None  # of the first one
    assert null_in_words(timeline).startswith(f"{LITTLE} 10 (0.01 nats")
    assert "too little L to say" in circuits_in_words(timeline.counts())
    with pytest.raises(SparksError, match=r"L is too little at step 10 .*noise there"):
        nulls.seeds(timeline, [timeline])


def test_the_median_of_the_counted_probes_decides():
    """One probe with much makes up for no ten with nothing; control probes do not count."""
    groups = ["sums"] * 11 + ["control"] * 5
    (snapshot,) = make_run({0: ["L0H0"]}, groups=groups)
    loss = np.array([9.0] + [0.01] * 10 + [5.0] * 5, np.float32)
    timeline = Timeline([replace(snapshot, loss_corrupted=loss)])
    assert timeline.too_little.tolist() == [True]
    assert timeline.loss.tolist() == pytest.approx([0.01])
    assert timeline.control is not None
    assert timeline.control.too_little.tolist() == [False]


@pytest.mark.parametrize("floor", [-0.1, float("nan"), "0.1", True])
def test_a_floor_out_of_range_is_refused(floor):
    with pytest.raises(
        SparksError, match=re.escape(f"least_loss must be at least 0 nats, got {floor!r}")
    ):
        GrowthConfig(least_loss=floor)
