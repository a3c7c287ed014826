"""The growth rule: hand-worked cases, exact flips, errors held in simulation, real differences."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields
from unittest.mock import patch

import numpy as np
import pytest
from places import DATA

from sparks.ground.errors import SparksError
from sparks.timeline.growth.luck import SHARE_FLOOR, Luck, log_shares, sign_flips
from sparks.timeline.growth.rule import Growth, GrowthRule, growth, is_tested
from sparks.timeline.growth.settings import GrowthConfig

STORED = DATA / "growth-smollm2.npz"
PROBES, HEADS = 32, 20


def run_of(
    factors: list[dict[int, float]], *, probes: int = PROBES, spread: float = 0.05, level: float = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Score masses and L: heads of 1/2 and 3/2 in turn, head 0 of `level`; heads times factors."""
    rng = np.random.default_rng(0)
    totals = np.ones((len(factors), probes, HEADS)) + np.resize([-0.5, 0.5], HEADS)
    totals[:, :, 0] = level
    for time, of in enumerate(factors):
        for head, factor in of.items():
            totals[time, :, head] *= factor
    totals[1:] *= np.exp(spread * rng.normal(size=totals[1:].shape))
    return totals, np.ones((len(factors), probes))


# -- shares and factors ----------------------------------------------------------------------------


def test_shares_by_hand():
    """Masses 1, 2, 1: even is 4/3, so shares are 3/4, 3/2, 3/4 of an even one."""
    found = np.exp(log_shares(np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [0.0, 5.0, 5.0]])))
    expected = [[0.75, 1.5, 0.75], [0.75, 1.5, 0.75], [SHARE_FLOOR, 1.5, 1.5]]
    np.testing.assert_allclose(found, expected)


def test_factor_and_its_interval_by_hand():
    """Share of head 0: 1/2 -> 2/3, 1/2 -> 3/4; logs of the factors 4/3 and 3/2."""
    totals = np.array([[[1.0, 1.0], [1.0, 1.0]], [[2.0, 1.0], [3.0, 1.0]]])
    found = growth(totals, np.ones((2, 2)))
    logs = np.log([4 / 3, 3 / 2])
    half = 12.7062047 * abs(logs[1] - logs[0]) / 2  # t with one degree of freedom
    assert found.factor[1, 0] == pytest.approx(math.sqrt(2))
    assert found.factor_low[1, 0] == pytest.approx(math.exp(logs.mean() - half))
    assert found.factor_high[1, 0] == pytest.approx(math.exp(logs.mean() + half))
    assert found.share[1, 0] == pytest.approx(math.sqrt(2))
    assert (found.factor[0] == 1).all()
    assert (found.verdict == "none").all()  # two probes


def test_a_factor_that_all_heads_of_a_probe_share_says_nothing():
    totals, loss = run_of([{}, {3: 1.3}])
    common = np.exp(np.random.default_rng(1).normal(size=(2, PROBES, 1)))
    same(growth(totals, loss), growth(totals * common, loss))


@pytest.mark.parametrize("nothing", [0.0, np.nan])
def test_a_probe_without_mass_is_left_out(nothing):
    totals, loss = run_of([{}, {3: 1.3}, {3: 1.3}])
    some = totals.copy()
    some[1, 5] = nothing
    found, without = growth(some, loss), growth(np.delete(totals, 5, axis=1), loss[:, 1:])
    np.testing.assert_allclose(found.factor[1], without.factor[1])
    np.testing.assert_allclose(found.factor_low[1], without.factor_low[1])
    assert (found.moved == without.moved).all()
    assert found.moved[1, 3] == 1


def test_a_head_that_is_silenced_shrank():
    found = growth(*run_of([{}, {3: 0.0}]))
    assert found.verdict[1, 3] == "shrank"
    assert 0 < found.factor[1, 3] < 2 * SHARE_FLOOR


# -- luck ------------------------------------------------------------------------------------------


def test_few_probes_have_all_flips():
    rows = sign_flips(5, 2048)
    both = {tuple(row) for row in np.concatenate([rows, -rows]).tolist()}
    assert both == set(itertools.product((1.0, -1.0), repeat=5))
    assert len(rows) == 16


def test_many_probes_have_random_flips_that_are_always_the_same():
    rows = sign_flips(30, 512)
    assert rows.shape == (512, 30)
    assert set(np.unique(rows)) == {-1.0, 1.0}
    assert abs(rows.mean()) < 0.05
    np.testing.assert_array_equal(rows, sign_flips(30, 512))


