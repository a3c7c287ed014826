"""Coupling of a count to a curve: planted lags, trends that are none, its level under chance."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sparks.ground.errors import SparksError
from sparks.stats.coupling import at_checkpoints, coupling, fewest_points

NAN = math.nan


def neighbours_alike(rng: np.random.Generator, points: int, phi: float) -> np.ndarray:
    """An autoregressive series in its steady state; a random walk where phi is 1."""
    steps = rng.normal(size=points + 50)
    for index in range(1, points + 50):
        steps[index] += phi * steps[index - 1]
    return steps[50:]


def test_the_curve_at_checkpoints_by_hand():
    logged = {0: 7.0, 1: 1.0, 5: NAN, 10: 3.0, 11: 4.0, 40: 5.0}
    curve = pd.Series(logged, dtype=float)
    found = at_checkpoints(curve, np.array([0, 10, 20, 30]))
    np.testing.assert_array_equal(found, [7, 2, 4, NAN])
    empty = at_checkpoints(pd.Series([], dtype=float, index=pd.Index([], dtype=int)), np.arange(2))
    assert np.isnan(empty).all()


def test_a_count_that_is_the_curve():
    curve = neighbours_alike(np.random.default_rng(0), 30, 0.5)
    found = coupling(np.round(10 * curve), curve, name="reward")
    assert found.rho > 0.99
    assert found.p_value == pytest.approx(1 / 30)
    assert (found.curve, found.points, found.lag) == ("reward", 30, 0)


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_a_planted_lag_is_found(lag):
    series = neighbours_alike(np.random.default_rng(3), 90, 0.5)
    curve, count = series[lag:], series[: len(series) - lag]
    noise = np.random.default_rng(4).normal(size=len(count))
    found = coupling(count + 0.3 * noise, curve, name="reward")
    assert found.lag == lag
    assert found.p_value <= 0.05
    assert found.rho > 0.8


def test_a_count_against_the_curve_only_counts_on_either_side():
    curve = neighbours_alike(np.random.default_rng(0), 40, 0.5)
    assert coupling(-curve, curve, name="loss").p_value > 0.5
    found = coupling(-curve, curve, name="loss", side="either")
    assert found.rho == pytest.approx(-1)
    assert found.p_value <= 0.05


def test_rising_together_is_no_coupling():
    """Two noisy lines: Spearman's correlation is near 1, the partial one is not."""
    rng = np.random.default_rng(2)
    time = np.arange(30.0)
    a, b = time + rng.normal(size=30), time + rng.normal(size=30)
    assert np.corrcoef(a, b)[0, 1] > 0.95
    assert coupling(a, b, name="reward").p_value > 0.05
    assert math.isnan(coupling(time, time, name="reward").rho)  # nothing but the line


def test_too_few_checkpoints_decide_nothing():
    curve = neighbours_alike(np.random.default_rng(0), 20, 0.5)
    assert fewest_points(0.05) == 20
    assert fewest_points(0.1) == 10
    assert coupling(curve, curve, name="reward").p_value == pytest.approx(0.05)
    few = coupling(curve[:19], curve[:19], name="reward")
    assert (few.points, few.fewest_points) == (19, 20)
    assert few.rho == pytest.approx(1)
    assert math.isnan(few.p_value)
    for points in range(4):
        assert math.isnan(coupling(curve[:points], curve[:points], name="reward").p_value)


def test_checkpoints_without_the_curve_are_left_out():
    curve = neighbours_alike(np.random.default_rng(0), 30, 0.5)
    count, gaps = curve.copy(), curve.copy()
    gaps[[0, 7]], count[[0, 7]] = NAN, 1000
    found = coupling(count, gaps, name="reward")
    assert (found.points, found.rho) == (28, pytest.approx(1))


def test_a_count_that_never_changes():
    curve = neighbours_alike(np.random.default_rng(0), 30, 0.5)
    found = coupling(np.full(30, 4), curve, name="reward")
    assert math.isnan(found.rho)
    assert math.isnan(found.p_value)


@pytest.mark.parametrize("points", [24, 60])
@pytest.mark.parametrize(("phi", "most"), [(0.0, 0.08), (0.8, 0.10), (1.0, 0.12)])
def test_independent_series_are_rarely_coupled(points, phi, most):
    """At 5 %. Shuffling instead of shifting would call a third of them coupled at phi = 0.8."""
    called = []
    for seed in range(300):
        rng = np.random.default_rng([seed, points])
        a, b = (neighbours_alike(rng, points, phi) for _ in range(2))
        called.append(coupling(np.round(3 * a), b, name="reward").p_value <= 0.05)
    assert 0.01 < np.mean(called) < most


def test_shuffling_would_not_do():
    """The control of the test above."""
    called = []
    for seed in range(60):
        rng = np.random.default_rng([seed, 60])
        a, b = (neighbours_alike(rng, 60, 0.8) for _ in range(2))
        found = np.corrcoef(a, b)[0, 1]
        shuffled = [np.corrcoef(a, rng.permutation(b))[0, 1] for _ in range(99)]
        called.append((1 + np.sum(np.array(shuffled) >= found)) / 100 <= 0.05)
    assert np.mean(called) > 0.12


def test_mistakes_are_told():
    with pytest.raises(SparksError, match="max_lag must be at least 0, got -1"):
        coupling(np.zeros(3), np.zeros(3), name="reward", max_lag=-1)
    with pytest.raises(SparksError, match="must be as long as each other, got 3 and 4"):
        coupling(np.zeros(3), np.zeros(4), name="reward")
