"""Which problems' shares of right samples changed by more than sampling luck. No torch.

A problem has c of n samples right before and d of n after.

1. Fisher's exact test, two-sided: of the t = c + d right ones among 2n samples, the number after is
   hypergeometric if nothing has changed; p = the chance of all splits that are no likelier than
   this one. With 4 samples the least p is 0.029 (none right, then all).
2. Of many problems, at most 5 % of those called changed are expected to be false. With nothing
   changed, problem i gives a p of at most t with chance F_i(t), the largest p <= t that its right
   samples can give. False ones at cut t are at most V(t) = sum_i F_i(t) / (1 - F_i(t0)), and the
   cut is the largest t <= t0 with V(t) <= 5 % x problems called at t; t0 is the largest with
   sum_i F_i / (1 - F_i) <= 5 % x problems: the step-up procedure for discrete tests of Doehler,
   Durand and Roquain (2018, https://arxiv.org/abs/1706.08250). Problems
   whose right samples cannot give a p of 5 % take no part.
3. Newly solved by luck alone: with nothing changed, the t right samples all fall after with chance
   C(2n - t, n) / C(2n, n); their sum over problems is what an unchanged model gives, of newly
   solved and of newly missed problems alike.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Int

RATE = 0.05
"""Share of false ones expected among the changes that are called sure."""


@cache
def fisher(before: int, after: int, samples: int) -> float:
    """Two-sided p of `before` and `after` right of `samples` each."""
    chances = _splits(before + after, samples)
    own = chances[after]
    return min(1.0, sum(chance for chance in chances.values() if chance <= own * (1 + 1e-9)))


@cache
def attainable(right: int, samples: int) -> tuple[float, ...]:
    """The p that `right` right samples of 2 x `samples` can give, in order; F(p) = p at each."""
    return tuple(
        sorted({fisher(right - after, after, samples) for after in _splits(right, samples)})
    )


def _splits(right: int, samples: int) -> dict[int, float]:
    """Chance of each number of right samples after, where nothing has changed."""
    whole = math.comb(2 * samples, samples)
    return {
        after: math.comb(right, after) * math.comb(2 * samples - right, samples - after) / whole
        for after in range(max(0, right - samples), min(right, samples) + 1)
    }


def p_values(
    before: Int[np.ndarray, " problems"], after: Int[np.ndarray, " problems"], samples: int
) -> Float[np.ndarray, " problems"]:
    """`fisher` of each problem."""
    pairs = zip(before.tolist(), after.tolist(), strict=True)
    return np.array([fisher(one, other, samples) for one, other in pairs], dtype=np.float64)


def beyond_luck(
    before: Int[np.ndarray, " problems"],
    after: Int[np.ndarray, " problems"],
    samples: int,
    *,
    rate: float = RATE,
) -> Bool[np.ndarray, " problems"]:
    """Problems whose share changed, by the rule of point 2."""
    found = p_values(before, after, samples)
    known = [np.array(attainable(int(right), samples)) for right in before + after]
    able = np.array([p[0] <= rate for p in known])
    sure = np.zeros(len(found), dtype=bool)
    if able.any():
        sure[able] = _called(found[able], [p for p in known if p[0] <= rate], rate)
    return sure


def _called(
    found: Float[np.ndarray, " problems"], known: list[np.ndarray], rate: float
) -> Bool[np.ndarray, " problems"]:
    """The step-up procedure of point 2; `known` has what each p could have been."""
    cuts = np.unique(np.concatenate([np.zeros(1), *known]))
    chance = np.stack([np.append(0.0, p)[np.searchsorted(p, cuts, "right")] for p in known])
    odds = np.divide(chance, 1 - chance, out=np.full_like(chance, np.inf), where=chance < 1)
    last = int(np.flatnonzero(odds.sum(axis=0) <= rate * len(found))[-1])  # 0 is always among them
    false = (chance[:, : last + 1] / (1 - chance[:, last : last + 1])).sum(axis=0)
    named = (found[:, None] <= cuts[: last + 1]).sum(axis=0)
    good = np.flatnonzero((false <= rate * named) & (named > 0))
    return found <= cuts[good[-1]] if len(good) else np.zeros(len(found), dtype=bool)


def by_luck(
    before: Int[np.ndarray, " problems"], after: Int[np.ndarray, " problems"], samples: int
) -> float:
    """Newly solved problems that an unchanged model is expected to give (point 3)."""
    whole = math.comb(2 * samples, samples)
    totals = (before + after).tolist()
    return sum(math.comb(2 * samples - t, samples) for t in totals if t) / whole
