"""pass@k and success@k of sampled answers, with intervals over problems. No torch.

Of n samples of a problem, in order, c are right.

1. pass@k, unbiased (Chen et al. 2021, https://arxiv.org/abs/2107.03374, eq. 1): the mean over
   problems of 1 - C(n-c, k) / C(n, k), as a product of k ratios, so that nothing overflows.
   pass@1 is the mean of c / n.
2. success@k ("Thinking Sparks!", https://arxiv.org/abs/2509.25758): the share of problems that are
   solved within the first k samples.
3. Intervals, 95 %: Wilson's, over problems (`stats.intervals.proportion_interval`). A value of 0 or
   1 a problem counts as one draw; graded values (c / n) with an effective number of problems from
   their variance and with Student's t. It holds where all problems agree, where a bootstrap shrinks
   to a point. The problems stand for others like them: two evaluations of the SAME problems differ
   by less than two such intervals say, and want paired differences.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from sparks.ground.errors import SparksError
from sparks.stats.intervals import NO_INTERVAL, Interval, proportion_interval


def pass_values(
    right: Int[np.ndarray, " problems"], samples: int, k: int
) -> Float[np.ndarray, " problems"]:
    """1 - C(n-c, k) / C(n, k) of each problem.

    Args:
        right: c, right samples of each problem.
        samples: n.
        k: from 1 to n.

    Raises:
        SparksError: k is outside its range.
    """
    check_k(k, samples)
    # C(n-c, k) / C(n, k) = product over i < k of (n - c - i) / (n - i).
    drawn = np.arange(k)
    ratios = np.clip(samples - right[:, None] - drawn, 0, None) / (samples - drawn)
    return np.asarray(1 - ratios.prod(axis=1))


def pass_at(right: Int[np.ndarray, " problems"], samples: int, k: int) -> Interval:
    """pass@k with its interval.

    Raises:
        SparksError: k is not from 1 to `samples`.
    """
    return mean_with_interval(pass_values(right, samples, k), grades=1 if k == samples else samples)


def success_at(correct: Bool[np.ndarray, "problems samples"], k: int) -> Interval:
    """success@k with its interval.

    Raises:
        SparksError: k is not from 1 to the number of samples.
    """
    check_k(k, correct.shape[1])
    solved = np.asarray(correct[:, :k].any(axis=1), dtype=np.float64)
    return mean_with_interval(solved, grades=1)


def mean_with_interval(values: Float[np.ndarray, " problems"], *, grades: int) -> Interval:
    """Mean over problems of values in [0, 1], with Wilson's interval.

    Args:
        values: one a problem.
        grades: into how many steps a value can fall; 1 where it is 0 or 1.
    """
    if not len(values):
        return NO_INTERVAL
    low, high = proportion_interval(np.asarray(values[:, None] * grades), grades)
    return Interval(value=float(values.mean()), low=float(low[0]), high=float(high[0]))


def check_k(k: int, samples: int) -> None:
    """Refuse a k that the samples cannot tell.

    Raises:
        SparksError: it is not from 1 to `samples`.
    """
    if type(k) is not int or not 1 <= k <= samples:
        raise SparksError(
            f"k must be a whole number from 1 to the samples a problem ({samples}), got {k!r}: "
            f"sample more, or ask for a smaller k"
        )
