"""Statistics of few heads and checkpoints: by hand, and at their level."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sparks.stats.trends import fewest_for_trend, ratio_over_heads, rising, sign_test


@pytest.mark.parametrize(
    ("ups", "downs", "expected"),
    [(0, 0, 1), (5, 0, 1 / 32), (4, 1, 6 / 32), (0, 5, 1), (3, 3, 42 / 64)],
)
def test_the_sign_test_by_hand(ups, downs, expected):
    assert sign_test(ups, downs) == expected


def test_a_rise_by_hand():
    up = rising(np.array([1, 2, 5, 9]))
    assert up.rho == pytest.approx(1)
    assert up.p_value == pytest.approx(1 / 24)
    down = rising(np.array([9, 5, 2, 1]))
    assert (down.rho, down.p_value) == (pytest.approx(-1), 1)
    tied = rising(np.array([0, 0, 1, 1]))  # 4 of the 24 orders are the observed one
    assert tied.p_value == pytest.approx(4 / 24)
    assert tied.rho == pytest.approx(2 / math.sqrt(5))


def test_a_rise_agrees_with_every_order_of_seven_values():
    values = np.array([3, 1, 4, 1, 5, 9, 2])
    ranks = np.array([4, 1.5, 5, 1.5, 6, 7, 3])
    sums = [np.dot(np.array(order), np.arange(7)) for order in itertools.permutations(ranks)]
    expected = np.mean(np.array(sums) >= np.dot(ranks, np.arange(7)))
    assert rising(values).p_value == pytest.approx(expected)


def test_nothing_rises_where_nothing_changes():
    for values in ([], [3], [2, 2, 2]):
        assert math.isnan(rising(np.array(values, dtype=float)).p_value)


def test_the_level_of_the_trend():
    rng = np.random.default_rng(1)
    called = [rising(rng.poisson(5, 15)).p_value <= 0.05 for _ in range(400)]
    assert 0.02 < np.mean(called) < 0.08
    assert rising(np.arange(30)).p_value == pytest.approx(1e-4)


def test_the_fewest_values_for_a_trend():
    assert fewest_for_trend(0.05) == 4
    assert fewest_for_trend(0.01) == 5
    assert rising(np.arange(4)).p_value <= 0.05 < rising(np.arange(3)).p_value


def test_a_ratio_over_heads():
    above, below = np.array([0, 1, 2, 0, 1, 0]), np.array([4, 5, 6, 3, 4, 8])
    found = ratio_over_heads(above, below)
    assert found.value == pytest.approx(4 / 30)
    assert 0 <= found.low < found.value < found.high < 2 / 6
    assert found == ratio_over_heads(above, below)  # the same draws


def test_a_ratio_without_information_has_no_interval():
    assert math.isnan(ratio_over_heads(np.zeros(3), np.zeros(3)).value)
    same = ratio_over_heads(np.zeros(3), np.ones(3))
    assert (same.value, math.isnan(same.low), math.isnan(same.high)) == (0, True, True)
    single = ratio_over_heads(np.ones(1), np.full(1, 4))
    assert (single.value, math.isnan(single.low)) == (0.25, True)
