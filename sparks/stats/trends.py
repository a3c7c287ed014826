"""Statistics of few heads and few checkpoints: an interval, exact tests, a bootstrap over heads.

1. Sign test (Conover 1999, sec. 3.4): of n heads that changed one way or the other,
   P(Bin(n, 1/2) >= those that changed upwards), an exact sum.
2. Rising trend: Spearman's rank correlation of the values with their order, and the share of orders
   of the same values whose correlation is as large: every order up to 7 values, above that 9999
   random ones and the observed (Davison and Hinkley 1997, sec. 4.3). Values that follow each other
   closely are no random order: a slow wander can look like a trend.
3. Ratio of two sums over heads, with a percentile bootstrap over heads (Efron 1979).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Num

from sparks.stats.intervals import NO_INTERVAL, Interval, percentiles, resampled_counts

_RANDOM_ORDERS = 9999
_ALL_ORDERS_UP_TO = 7
_RESAMPLES = 2000
_SEED = 2509_25758


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Whether values rise with their order."""

    rho: float
    """Spearman's rank correlation with the order; NaN where the values are all alike."""
    p_value: float
    """One-sided, of a rise; NaN where `rho` is."""


def sign_test(ups: int, downs: int) -> float:
    """P(as many `ups` or more, of both) if either is as likely; 1 where nothing changed."""
    total = ups + downs
    return sum(math.comb(total, count) for count in range(ups, total + 1)) / 2**total


def fewest_for_trend(alpha: float) -> int:
    """Values that `rising` needs to reach p <= `alpha`: 1 / n! of the orders rises throughout."""
    return next(count for count in itertools.count(2) if 1 / math.factorial(count) <= alpha)


def rising(values: Num[np.ndarray, " checkpoints"]) -> Trend:
    """Rank correlation of the values with their order, and its permutation p-value (point 2)."""
    ranks = centred_ranks(values)
    size = float(np.sqrt((ranks**2).sum()))
    if size < 1e-9:
        return Trend(rho=math.nan, p_value=math.nan)
    time = np.arange(len(ranks)) - (len(ranks) - 1) / 2
    found = float(ranks @ time)
    orders = _orders(len(ranks))
    sums = np.concatenate([ranks[part] @ time for part in np.array_split(orders, 16)])
    return Trend(
        rho=found / (size * float(np.sqrt((time**2).sum()))),
        p_value=float((sums >= found - 1e-9).mean()),
    )


def centred_ranks(values: Num[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Ranks, those of ties averaged, with mean 0."""
    ranks = pd.Series(values).rank().to_numpy(dtype=np.float64)
    return ranks - ranks.mean() if len(ranks) else ranks


@cache
def _orders(count: int) -> Int[np.ndarray, "orders {count}"]:
    """Every order, or the observed and random ones."""
    if count <= _ALL_ORDERS_UP_TO:
        return np.array(list(itertools.permutations(range(count))))
    rng = np.random.default_rng([_SEED, count])
    order = np.tile(np.arange(count, dtype=np.int32), (_RANDOM_ORDERS + 1, 1))
    rng.permuted(order[1:], axis=1, out=order[1:])
    return order


def ratio_over_heads(
    above: Num[np.ndarray, " heads"], below: Num[np.ndarray, " heads"]
) -> Interval:
    """Sum of `above` / sum of `below`, resampled over heads.

    NaN where `below` sums to 0; no ends where the resamples say nothing: a single head, or all of
    them alike.
    """
    if not below.sum():
        return NO_INTERVAL
    value = float(above.sum() / below.sum())
    counts = resampled_counts(len(below), _RESAMPLES).astype(np.float64)
    over = counts @ below
    ratios = np.divide(counts @ above, over, out=np.full(len(over), np.nan), where=over > 0)
    low, high = middle_of(ratios)
    if np.isclose(low, high):
        return Interval(value=value, low=math.nan, high=math.nan)
    return Interval(value=value, low=low, high=high)


def middle_of(drawn: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """Ends of the 95 % interval of what the resamples gave; NaN among them is left out."""
    low, high = percentiles(drawn[~np.isnan(drawn), None])
    return float(low[0]), float(high[0])
