"""What stands beside the counts of every view: the same numbers as a whole timeline gives."""

from __future__ import annotations

import pandas as pd
import pytest
from factories import STORY, large_run, make_run, make_snapshot

from sparks.timeline.growth.settings import GrowthConfig
from sparks.timeline.regimes.regime import circuit_turnover
from sparks.timeline.timeline import Timeline
from sparks.views.words import (
    circuits_in_words,
    circuits_now,
    control_in_words,
    ends_of,
    head_range,
    null_in_words,
    rule_in_words,
    with_onset,
)


@pytest.mark.parametrize("rule", ["growth", "paper"])
def test_the_papers_numbers_are_those_of_its_rule(rule):
    timeline = Timeline(large_run(checkpoints=8, seed=3, emergent_share=0.4), rule=rule)
    expected = timeline.by("paper").counts().set_index("step")
    found = timeline.paper_counts()
    assert found["born"].sum() > 0
    pd.testing.assert_frame_equal(found, expected[list(found.columns)])


@pytest.mark.parametrize("group", [None, "b"])
def test_three_snapshots_give_the_circuits_of_the_last_checkpoint(group):
    run = large_run(checkpoints=6, seed=5)
    run = [
        make_snapshot(s.step, ["L0H0", "L1H1"][: 1 + s.step % 200], groups=["a", "b"] * 8, seed=2)
        for s in run
    ]
    for last in range(1, len(run) + 1):
        timeline = Timeline(run[:last], group=group)
        expected = circuit_turnover(timeline)[-1]
        # of the first and the last two alone: the same numbers, at any length
        assert len(ends_of(timeline)) == min(last, 3)
        assert repr(circuits_now(timeline)) == repr(expected)
    assert repr(circuits_now(timeline)) != repr(circuits_now(Timeline(run, group="a")))


def test_words_for_doubt():
    assert head_range(9, 0) == "9"
    assert head_range(9, 8) == "9-17"
    assert with_onset("L1H1", 20, 20) == "L1H1"
    assert with_onset("L1H1", 10, 20) == "L1H1 (since 10)"


def test_the_rule_is_told_with_its_settings():
    run = make_run(STORY)
    strict = Timeline(run, growth_config=GrowthConfig(fdr=0.01))
    assert "at most 1% are expected to be false" in rule_in_words(strict)
    assert rule_in_words(Timeline(run, rule="paper")).startswith("paper's: active = in the circuit")


def test_the_null_is_told_with_its_source():
    text = null_in_words(Timeline(make_run(STORY)))
    assert text.startswith("2 heads are emergent at step 40 by the rule of growth; an unchanged")
    assert text.endswith("(the run's own 16 probes at step 0, drawn with replacement 20 times)")
    few = Timeline(make_run(STORY, probes=3))
    assert null_in_words(few) == "3 probes are too few for a null: 4 are needed"


def test_control_probes_without_births_and_none_at_all():
    groups = ["control"] * 4 + [""] * 16
    quiet = Timeline(make_run({0: ["L0H0"], 10: ["L0H0"]}, probes=20, groups=groups))
    assert control_in_words(quiet).startswith("4 probes: ")
    assert "of " not in control_in_words(quiet)
    assert control_in_words(Timeline(make_run(STORY))) == ""


def test_a_change_of_the_circuits_size_is_told_with_its_interval():
    grown = Timeline(make_run({0: ["L0H0"], 10: ["L0H0", "L1H1"]}))
    text = circuits_in_words(grown.counts())
    assert text == (
        "2.0 heads on average at step 10, +1.0 since step 0 (+1.0 to +1.0 by its 95% interval over "
        "probes: beyond luck)"
    )
    unsure = Timeline(make_run({0: {"L0H0": 15}, 10: {"L0H0": 16}}))
    assert "no more than luck" in circuits_in_words(unsure.counts())
    alone = Timeline(make_run({0: ["L0H0"]}))
    assert circuits_in_words(alone.counts()) == "1.0 heads on average at step 0"
