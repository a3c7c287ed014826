"""Effects of head sets: intervals and tests against closed forms, brute force and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sparks.effects.judging import BEYOND, NO_MORE, UNDECIDED, Metric, beside, holm, judge
from sparks.effects.settings import EffectConfig
from sparks.ground.errors import SparksError
from sparks.stats.intervals import Interval, student_quantile
from sparks.stats.paired import contrast, effect, random_effect, sign_flip_p

# -- intervals by hand -----------------------------------------------------------------------------


def test_graded_differences_take_students_t():
    intact, ablated = np.array([1.0, 0.5, 0.75, 1.0]), np.array([0.5, 0.5, 0.0, 0.25])
    found = effect(intact, ablated, grain=0.25)
    # Differences 0.5, 0, 0.75, 0.75: mean 0.5, variance 0.375 / 3; t(0.975, 3) = 3.182.
    half = 3.1824463 * math.sqrt(0.125 / 4)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 1.0), abs=1e-6)


def test_yes_and_no_answers_take_the_interval_of_agresti_and_min():
    intact, ablated = np.ones(8), np.array([0.0, 0, 0, 1, 1, 1, 1, 1])
    found = effect(intact, ablated, grain=1)
    # Of 8 + 2 problems 3.5 changed one way and 0.5 the other: (b - c) / N, sqrt of
    # (b + c - (b - c)^2 / N) / N; t(0.975, 7) = 2.3646.
    b, c, count = 3.5, 0.5, 10
    half = 2.3646243 * math.sqrt(b + c - (b - c) ** 2 / count) / count
    assert found.value == 0.375
    assert (found.low, found.high) == pytest.approx((0.3 - half, 0.3 + half), abs=1e-6)


@pytest.mark.parametrize("grain", [1.0, 0.25])
def test_an_interval_is_no_point_where_all_problems_agree(grain):
    found = effect(np.zeros(20), np.zeros(20), grain=grain)
    assert found.value == 0
    assert found.high == -found.low == pytest.approx(student_quantile(0.975, 19) / 22)
    assert effect(np.zeros(20), np.zeros(20), grain=0).high == 0


def test_the_contrast_adds_what_problems_and_draws_vary():
    ablated = np.array([0.0, 0.25, 0.5, 0.25, 0.0, 0.5])
    random = np.array([[1.0, 0.75, 1.0, 0.75, 0.25, 1.0], [0.75, 0.5, 1.0, 0.0, 0.25, 0.75]])
    found = contrast(ablated, random, grain=0.25).interval
    w = random.mean(axis=0) - ablated
    of_problems = max(w.var(ddof=1) / 6, 1 / 8**2)
    of_draws = random.mean(axis=1).var(ddof=1) / 2
    total = of_problems + of_draws
    degrees = math.floor(total**2 / (of_problems**2 / 5 + of_draws**2 / 1))
    half = student_quantile(0.975, degrees) * math.sqrt(total)
    expected = (w.mean(), w.mean() - half, min(1.0, w.mean() + half))
    assert (found.value, found.low, found.high) == pytest.approx(expected)
    intact = np.full(6, 1.0)
    by_parts = effect(intact, ablated, grain=0.25).value
    assert found.value == pytest.approx(by_parts - random_effect(intact, random, grain=0.25).value)


def test_draws_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    ablated, alike = rng.random(40), np.repeat(rng.random((1, 40)), 4, axis=0)
    apart = alike + np.array([-0.3, -0.1, 0.1, 0.3])[:, None]
    near, far = (contrast(ablated, random, grain=0) for random in (alike, apart))
    assert near.interval.value == pytest.approx(far.interval.value)
    # Four draws 0.2 apart: variance 0.0667 / 4 more, and about 3 degrees of freedom.
    assert far.interval.high - far.interval.low > 0.7 > near.interval.high - near.interval.low


def test_a_set_is_held_against_single_draws():
    # Three draws that lie 1, 2 and 3 above the set: t = 2 / (1 * sqrt(4 / 3)) = 1.7321, and with
    # two degrees of freedom P(|T| >= t) = 1 - t / sqrt(2 + t^2).
    found = contrast(np.zeros(12), np.repeat([[1.0], [2.0], [3.0]], 12, axis=1), grain=0)
    t = 2 / math.sqrt(4 / 3)
    assert found.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-6)
    # The mean of the draws is known well enough; that it differs from 0 is no claim about the set.
    assert found.interval.low < found.interval.value == 2


def test_draws_that_agree_leave_it_to_the_problems():
    found = contrast(np.zeros(6), np.ones((3, 6)), grain=1)
    assert found.p_value == 2 / 2**6
    assert contrast(np.zeros(6), np.zeros((3, 6)), grain=1).p_value == 1


# -- sign flips ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_sign_flips_are_those_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    differences = rng.integers(-4, 6, 9) / 4
    sums = [np.dot(signs, differences) for signs in itertools.product([-1, 1], repeat=9)]
    wanted = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-12)
    assert sign_flip_p(differences, 0.25) == pytest.approx(wanted)
    assert sign_flip_p(differences) == pytest.approx(wanted, abs=0.02)


def test_sign_flips_at_the_ends():
    assert sign_flip_p(np.ones(4), 1.0) == 2 / 16
    assert sign_flip_p(np.zeros(4), 1.0) == 1.0
    many = np.full(400, 0.25)  # too many for random flips to tell, not for exact ones
    assert sign_flip_p(many, 0.25) < 1e-100
    assert sign_flip_p(many) == 1 / 10_000


# -- coverage --------------------------------------------------------------------------------------

_SIMULATIONS = 400


def shares(rng: np.random.Generator, logits: np.ndarray, samples: int) -> np.ndarray:
    return rng.binomial(samples, 1 / (1 + np.exp(-logits))) / samples


@pytest.mark.parametrize(
    ("problems", "draws", "samples", "spread", "of_draws", "level"),
    [
        (40, 5, 4, 1.2, 0.8, 0.0),
        (100, 5, 4, 1.0, 0.5, -1.0),
        (30, 3, 1, 1.0, 0.5, 0.0),
        (20, 5, 4, 4.0, 0.0, -2.0),
        (24, 4, 1, 3.0, 0.3, -2.0),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    problems, draws, samples, spread, of_draws, level
):
    """Problems, draws and answers are all drawn anew; the set takes 1, random heads 0.3 logits."""
    many = np.random.default_rng(1)
    base, draw = level + spread * many.normal(size=200_000), of_draws * many.normal(size=200_000)
    intact, ablated, random = (
        float((1 / (1 + np.exp(-logits))).mean()) for logits in (base, base - 1, base + draw - 0.3)
    )
    truth = (intact - ablated, intact - random, random - ablated)
    rng, held = np.random.default_rng(2), np.zeros(3)
    for _ in range(_SIMULATIONS):
        at = level + spread * rng.normal(size=problems)
        shift = of_draws * rng.normal(size=(draws, 1)) - 0.3
        x, y, z = (shares(rng, logits, samples) for logits in (at, at - 1, at + shift))
        grain = 1 / samples
        found = (
            effect(x, y, grain=grain),
            random_effect(x, z, grain=grain),
            contrast_interval(y, z, grain),
        )
        held += [one.low <= true <= one.high for one, true in zip(found, truth, strict=True)]
    assert held.min() / _SIMULATIONS >= 0.925  # 95 % less two standard errors of 400


def contrast_interval(y: np.ndarray, z: np.ndarray, grain: float) -> Interval:
    """`contrast` without its p-value, which takes time: the same interval, of Delta(R) = -w."""
    mirrored = random_effect(y, z, grain=grain)
    return Interval(value=-mirrored.value, low=-mirrored.high, high=-mirrored.low)


def test_the_interval_of_the_simulation_is_that_of_the_contrast():
    rng = np.random.default_rng(3)
    y, z = rng.integers(0, 5, 12) / 4, rng.integers(0, 5, (3, 12)) / 4
    one, other = contrast(y, z, grain=0.25).interval, contrast_interval(y, z, 0.25)
    assert vars(one) == pytest.approx(vars(other))


def test_random_heads_themselves_are_rarely_called_more():
    """A set that is one more random draw: p at most 0.05 in about one of twenty studies."""
    rng, found = np.random.default_rng(4), []
    for _ in range(150):
        at = 1.2 * rng.normal(size=30)
        shift = 0.6 * rng.normal(size=(6, 1))
        z = shares(rng, at + shift, 4)
        found.append(contrast(z[0], z[1:], grain=0.25).p_value)
    assert 0 < np.mean(np.array(found) <= 0.05) <= 0.12


# -- words -----------------------------------------------------------------------------------------


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1, and never falling.
    assert holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx((0.06, 0.5, 0.04, 0.06))
    assert holm([0.4, 0.7]) == pytest.approx((0.8, 0.8))
    assert holm([0.04]) == (0.04,)
    assert holm([]) == ()


def _of(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("effect_of", "control", "contrast_of", "p_holm", "verdict", "reason"),
    [
        ((0.3, 0.2, 0.4), 0.05, (0.25, 0.1, 0.4), 0.01, BEYOND, ""),
        ((-0.3, -0.4, -0.2), -0.05, (-0.25, -0.4, -0.1), 0.01, BEYOND, ""),  # scaled up
        ((0.1, 0.0, 0.2), 0.09, (0.01, -0.03, 0.05), 0.5, NO_MORE, ""),
        ((0.0, -0.03, 0.03), 0.2, (-0.2, -0.3, -0.1), 0.01, NO_MORE, ""),
        ((0.0, -0.03, 0.03), -0.2, (0.2, 0.1, 0.3), 0.01, NO_MORE, ""),  # random heads raise it
        ((0.3, 0.2, 0.4), 0.1, (0.2, 0.05, 0.35), 0.08, UNDECIDED, "no more than single draws"),
        ((0.1, 0.0, 0.2), 0.0, (0.1, -0.05, 0.25), 0.3, UNDECIDED, "up to 25 points are open"),
        ((0.1, -0.1, 0.3), -0.2, (0.3, 0.1, 0.5), 0.01, UNDECIDED, "not from no ablation"),
        ((0.5, 0.4, 0.6), 0.49, (0.01, -0.02, 0.04), 0.6, UNDECIDED, "random heads alone take"),
    ],
)
def test_verdicts(effect_of, control, contrast_of, p_holm, verdict, reason):
    found = judge(
        intact=0.52,
        effect=_of(*effect_of),
        control=_of(control, control - 0.05, control + 0.05),
        contrast=_of(*contrast_of),
        p_holm=p_holm,
        margin=0.2,
    )
    assert (found.verdict, bool(found.reason)) == (verdict, verdict == UNDECIDED)
    assert reason in found.reason


def test_a_model_that_solves_nothing_tells_nothing():
    zero = _of(0.0, -0.02, 0.02)
    found = judge(intact=0, effect=zero, control=zero, contrast=zero, p_holm=1, margin=0.1)
    assert (found.verdict, found.reason) == (
        UNDECIDED, "the intact model reaches nothing that could be taken"
    )  # fmt: skip


# -- metrics ---------------------------------------------------------------------------------------


def test_metrics_of_each_problem():
    correct = np.array([[True, False, False, True], [False, False, True, False]])
    assert Metric.named("pass@1").values(correct).tolist() == [0.5, 0.25]
    # Pairs without a right one: 1 of 6, and 3 of 6.
    assert Metric.named("pass@2").values(correct) == pytest.approx([5 / 6, 3 / 6])
    assert Metric.named("success@2").values(correct).tolist() == [1, 0]
    assert [Metric.named(name).grain(4) for name in ("pass@1", "pass@2", "success@2")] == [
        1 / 4, 1 / 6, 1,
    ]  # fmt: skip
    assert [str(m) for m in beside(Metric.named("pass@1"), 4)] == ["pass@2", "pass@4", "success@2"]


@pytest.mark.parametrize("name", ["loss", "pass@0", "pass@", "Pass@1"])
def test_an_unknown_metric_is_refused(name):
    with pytest.raises(SparksError, match=r"metric must be pass@K or success@K"):
        EffectConfig(metric=name)


def test_a_metric_of_more_samples_than_there_are_is_refused():
    with pytest.raises(SparksError, match=r"k must be a whole number from 1 to .* \(4\), got 8"):
        Metric.named("pass@8").values(np.zeros((2, 4), dtype=bool))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"random_draws": 1}, "random_draws must be a whole number, at least 2, got 1: one draw"),
        ({"margin": 0.0}, "margin must be a number between 0 and 1, got 0.0"),
        ({"margin": math.nan}, "margin must be a number between 0 and 1, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(values, match):
    with pytest.raises(SparksError, match=match):
        EffectConfig(**values)
