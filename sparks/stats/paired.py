"""Effects on a metric, paired over problems: intervals and exact tests.

x_i, y_i, z_di: metric on problem i of the intact model, with the set H switched off, and with draw
d of random heads matched to H; P problems, D draws. "Thinking Sparks!", ours from point 2 on.

1. Effect of the set: Delta(H) = mean_i (x_i - y_i), with Student's t over problems. An interval
   must not shrink to a point where all problems agree: the variance of a mean is at least 1 / N^2,
   N = P + 2, as two more problems would give, one each way with half its weight. Where a problem
   is either solved or not they are added (Agresti and Min 2005, Statistics in Medicine 24:729):
   sums over N problems, the sum of squares + 1.
2. Effect of random heads: mean over draws of Delta(R_d).
3. Contrast: Delta(H) - mean_d Delta(R_d) = mean_i w_i, w_i = mean_d z_di - y_i; x drops out.
4. Its interval: problems and draws are both drawn from more that there could be, so

       V = V_problems + V_draws,  V_problems = var(w_i) / P,  V_draws = s^2 / D,
       s^2 = var over draws of mean_i z_di,

   with degrees of freedom V^2 / (V_problems^2 / (P - 1) + V_draws^2 / (D - 1)) (Satterthwaite
   1946). What is left between problem and draw is counted in both: V is a little too large, never
   too small (Owen 2007, Annals of Applied Statistics 1:386).
5. Its p asks more. Any one set differs from the mean of many; is this one more than one more draw?
   Then the contrast has variance s^2 (1 + 1 / D), problems included: Student's t with D - 1
   degrees of freedom. And the problems, with these draws, must show it too: the exact sign-flip
   test of the w_i (`stats.sign_flips`). p is the larger of the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sparks.stats.intervals import LEVEL, Interval, student_below, student_quantile
from sparks.stats.sign_flips import tails

_MOST_EXACT = 50_000
"""Largest sum of differences, in units, for which every sum's chance is worked out."""
_RANDOM_FLIPS = 9999
_SEED = 2509_25758


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A set against its matched random heads: Delta(H) - mean Delta(random)."""

    interval: Interval
    """Holds the luck of problems and of draws."""
    p_value: float
    """Two-sided, that the set is one more random draw (point 5); of this set alone."""


def effect(
    intact: Float[np.ndarray, " problems"],
    ablated: Float[np.ndarray, " problems"],
    *,
    grain: float,
    level: float = LEVEL,
) -> Interval:
    """Delta(H) and its interval over problems (point 1).

    Args:
        intact: metric of the intact model, a problem each.
        ablated: of the same problems with the heads switched off.
        grain: a problem's metric lies in [0, 1], a whole number of these: 1 where it is solved or
            not, 0.25 for shares of 4 samples. 0 for a metric with neither: its variance has no
            floor, and its interval no end.
        level: coverage.
    """
    differences = intact - ablated
    centre, variance = _over_problems(differences, grain)
    half = student_quantile(0.5 + level / 2, len(differences) - 1) * math.sqrt(variance)
    return _interval(float(differences.mean()), centre, half, grain > 0)


def random_effect(
    intact: Float[np.ndarray, " problems"],
    random: Float[np.ndarray, "draws problems"],
    *,
    grain: float,
    level: float = LEVEL,
) -> Interval:
    """Mean over draws of Delta(R_d); the interval holds problems and draws (points 2, 4)."""
    return _crossed(intact - random, grain, level)


def contrast(
    ablated: Float[np.ndarray, " problems"],
    random: Float[np.ndarray, "draws problems"],
    *,
    grain: float,
    level: float = LEVEL,
) -> Contrast:
    """The set against its matched random heads (points 3 to 5).

    Args:
        ablated: y_i.
        random: z_di; at least two draws.
        grain: as for `effect`; the sign-flip test is exact with it, else of 9999 random flips.
        level: coverage of the interval.
    """
    differences = random - ablated
    flipped = sign_flip_p(differences.mean(axis=0), grain / len(random))
    return Contrast(
        interval=_crossed(differences, grain, level),
        p_value=max(flipped, _one_more_draw_p(differences.mean(axis=1))),
    )


def sign_flip_p(differences: Float[np.ndarray, " problems"], unit: float = 0.0) -> float:
    """Two-sided P(|sum of +-|d_i|| >= |sum of d_i|); 1 where the sum is 0.

    Args:
        differences: d_i.
        unit: the differences are whole numbers of these; 0 takes random flips.
    """
    total = abs(float(differences.sum()))
    if unit > 0:
        whole = np.rint(differences / unit).astype(np.int64)
        if np.abs(whole).sum() <= _MOST_EXACT:
            cut = abs(int(whole.sum()))
            return min(1.0, 2 * float(tails(np.abs(whole)[None], cut)[0, cut])) if cut else 1.0
    rng = np.random.default_rng([_SEED, len(differences)])
    signs = rng.choice([-1.0, 1.0], (_RANDOM_FLIPS, len(differences)))
    reached = np.abs(signs @ differences) >= total - 1e-12
    return float((reached.sum() + 1) / (_RANDOM_FLIPS + 1))


def _crossed(
    differences: Float[np.ndarray, "draws problems"], grain: float, level: float
) -> Interval:
    """Interval of the mean over draws and problems (point 4)."""
    draws, problems = differences.shape
    by_problem, by_draw = differences.mean(axis=0), differences.mean(axis=1)
    centre, of_problems = _over_problems(by_problem, grain)
    of_draws = float(by_draw.var(ddof=1)) / draws
    variance = of_problems + of_draws
    if variance == 0:  # an unbounded metric on which nothing differs
        return _interval(centre, centre, 0.0, False)
    below = of_problems**2 / (problems - 1) + of_draws**2 / (draws - 1)
    degrees = max(1, math.floor(variance**2 / below + 1e-9))
    half = student_quantile(0.5 + level / 2, degrees) * math.sqrt(variance)
    return _interval(float(by_problem.mean()), centre, half, grain > 0)


def _one_more_draw_p(by_draw: Float[np.ndarray, " draws"]) -> float:
    """Two-sided p of a set's difference to each draw, if it is one more of them (point 5)."""
    draws = len(by_draw)
    value, error = abs(float(by_draw.mean())), float(by_draw.std(ddof=1)) * math.sqrt(1 + 1 / draws)
    if error < 1e-12:
        return float(value < 1e-12)
    return 2 * (1 - student_below(value / error, draws - 1))


def _over_problems(
    differences: Float[np.ndarray, " problems"], grain: float
) -> tuple[float, float]:
    """Centre of the interval and the variance of the mean (point 1)."""
    problems, more = len(differences), len(differences) + 2
    if grain == 1:
        centre = float(differences.sum()) / more
        return centre, ((float(np.square(differences).sum()) + 1) / more - centre**2) / more
    variance = float(differences.var(ddof=1)) / problems
    return float(differences.mean()), max(variance, 1 / more**2) if grain else variance


def _interval(value: float, centre: float, half: float, bounded: bool) -> Interval:
    low, high = centre - half, centre + half
    if bounded:
        low, high = max(low, -1.0), min(high, 1.0)
    return Interval(value=value, low=low, high=high)
