"""States by the rule of growth: worked by hand, on unchanged models, and against planted truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import make_run, write_run
from models import tiny_model
from planted import STORIES, Planted, clear_heads, judge, random_probes, scaled

from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.timeline.growth.rule import growth
from sparks.timeline.growth.settings import GrowthConfig
from sparks.timeline.timeline import Timeline

REST = ["L1H0", "L1H1", "L2H2"]
"""Heads that every probe holds at every checkpoint of the runs below."""


def run_of(*counts: int, probes: int = 16) -> Timeline:
    """L0H0 is held by so many of the probes, a checkpoint each."""
    held = [dict.fromkeys(REST, probes) | {"L0H0": count} for count in counts]
    return Timeline(make_run({10 * i: heads for i, heads in enumerate(held)}, probes=probes))


def events(timeline: Timeline) -> list[list[object]]:
    frame = timeline.events()
    return frame[frame["head"] == "L0H0"][["step", "onset", "kind"]].values.tolist()


# -- by hand ---------------------------------------------------------------------------------------


def test_births_and_prunings_are_named_where_they_happen():
    timeline = run_of(0, 0, 16, 16, 0, 16)
    assert timeline.active[:, 0, 0].tolist() == [False, False, True, True, False, True]
    assert events(timeline) == [[20, 20, "born"], [40, 40, "pruned"], [50, 50, "revived"]]
    assert not timeline.base[0, 0]
    assert timeline.cohort[0, 0] == 2


def test_base_heads_are_silenced_and_return():
    timeline = run_of(16, 0, 16)
    assert timeline.base[0, 0]
    assert events(timeline) == [[10, 10, "silenced"], [20, 20, "returned"]]
    assert not timeline.emergent[:, 0, 0].any()


def test_a_head_near_an_even_share_does_not_flicker():
    """It stays what it was until the opposite is beyond luck."""
    assert run_of(16, 11, 12, 10, 11).active[:, 0, 0].tolist() == [True] * 5
    assert run_of(0, 11, 12, 10, 12).active[:, 0, 0].tolist()[:1] == [False]
    few = run_of(8, 10, 11, 9, 12)
    assert not few.active[:, 0, 0].any()
    assert few.undecided[:, 0, 0].any()
    assert events(few) == []


def test_a_change_that_is_settled_later_says_since_when_it_shows():
    """Above an even share on average at 10, but only beyond luck at 20."""
    timeline = Timeline(make_run({0: {}, 10: {"L0H0": 3}, 20: {"L0H0": 16}}))
    assert timeline.share[1, 0, 0] > 1
    assert events(timeline) == [[20, 10, "born"]]
    assert timeline.heads().loc[0, ["cohort_step", "onset_step"]].tolist() == [20, 10]


def test_every_event_carries_its_interval():
    timeline = run_of(0, 16)
    (event,) = (event for event in timeline.event_list() if event.name == "L0H0")
    assert 1 < event.share_low < event.share < event.share_high


def test_what_stands_at_a_checkpoint_does_not_depend_on_later_ones():
    whole = run_of(0, 9, 16, 3, 0, 12, 16)
    for end in range(1, 8):
        part = Timeline(whole.snapshots[:end])
        for name in ("active", "undecided", "emergent", "retained"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:end])


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"fdr": 0.0}, "fdr must be a number between 0 and 1, got 0.0"),
        ({"level": 95.0}, "level must be a number between 0 and 1, got 95.0"),
    ],
)
def test_settings_out_of_range_are_refused(values, match):
    with pytest.raises(SparksError, match=match):
        GrowthConfig(**values)


def test_fewest_probes_can_decide_and_fewer_say_so():
    fewest = GrowthConfig().fewest_probes
    assert fewest == 7
    assert events(run_of(0, 16, probes=fewest)) == [[10, 10, "born"]]
    few = run_of(0, 16, probes=fewest - 1)
    assert few.events().empty
    (line,) = few.problems
    assert "6 probes cannot settle a change, none is called: at least 7" in line
    assert few.by("paper").problems == ()
    assert len(few.by("paper").event_list()) == 1


def test_snapshots_without_a_grid_are_read():
    timeline = Timeline(make_run({0: REST, 10: [*REST, "L0H0"]}, grid=False))
    assert timeline.snapshots.settings == 1
    assert [event.name for event in timeline.event_list()] == ["L0H0"]


def test_the_accepted_share_of_errors_can_be_set(tmp_path):
    run = write_run(tmp_path, make_run({0: REST, 10: [*REST, "L0H0"]}, probes=6))
    assert Timeline.from_run(run).event_list() == []
    loose = Timeline.from_run(run, growth_config=GrowthConfig(fdr=0.2))
    assert [event.name for event in loose.event_list()] == ["L0H0"]
    assert loose.problems == ()
    assert loose.by("paper").by("growth").growth_config.fdr == 0.2


def test_an_unknown_rule_is_refused():
    with pytest.raises(SparksError, match="rule must be one of growth, paper, got 'strict'"):
        Timeline(make_run({0: []}), rule="strict")


def test_the_number_of_active_heads_does_not_grow_with_the_probes():
    """As that of the paper's rule does."""
    level = np.random.default_rng(1).normal(0, 1, 12)

    def active(probes: int, seed: int) -> int:
        masses = np.exp(level + np.random.default_rng(seed).normal(0, 0.8, (probes, 12)))
        found = growth(masses[None], np.ones((1, probes)))
        return int(found.inside[0].sum())

    truth = active(4000, 0)
    for probes in (12, 24, 48):
        assert np.mean([active(probes, seed) for seed in range(1, 61)]) == pytest.approx(
            truth, abs=1
        )


