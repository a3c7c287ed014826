"""Intervals against textbook values, brute force and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest

from sparks.stats.intervals import (
    percentiles,
    proportion_interval,
    resampled_counts,
    share_interval,
    student_quantile,
)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (score, no correction).
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_yes_and_no_gives_wilsons_interval(hits, count, low, high):
    values = np.zeros((count, 1), dtype=np.uint8)
    values[:hits] = 1
    ends = proportion_interval(values, 1)
    assert [float(end[0]) for end in ends] == pytest.approx([low, high], abs=5e-5)


@pytest.mark.parametrize(
    ("degrees", "value"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (10, 2.2281), (15, 2.1314), (120, 1.9799)],
)
def test_students_quantiles_are_those_of_the_tables(degrees, value):
    assert student_quantile(0.975, degrees) == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize("count", [8, 16, 24])
@pytest.mark.parametrize("chances", [(0.3, 0.5, 0.7), (0.05, 0.5, 0.95), (0.6, 0.6, 0.6)])
def test_intervals_of_graded_values_hold_the_truth(count, chances):
    """Three settings that agree more or less: 95 % must mean about 95 %."""
    rng = np.random.default_rng(count)
    held = []
    probe = rng.random((count, 4000))  # one hidden number a probe: its settings go together
    values = sum((probe < chance).astype(np.int64) for chance in chances)
    low, high = proportion_interval(values, len(chances))
    held = (low <= np.mean(chances)) & (np.mean(chances) <= high)
    assert 0.93 <= held.mean() <= 0.995


def test_probes_that_all_agree_leave_doubt_and_more_probes_leave_less():
    ends = [proportion_interval(np.full((count, 1), 9), 9)[0][0] for count in (4, 12, 48)]
    assert ends == sorted(ends)
    assert ends[0] < 0.5 < ends[1] < ends[2] < 1
    low, high = proportion_interval(np.full((12, 1), 5), 9)
    assert low[0] < 5 / 9 < high[0]


def test_ends_are_ordered_and_within_0_and_1():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 10, (5, 7, 400)).astype(np.uint8)
    low, high = proportion_interval(values, 9)
    mean = values.mean(axis=1) / 9
    assert low.shape == high.shape == (5, 400)
    assert ((low >= 0) & (low <= mean) & (mean <= high) & (high <= 1)).all()


def test_a_single_probe_says_next_to_nothing():
    low, high = proportion_interval(np.array([[9]]), 9)
    assert low[0] < 0.25
    assert high[0] == 1


def test_resamples_draw_every_probe_equally_and_are_the_same_each_time():
    counts = resampled_counts(12)
    assert counts.sum(axis=1).tolist() == [12] * len(counts)
    assert counts.mean() == 1
    assert resampled_counts(12) is counts
    with pytest.raises(ValueError, match="read-only"):
        counts[0, 0] = 5


def test_importance_interval_holds_the_share_and_shrinks_with_probes():
    rng = np.random.default_rng(1)
    widths = []
    for count in (8, 32, 128):
        values = rng.gamma(2.0, [[3.0, 1.0, 0.0]], (count, 3))
        low, high = share_interval(values)
        share = values.sum(axis=0) / values.sum()
        assert ((low <= share) & (share <= high)).all()
        assert low[2] == high[2] == 0
        widths.append(high[0] - low[0])
    assert widths == sorted(widths, reverse=True)


def test_importance_of_nothing_is_zero():
    low, high = share_interval(np.zeros((4, 3)))
    assert not low.any()
    assert not high.any()


@pytest.mark.parametrize("count", [1, 2, 7, 400])
def test_percentiles_are_those_of_numpy(count):
    drawn = np.random.default_rng(count).normal(size=(count, 50))
    drawn[0, 3] = np.nan
    for level in (0.5, 0.9, 0.95):
        expected = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        np.testing.assert_array_equal(percentiles(drawn, level=level), expected)
        np.testing.assert_array_equal(percentiles(drawn[:, 0], level=level), expected[:, 0])


def test_percentiles_cut_both_ends():
    low, high = percentiles(np.arange(1001.0)[:, None], level=0.9)
    assert (low[0], high[0]) == pytest.approx((50, 950))