def test_luck_is_the_statistic_of_flipped_differences():
    """Against a plain reading of the formula, flip by flip."""
    rng = np.random.default_rng(0)
    values = rng.exponential(size=(6, 4))
    rule = GrowthRule(np.ones((6, 4)), np.ones(6))
    found = rule._by_luck(values)
    rest = values - values.mean(axis=0)
    for row, flip in enumerate(sign_flips(6, 2048)):
        x = rest * flip[:, None]
        spread = x.std(axis=0)
        t, skew = x.mean(axis=0) / spread, ((x - x.mean(axis=0)) ** 3).mean(axis=0) / spread**3
        skew *= 6 / (6 + 24)
        z = math.sqrt(6) * (t + skew * t**2 / 3 + skew**2 * t**3 / 27) + skew / (6 * math.sqrt(6))
        np.testing.assert_allclose(found[row], abs(z) * 7 / 6, rtol=2e-4, atol=1e-5)


def test_luck_takes_no_more_heads_above_a_boundary_than_may_be():
    """For every R and at every checkpoint: heads ever above, a flip, are at most fdr R F_k."""
    config = GrowthConfig(fdr=0.1)
    rng = np.random.default_rng(0)
    luck, walk = Luck(400, 30, config), np.zeros((400, 30))
    ever = np.zeros((len(luck.numbers), 400, 30), dtype=bool)
    for checkpoint in range(1, 9):
        walk += rng.normal(size=walk.shape)
        cells = np.abs(walk / math.sqrt(checkpoint)).astype(np.float32)
        boundaries = luck.next(cells, np.zeros(30))
        assert (np.diff(boundaries) <= 0).all()
        ever |= cells > boundaries[:, None, None]
        spent = ever.sum(axis=(1, 2)) / 400
        allowed = config.fdr * config.spent(checkpoint) * luck.numbers
        assert (spent <= allowed + 1e-9).all()
        assert spent[0] > 0.5 * allowed[0]  # and what may be is used
    assert config.spent(1) == 0.5
    assert config.spent(10**6) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("skew", [0.0, 0.4])
def test_runs_in_which_nothing_moved_have_no_calls(skew):
    """5 % of runs may have one: heads with noise in common, one flip in three of it skewed."""
    rng = np.random.default_rng(5)
    config = GrowthConfig(smallest=1.0, flips=512)
    wrong = 0
    for _ in range(60):
        common = rng.normal(size=(4, PROBES, 1))
        noise = (rng.normal(size=(4, PROBES, 40)) + 0.5 * common) / math.sqrt(1.25)
        if skew:
            noise = np.exp(skew * noise) - math.exp(skew**2 / 2)
        path = np.concatenate([np.zeros((1, PROBES, 40)), noise.cumsum(axis=0)])
        wrong += called(path, config) > 0
    assert wrong <= 6


def called(path: np.ndarray, config: GrowthConfig) -> int:
    """Heads ever called, of a run of log shares that need not sum to one."""
    with patch("sparks.timeline.growth.rule.log_shares", np.asarray):
        found = growth(path, np.ones(path.shape[:2]), config)
    return int((found.moved != 0).any(axis=0).sum())


def test_false_calls_among_true_ones_are_few():
    """A third of the heads moves: of those called, hardly any is another."""
    rng = np.random.default_rng(2)
    true, false = 0, 0
    for _ in range(20):
        path = np.concatenate([np.zeros((1, PROBES, 60)), rng.normal(size=(3, PROBES, 60))])
        path[1:, :, :20] += 1
        with patch("sparks.timeline.growth.rule.log_shares", np.asarray):
            found = growth(path, np.ones((4, PROBES)), GrowthConfig(smallest=1.0, flips=512))
        ever = (found.moved != 0).any(axis=0)
        true, false = true + ever[:20].sum(), false + ever[20:].sum()
    assert true >= 0.95 * 400
    assert false <= 0.08 * true


# -- the smallest change ---------------------------------------------------------------------------


def test_a_change_below_the_smallest_is_not_called_however_sure_it_is():
    totals, loss = run_of([{}, {2: 1.03, 3: 1 / 1.03, 4: 1.12, 5: 1 / 1.12}], spread=0.01)
    verdicts = {
        smallest: growth(totals, loss, GrowthConfig(smallest=smallest)).verdict[1, 2:6].tolist()
        for smallest in (1.0, 1.05, 1.2)
    }
    assert verdicts[1.0] == ["grew", "shrank", "grew", "shrank"]
    assert verdicts[1.05] == ["none", "none", "grew", "shrank"]
    assert verdicts[1.2] == ["none"] * 4


def test_a_model_that_did_not_change_has_no_calls():
    totals = np.random.default_rng(0).exponential(size=(1, PROBES, HEADS)).repeat(3, axis=0)
    for smallest in (1.0, 1.05):
        found = growth(totals, np.ones((3, PROBES)), GrowthConfig(smallest=smallest))
        assert not found.moved.any()
        assert not found.change.any()


