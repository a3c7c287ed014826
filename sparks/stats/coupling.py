"""Does the number of heads follow a curve of the trainer? Lagged rank correlation, circular shifts.

1. Curve at a checkpoint = mean of what was logged after the checkpoint before, up to this one.
   Checkpoints without any are left out; n are left.
2. Both series as ranks, each without its straight line over the checkpoints: that two things rise
   together, as everything does in a training, is no coupling. So this is Spearman's correlation,
   partial on time.
3. c(s) = correlation of the count with the curve moved s checkpoints later, in a circle; c(0) is as
   observed, c(k) lets the count come k checkpoints after the curve.
4. Checkpoints resemble their neighbours. A shift leaves that in both series; shuffling would not,
   and would call chance a coupling (shift tests: Harris 2020, https://arxiv.org/abs/2012.06862). So
   p of lag k = share of all n shifts with c(s) >= c(k), which is 1/n at the least.
5. Lags 0 .. L - 1 are asked, and the smallest p is multiplied by L. L is as large as n allows if a
   p <= alpha is to stay in reach: L = n alpha rounded down, at most `max_lag` + 1. Where L is 0
   there are too few checkpoints to decide: p is NaN.

A circle closes where the series does not, so the level is approximate: with alpha = 5 %, 4 to 7 %
of independent autocorrelated series (correlation of neighbours up to 0.8) are called coupled, and 6
to 9 % of random walks (`tests/stats/test_coupling.py`). Curves that bend alike, such as two that
level off, can look coupled although neither drives the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Num

from sparks.ground.errors import SparksError
from sparks.stats.trends import centred_ranks

Side = Literal["positive", "either"]
"""The count goes with the curve, or with it or against it."""


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """How closely the count follows the curve."""

    curve: str
    points: int
    """Checkpoints at which the curve is known."""
    fewest_points: int
    """That the test needs."""
    lag: int
    """Checkpoints by which the count comes after the curve, where they agree best."""
    rho: float
    """Partial rank correlation at that lag; NaN where a series never leaves its line."""
    p_value: float
    """NaN where `points` are too few, or `rho` is NaN."""


def fewest_points(alpha: float) -> int:
    """Checkpoints that `coupling` needs to reach p <= `alpha`."""
    return math.ceil(1 / alpha - 1e-9)


def at_checkpoints(
    curve: pd.Series, steps: Int[np.ndarray, " checkpoints"]
) -> Float[np.ndarray, " checkpoints"]:
    """Mean of the numbers logged since the checkpoint before; NaN where there are none.

    Args:
        curve: a column of `Timeline.metrics`: index = step, NaN where it was not logged.
        steps: of the checkpoints, in order.
    """
    known = curve.dropna()
    place = np.searchsorted(steps, known.index.to_numpy())
    inside = place < len(steps)
    sums = np.bincount(place[inside], known.to_numpy()[inside], minlength=len(steps))
    counts = np.bincount(place[inside], minlength=len(steps))
    return np.divide(sums, counts, out=np.full(len(steps), np.nan), where=counts > 0)


def coupling(
    count: Num[np.ndarray, " checkpoints"],
    curve: Float[np.ndarray, " checkpoints"],
    *,
    name: str,
    max_lag: int = 3,
    side: Side = "positive",
    alpha: float = 0.05,
) -> Coupling:
    """Correlate the count with the curve, and test it (the module's text says how).

    Args:
        count: of heads, a checkpoint each.
        curve: NaN where it is not known.
        name: of the curve.
        max_lag: checkpoints, at most, that the count may come later.
        side: of the test: the count rises with the curve, or either.
        alpha: p that has to be in reach; sets the number of lags and `fewest_points`.

    Raises:
        SparksError: `max_lag` is negative, or the series differ in length.
    """
    if max_lag < 0:
        raise SparksError(f"max_lag must be at least 0, got {max_lag!r}")
    if len(count) != len(curve):
        raise SparksError(
            f"count and curve must be as long as each other, got {len(count)} and {len(curve)}"
        )
    known = ~np.isnan(curve)
    points, needed = int(known.sum()), fewest_points(alpha)
    lags = min(max_lag + 1, points // needed)
    lag, rho, p_value = 0, math.nan, math.nan
    shifted = _shifted(_without_line(count[known]), _without_line(curve[known]))
    if len(shifted):
        strength = shifted if side == "positive" else np.abs(shifted)
        lag = int(strength[: max(lags, 1)].argmax())
        rho = float(shifted[lag])
        if lags:
            p_value = min(1.0, lags * float((strength >= strength[lag] - 1e-12).mean()))
    return Coupling(
        curve=name, points=points, fewest_points=needed, lag=lag, rho=rho, p_value=p_value
    )


def _without_line(values: Num[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Ranks less their least-squares line; exact zeros where nothing else is left."""
    ranks = centred_ranks(values)
    time = np.arange(len(ranks)) - (len(ranks) - 1) / 2
    left = ranks - time * (ranks @ time) / max(float(time @ time), 1.0)
    return np.where(np.abs(left) < 1e-9, 0.0, left)


def _shifted(
    count: Float[np.ndarray, " points"], curve: Float[np.ndarray, " points"]
) -> Float[np.ndarray, " shifts"]:
    """c(s) for s = 0 .. n - 1; nothing where a series never leaves its line."""
    scale = float(np.sqrt((count @ count) * (curve @ curve)))
    if len(count) < 3 or scale == 0:
        return np.zeros(0)
    shifts = np.arange(len(count))
    moved = curve[(shifts - shifts[:, None]) % len(count)]
    return moved @ count / scale