# -- planted truth ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama-gqa", "starcoder2"])
def test_planted_births_and_prunings_are_found_and_nothing_else(kind):
    """Silenced, revived, grown, shrunk by weight edits."""
    shape = {"num_hidden_layers": 3, "num_attention_heads": 8, "hidden_size": 64}
    model = tiny_model(kind, num_key_value_heads=4, **shape)
    config = SnapshotConfig(points=8, faithfulness=False)
    many = random_probes(48, 1000)
    heads = clear_heads(take_snapshot(model, many, config, progress=False), len(STORIES))
    plan = Planted(dict(zip(heads, STORIES, strict=True)))
    run = plan.run(model, random_probes(24, 0), config)
    score = judge(Timeline(run), plan, Timeline(plan.run(model, many, config)))
    assert score.wrong == ()
    assert score.found == score.planted == sum(len(events) for _, events in STORIES.values())
    assert score.recall == score.precision == 1


def test_a_planted_edit_is_undone_to_the_bit():
    model = tiny_model("llama-gqa")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with scaled(model, {(0, 1): 0.0, (2, 3): 2.5}):
        changed = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
    assert changed == [f"model.layers.{layer}.self_attn.o_proj.weight" for layer in (0, 2)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_judge_sees_a_wrong_timeline():
    """A check that cannot fail is none: shifted, missing and made-up events are told."""
    plan = Planted({(0, 0): "born", (0, 1): "silenced"})
    right = {0: ["L0H1"], 10: ["L0H1"], 20: ["L0H0", "L0H1"], 30: ["L0H0"]}
    right = {step: [*heads, *REST] for step, heads in right.items()}
    truth = Timeline(make_run(right))
    assert judge(truth, plan, truth).wrong == ()
    late = Timeline(make_run(right | {20: ["L0H1", *REST]}))
    assert judge(late, plan, truth).recall == 0.5
    made_up = Timeline(make_run(right | {30: ["L0H0", "L2H1", *REST]}))
    assert judge(made_up, plan, truth).precision == pytest.approx(2 / 3)
    missed = judge(
        Timeline(make_run({0: ["L0H1", *REST], 10: REST, 20: REST, 30: REST})), plan, truth
    )
    assert missed.recall == 0
    assert len(missed.wrong) == 2