def test_a_few_probes_call_nothing():
    fewest = GrowthConfig().fewest_probes
    assert fewest == 7
    for probes, silent, expected in ((6, 0, "none"), (12, 6, "none"), (12, 0, "grew")):
        totals, loss = run_of([{}, {3: 2.0}], probes=probes, spread=0.01)
        totals[1, :silent] = 0
        assert growth(totals, loss).verdict[1, 3] == expected


# -- too little L ----------------------------------------------------------------------------------


def test_nothing_is_called_where_there_is_too_little_loss():
    totals, loss = run_of([{}, {3: 2.0}, {3: 2.0}])
    loss[1, : PROBES // 2 + 1] = 0.001
    found = growth(totals, loss)
    assert found.enough_loss.tolist() == [True, False, True]
    assert set(found.verdict[1]) == {"too little L"}
    assert found.verdict[2, 3] == "grew"
    assert np.isnan(found.boundary[1])
    assert found.boundary[2] == growth(totals[::2], loss[::2]).boundary[1]  # no error was spent


@pytest.mark.parametrize("value", [0.001, np.nan])
def test_nothing_is_held_against_a_checkpoint_with_too_little_loss(value):
    """The first one with enough is the base."""
    totals, loss = run_of([{}, {3: 2.0}, {3: 2.0}, {3: 4.0}])
    loss[0] = value
    found = growth(totals, loss)
    assert found.base == 1
    assert found.enough_loss.tolist() == [False, True, True, True]
    assert np.isnan(found.factor[0]).all()
    assert not found.inside[0].any()
    assert not found.moved[:3].any()
    assert found.moved[3, 3] == 1
    assert not growth(totals[:1], loss[:1]).enough_loss.any()
    assert growth(totals[:1], loss[:1]).base is None


# -- births and prunings ---------------------------------------------------------------------------


def test_born_pruned_and_born_again():
    story = [{}, {}, {0: 2.0}, {0: 2.0}, {}, {0: 2.0}]
    found = growth(*run_of(story, level=0.7))
    assert found.change[:, 0].tolist() == [0, 0, 1, 0, -1, 1]
    assert found.inside[:, 0].tolist() == [False, False, True, True, False, True]
    assert found.verdict[4, 0] == "none"  # since the base
    assert found.onset[3, 0] == 2
    assert (found.side_doubt[[2, 4, 5], 0] < 1e-6).all()
    assert np.isnan(found.side_doubt[3, 0])
    assert not found.change[:, 1:].any()


def test_a_head_that_grew_without_changing_sides_is_not_born():
    for level, factor in ((0.3, 2.0), (2.0, 1.5)):
        found = growth(*run_of([{}, {0: factor}], level=level))
        assert found.verdict[1, 0] == "grew"
        assert not found.change.any()


def test_a_head_that_changed_sides_by_less_than_the_smallest_change_is_not_born():
    found = growth(*run_of([{}, {0: 1.03}], level=1.01, spread=0.01))
    assert found.share[0, 0] < 1 < found.share[1, 0]
    assert not found.change[:, 0].any()


def test_a_side_that_is_hardly_known_is_told():
    """It surely grew, and its best guess changed sides; where it is now is a toss-up."""
    totals, loss = run_of([{}, {0: 1.55}], level=0.7, spread=0.2)
    found = growth(totals, loss)
    assert found.change[1, 0] == 1
    assert 0.01 < found.side_doubt[1, 0] < 0.6
    assert found.now[1, 0] == 0
    assert found.now[0, 0] == -1


# -- one checkpoint at a time ----------------------------------------------------------------------


def test_what_is_said_at_a_checkpoint_stands():
    """One at a time, at once, and cut short: the same, to the bit."""
    rng = np.random.default_rng(3)
    steps = rng.normal(size=(8, PROBES, 40)) * 0.2
    steps[3:, :, :12] += 0.15
    totals = np.exp(np.concatenate([np.zeros((1, PROBES, 40)), steps.cumsum(axis=0)]))
    totals[:, :, :12] *= 0.8
    loss = np.ones((9, PROBES))
    loss[5] = 0
    whole = growth(totals, loss)
    assert whole.moved.any()
    assert whole.change.any()
    rule = GrowthRule(totals[0], loss[0])
    for time in range(1, 9):
        rule.add(totals[time], loss[time])
        now = rule.result()
        assert len(now.moved) == time + 1
        assert now.base == whole.base == 0
        for item in fields(Growth)[1:]:
            said, later = getattr(now, item.name), getattr(whole, item.name)[: time + 1]
            np.testing.assert_array_equal(said, later, err_msg=item.name)


def same(one: Growth, other: Growth) -> None:
    for item in fields(Growth)[1:]:
        values = getattr(one, item.name), getattr(other, item.name)
        np.testing.assert_allclose(*values, rtol=1e-6, err_msg=item.name)


# -- real differences ------------------------------------------------------------------------------


def stored(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Score masses and L of SmolLM2 and of a model after it, 128 probes."""
    with np.load(STORED) as arrays:
        base = arrays["base"].astype(np.float64)
        after = base + arrays[f"{name}_moves"]
        loss = np.stack([arrays["base_loss"], arrays[f"{name}_loss"]]).astype(np.float64)
    return np.exp(np.stack([base, after])), loss


@pytest.mark.parametrize("name", ["rounded", "jittered"])
def test_rounding_and_one_step_of_noise_are_no_change(name):
    totals, loss = stored(name)
    found = growth(totals, loss)
    assert not found.moved.any()
    assert not found.change.any()
    assert growth(totals, loss, GrowthConfig(smallest=1.0)).moved.any()  # why there is a smallest


def test_calls_on_a_training_hold_on_the_other_half_of_the_probes():
    totals, loss = stored("trained")
    moves = np.log(totals[1] / totals[0])
    named, signs = 0, 0
    for half, other in ((slice(64), slice(64, 128)), (slice(64, 128), slice(64))):
        moved = growth(totals[:, half], loss[:, half]).moved[1]
        named += (moved != 0).sum()
        signs += (moved * moves[other].mean(axis=0) > 0).sum()
    assert named >= 2 * 25
    assert signs >= 0.95 * named


def test_planted_heads_are_found():
    """Columns of o_proj times 1.3 and more, in 18 heads of SmolLM2: 64 probes find nearly all."""
    totals, loss = stored("planted")
    with np.load(STORED) as arrays:
        planted = arrays["planted_factors"] >= 1.3
    found = growth(totals[:, :64], loss[:, :64]).moved[1]
    assert planted.sum() == 18
    assert (found[planted] > 0).mean() >= 0.9


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fdr": 0.0}, "fdr must be a number between 0 and 1, got 0.0"),
        ({"level": 1.0}, "level must be a number between 0 and 1, got 1.0"),
        ({"smallest": 0.9}, "smallest must be a factor of at least 1 .*, got 0.9"),
        ({"smallest": math.nan}, "smallest must be a factor"),
        ({"least_loss": -1.0}, "least_loss must be at least 0 nats, got -1.0"),
        ({"flips": 100.0}, "flips must be a whole number, at least 100, got 100.0"),
        ({"flips": 99}, "flips must be a whole number, at least 100, got 99"),
    ],
)
def test_settings_outside_their_range(values, message):
    with pytest.raises(SparksError, match=message):
        GrowthConfig(**values)


def test_arrays_that_do_not_fit():
    totals, loss = run_of([{}, {}])
    with pytest.raises(SparksError, match=r"shape of the base's, \(32, 20\), got \(32, 5\)"):
        GrowthRule(totals[0], loss[0]).add(totals[1, :, :5], loss[1])
    with pytest.raises(SparksError, match=r"score mass must be at least 0, got -1\.5"):
        growth(-totals, loss)


# -- long runs -------------------------------------------------------------------------------------


def test_the_checkpoints_that_are_tested_thin_out_by_their_number_alone():
    tested = [number for number in range(1, 1001) if is_tested(number)]
    assert tested[:34] == [*range(1, 33), 34, 36]
    assert len(tested) == 111
    assert [n for n in tested if 64 <= n < 80] == [64, 68, 72, 76]


def test_between_tests_what_was_said_last_stands():
    rng = np.random.default_rng(5)
    base = rng.gamma(4, 1, (24, 12))
    grown = base.copy()
    grown[:, 3] *= 2
    totals = np.stack([base] + [base * rng.lognormal(0, 0.02, base.shape)] * 32 + [grown] * 3)
    found = growth(totals, np.full(totals.shape[:2], 2.0))
    assert found.tested.tolist() == [False] + [True] * 32 + [False, True, False]
    assert found.moved[32:, 3].tolist() == [0, 0, 1, 1]
    assert np.isnan(found.boundary[[33, 35]]).all()
    np.testing.assert_allclose(found.factor[33, 3], found.factor[35, 3])


def test_a_model_of_many_heads_costs_no_more_flips_than_luck_needs():
    rule = GrowthRule(np.random.default_rng(0).gamma(4, 1, (16, 5120)), np.full(16, 2.0))
    assert len(rule._flips) == 256
    few = GrowthRule(np.random.default_rng(0).gamma(4, 1, (16, 336)), np.full(16, 2.0))
    assert len(few._flips) == GrowthConfig().flips
