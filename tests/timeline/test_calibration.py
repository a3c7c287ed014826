"""The calibrated rule: worked by hand, on unchanged models, and against planted truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import make_run, make_snapshot, write_run
from models import tiny_model, token_pair
from planted import STORIES, Planted, clear_heads, judge, scaled

from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.probes.pairs import TokenizedProbes
from sparks.timeline.calibration import CalibrationConfig, decide
from sparks.timeline.timeline import Timeline


def levels_of(shares: list[list[float]], probes: int = 16, settings: int = 9) -> np.ndarray:
    """[checkpoints, probes, 1, heads]: in the first share of the probes under all settings."""
    held = np.array(shares)[:, None, :] * probes > np.arange(probes)[:, None] + 0.5
    return (held[:, :, None, :] * settings).astype(np.uint8)


def states(shares: list[float], **keywords: int) -> list[int]:
    return decide(levels_of([[share] for share in shares], **keywords), 9).state[:, 0, 0].tolist()


# -- by hand -----------------------------------------------------------------------------------


def test_a_head_is_active_inactive_or_undecided():
    found = decide(levels_of([[1.0, 0.0, 0.5]]), 9)
    assert found.state.tolist() == [[[1, -1, 0]]]
    assert found.inclusion.tolist() == [[[1.0, 0.0, 0.5]]]
    assert (found.low < found.inclusion).sum() == 2
    assert not found.change.any()


def test_births_and_prunings_are_named_where_they_happen():
    found = decide(levels_of([[0, 1], [0, 1], [1, 0], [1, 0], [0, 1]]), 9)
    assert found.state[:, 0].tolist() == [[-1, 1], [-1, 1], [1, -1], [1, -1], [-1, 1]]
    assert found.change[:, 0].tolist() == [[0, 0], [0, 0], [1, -1], [0, 0], [-1, 1]]


def test_a_head_near_the_threshold_does_not_flicker():
    """Hysteresis: it stays what it was until the opposite is beyond doubt."""
    assert states([1.0, 0.55, 0.45, 0.6, 0.4, 1.0]) == [1] * 6
    assert states([0.0, 0.45, 0.55, 0.4, 0.6, 0.0]) == [-1] * 6


def test_the_opposite_reading_without_a_sure_change_is_undecided():
    """Eight probes read opposite states, but cannot make a change sure."""
    assert states([0.0, 1.0, 1.0], probes=8) == [-1, 0, 0]
    assert states([1.0, 0.0, 1.0], probes=8) == [1, 0, 1]


def test_a_head_that_is_undecided_first_is_not_born():
    timeline = Timeline(make_run({0: {"L0H0": 8}, 1: {"L0H0": 16}, 2: {}}))
    assert timeline.undecided[:, 0, 0].tolist() == [True, False, False]
    assert timeline.active[:, 0, 0].tolist() == [False, True, False]
    assert not timeline.base.any()
    assert not timeline.emergent.any()
    assert timeline.states.undated[0, 0]
    assert timeline.events()[["step", "kind"]].values.tolist() == [[2, "silenced"]]


def test_a_head_that_was_likely_inactive_is_born_once_its_rise_is_beyond_luck():
    """Undecided at first (10 of 24); active without a date while only 9 more hold it."""
    plan = {0: {"L0H0": 10}, 1: {"L0H0": 19}, 2: {"L0H0": 24}, 3: {}}
    timeline = Timeline(make_run(plan, probes=24))
    assert timeline.undecided[:, 0, 0].tolist() == [True, False, False, False]
    assert timeline.active[:, 0, 0].tolist() == [False, True, True, False]
    assert timeline.emergent[:, 0, 0].tolist() == [False, False, True, False]
    events = timeline.events()[["step", "onset", "kind"]].values.tolist()
    assert events == [[2, 1, "born"], [3, 3, "pruned"]]
    assert not timeline.states.undated.any()
    earlier = Timeline(timeline.snapshots[:2])
    assert earlier.states.undated[0, 0]


def test_a_change_that_is_settled_later_says_since_when_it_shows():
    timeline = Timeline(make_run({0: {}, 10: {"L0H0": 9}, 20: {"L0H0": 11}, 30: {"L0H0": 16}}))
    (event,) = timeline.event_list()
    assert (event.kind, event.onset, event.step) == ("born", 10, 30)
    assert timeline.active[:, 0, 0].tolist() == [False, False, False, True]
    assert timeline.heads().loc[0, ["cohort_step", "onset_step"]].tolist() == [30, 10]


def test_every_event_carries_its_interval():
    timeline = Timeline(make_run({0: {}, 10: ["L0H0"]}))
    (event,) = timeline.event_list()
    assert 0.5 < event.inclusion_low < event.inclusion == event.inclusion_high == 1


def test_what_stands_at_a_checkpoint_does_not_depend_on_later_ones():
    rng = np.random.default_rng(3)
    walk = np.clip(rng.random(60) + rng.normal(0, 0.25, (40, 60)).cumsum(axis=0), 0, 1)
    levels = rng.binomial(9, walk[:, None, None, :], (40, 16, 1, 60)).astype(np.uint8)
    whole = decide(levels, 9)
    assert (whole.change != 0).sum() > 20
    for end in (1, 2, 7, 23, 39):
        part = decide(levels[:end], 9)
        for name in ("inclusion", "low", "high", "state", "change", "onset"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:end])


# -- errors are spent, not exceeded ------------------------------------------------------------


@pytest.mark.parametrize("checkpoints", [1, 7, 50])
def test_the_alphas_of_all_checkpoints_sum_to_the_rate(checkpoints):
    config = CalibrationConfig(fdr=0.1, checkpoints=checkpoints)
    alphas = [config.alpha(time) for time in range(1, 200_000)]
    assert sum(alphas) == pytest.approx(0.1, rel=1e-3)
    assert sum(alphas) <= 0.1
    assert sum(alphas[:checkpoints]) == pytest.approx(0.05)


def test_fewest_probes_can_decide_and_one_fewer_cannot():
    fewest = CalibrationConfig().fewest_probes()
    assert fewest == 11
    assert decide(levels_of([[0.0], [1.0]], probes=fewest), 9).change[1, 0, 0] == 1
    assert not decide(levels_of([[0.0], [1.0]], probes=fewest - 1), 9).change.any()


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"fdr": 0.0}, "fdr must be a number between 0 and 1, got 0.0"),
        ({"level": 95.0}, "level must be a number between 0 and 1, got 95.0"),
        ({"checkpoints": 0}, "checkpoints must be a whole number, at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(values, match):
    with pytest.raises(SparksError, match=match):
        CalibrationConfig(**values)


def test_too_few_probes_say_so():
    few = Timeline(make_run({0: [], 10: ["L0H0"]}, probes=8))
    assert not few.cohort.any() or (few.cohort < 0).all()
    (line,) = few.problems
    assert "8 probes cannot settle a birth or a pruning, none is called: at least 11" in line
    assert few.by("paper").problems == ()
    assert len(few.by("paper").event_list()) == 1


def test_a_long_run_says_from_where_its_probes_are_too_few():
    run = [make_snapshot(step, ["L0H0"], probes=11) for step in range(60)]
    (line,) = Timeline(run).problems
    assert "from step 52 on 11 probes cannot settle a birth or a pruning: 12 are needed" in line


def test_snapshots_without_a_grid_are_read_and_say_so():
    run = make_run({0: [], 10: ["L0H0"]}, grid=False)
    timeline = Timeline(run)
    assert timeline.num_settings == 1
    assert [event.name for event in timeline.event_list()] == ["L0H0"]
    assert "hold no grid of circuit settings" in timeline.problems[0]


def test_the_accepted_share_of_errors_can_be_set(tmp_path):
    run = write_run(tmp_path, make_run({0: [], 10: ["L0H0"]}, probes=10))
    assert Timeline.from_run(run).event_list() == []
    loose = Timeline.from_run(run, calibration=CalibrationConfig(fdr=0.2))
    assert [event.name for event in loose.event_list()] == ["L0H0"]
    assert loose.problems == ()
    assert loose.by("paper").by("calibrated").calibration.fdr == 0.2


def test_an_unknown_rule_is_refused():
    with pytest.raises(SparksError, match="rule must be one of calibrated, paper, got 'strict'"):
        Timeline(make_run({0: []}), rule="strict")


# -- an unchanged model ------------------------------------------------------------------------


def pool(probes: int, heads: int, seed: int) -> np.ndarray:
    """Graded membership of many probes in a model that has heads of every inclusion."""
    rng = np.random.default_rng(seed)
    chance = np.sort(rng.beta(0.7, 1.2, heads))
    hidden = rng.random((probes, heads))
    hidden = 0.6 * hidden + 0.4 * rng.random((probes, 1))  # heads of one probe go together
    rank = hidden.argsort(axis=0).argsort(axis=0) / probes
    thresholds = 1 - np.clip(chance + np.linspace(-0.1, 0.1, 9)[:, None], 0, 1)
    return (rank[:, None] >= thresholds).sum(axis=1).astype(np.uint8)


def test_fresh_probes_on_an_unchanged_model_make_no_births():
    """200 runs of 6 checkpoints, each checkpoint with probes of its own."""
    rng = np.random.default_rng(11)
    many, false, paper = pool(400, 120, 0), [], []
    for _ in range(200):
        drawn = many[rng.integers(0, len(many), (6, 16))].reshape(6, 16, 1, 120)
        false.append((decide(drawn, 9).change != 0).sum())
        held = (drawn > 4).any(axis=1)
        paper.append((held[1] & ~held[0]).sum())
    assert np.mean(np.array(false) > 0) <= 0.05
    assert np.mean(paper) > 3  # what the paper's rule calls born between two checkpoints


@pytest.mark.parametrize("probes", [6, 12, 24, 48])
def test_the_number_of_active_heads_does_not_depend_on_the_probes(probes):
    rng = np.random.default_rng(probes)
    many = pool(1000, 120, 1)
    truth = (many.mean(axis=0) / 9 >= 0.5).sum()
    inside, likely = [], []
    for _ in range(100):
        found = decide(many[rng.integers(0, len(many), probes)][None, :, None], 9)
        low = (found.state == 1).sum()
        inside.append(low <= truth <= low + (found.state == 0).sum())
        likely.append((found.inclusion >= 0.5).sum())
    assert np.mean(inside) >= 0.95
    assert np.mean(likely) == pytest.approx(truth, abs=0.08 * 120)


# -- planted truth -----------------------------------------------------------------------------


def random_probes(count: int, start: int) -> TokenizedProbes:
    pairs = tuple(token_pair(4, 5, seed=start + index) for index in range(count))
    ids = tuple(f"p{index}" for index in range(count))
    return TokenizedProbes(pairs=pairs, ids=ids, groups=("",) * count, hash=str(start))


@pytest.mark.parametrize("kind", ["llama-gqa", "starcoder2"])
def test_planted_births_and_prunings_are_found_and_nothing_else(kind):
    """Silenced, revived, grown, shrunk by weight edits; `tests/bench/calibration.py` has more."""
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
    truth = Timeline(make_run(right))
    assert judge(truth, plan, truth).wrong == ()
    late = Timeline(make_run(right | {20: ["L0H1"]}))
    assert judge(late, plan, truth).recall == 0.5
    made_up = Timeline(make_run(right | {30: ["L0H0", "L2H2"]}))
    assert judge(made_up, plan, truth).precision == pytest.approx(2 / 3)
    missed = judge(Timeline(make_run({0: ["L0H1"], 10: [], 20: [], 30: []})), plan, truth)
    assert missed.recall == 0
    assert len(missed.wrong) == 2
