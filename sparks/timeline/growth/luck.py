"""What luck gives: sign flips, the z of a head, and the boundaries above which heads are named.

Points 3 to 6 of `timeline.growth.rule`; symbols are its own.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from sparks.ground.errors import SparksError
from sparks.timeline.growth.settings import GrowthConfig

SHARE_FLOOR = 1e-3
"""Shares below this part of an even one count as this, so that all have a logarithm."""
_SEED = 2509_25758
_GRID = 1.15
"""Ratio of neighbouring R for which boundaries are kept."""
_LEAST_VARIANCE = 1e-4
"""Of values whose mean square is 1: z stays finite where all are alike."""
_SKEW_PROBES = 24
"""6 / 0.25: variance of the skewness of a sample times n, and variance of that of real heads."""
_LOWEST = 1.9
"""No boundary is lower: z that luck alone gives a head, in either direction, 6 times in 100."""


class Luck:
    """How many heads luck has taken above each boundary, and the boundaries of the next checkpoint.

    A cell is a head under a flip.
    """

    def __init__(self, flips: int, heads: int, config: GrowthConfig) -> None:
        steps = np.arange(math.ceil(math.log(heads, _GRID)) + 1)
        self.numbers = np.unique(np.minimum(np.ceil(_GRID**steps).astype(np.int64), heads))
        """R: heads named; boundaries are kept for these."""
        self.named = 0
        """Index in `numbers` of the R that is reached; it never falls."""
        self._config, self._flips, self._checkpoints = config, flips, 0
        self._highest = _LOWEST
        nowhere = len(self.numbers)
        self._lowest = np.full(flips * heads, nowhere, dtype=np.uint8)
        """Lowest index in `numbers` whose boundary the cell has been above."""
        self._found = np.full(heads, nowhere, dtype=np.uint8)
        """The same of the heads as measured."""

    def next(
        self, luck: Float32[np.ndarray, "flips heads"], found: Float[np.ndarray, " heads"]
    ) -> Float[np.ndarray, " levels"]:
        """Boundaries of one more checkpoint, an R each, falling with R; `named` follows.

        Args:
            luck: largest z of each cell.
            found: largest z of each head as measured.
        """
        self._checkpoints += 1
        self._highest = max(self._highest, float(luck.max()))
        share = self._config.fdr * self._config.spent(self._checkpoints)
        places = np.flatnonzero(luck > _LOWEST)
        sizes = luck.ravel()[places]
        order = np.argsort(-sizes)
        places, sizes = places[order], sizes[order]
        before = self._lowest[places]
        spent = np.cumsum(np.bincount(self._lowest, minlength=len(self.numbers) + 1))
        boundaries = np.full(len(self.numbers), _LOWEST)
        for index, number in enumerate(self.numbers):
            left = math.floor(share * number * self._flips) - int(spent[index])
            fresh = np.flatnonzero(before > index)
            if left < 1:  # no flip to spend: only what is above all that luck has ever given
                boundaries[index] = self._highest
            elif left < len(fresh):  # strictly above this one are at most as many as are left
                boundaries[index] = sizes[fresh[left]]
        boundaries = np.maximum.accumulate(boundaries[::-1])[::-1]
        self._lowest[places] = np.minimum(before, _reached(boundaries, sizes))
        self._found = np.minimum(self._found, _reached(boundaries, found))
        counts = np.searchsorted(np.sort(self._found), np.arange(len(self.numbers)), side="right")
        self.named = max(self.named, *np.flatnonzero(counts >= self.numbers)[-1:], 0)
        return boundaries


def _reached(
    boundaries: Float[np.ndarray, " levels"], z: Float[np.ndarray, " some"]
) -> UInt8[np.ndarray, " some"]:
    """Lowest index whose boundary is below z; their number where none is."""
    return (len(boundaries) - np.searchsorted(boundaries[::-1], z)).astype(np.uint8)


def log_shares(
    totals: Float[np.ndarray, "probes heads"],
) -> Float[np.ndarray, "probes heads"]:
    """Logarithm of each head's share of its probe's score mass, in even shares (0 is 1 / H).

    NaN for a probe without any mass, or with one that is not finite: it says nothing.

    Raises:
        SparksError: a mass below 0.
    """
    masses = np.asarray(totals, dtype=np.float64)
    if (masses < 0).any():
        raise SparksError(f"a head's score mass must be at least 0, got {masses.min()}")
    whole = masses.sum(axis=1, keepdims=True)
    known = np.isfinite(whole) & (whole > 0)
    even = masses * masses.shape[1] / np.where(known, whole, 1)
    return np.where(known, np.log(np.maximum(even, SHARE_FLOOR)), np.nan)


def sign_flips(probes: int, most: int) -> Float32[np.ndarray, "flips probes"]:
    """One of each pair of opposite flips, all 2^probes / 2, where these are at most `most`.

    Else `most`, drawn at random, the same at every call.
    """
    if 2**probes <= 2 * most:
        rest = itertools.product((1, -1), repeat=probes - 1)
        return np.array([(1, *signs) for signs in rest], dtype=np.float32)
    drawn = np.random.default_rng([_SEED, probes, most]).integers(0, 2, (most, probes))
    return (2 * drawn - 1).astype(np.float32)


def unit_values(
    values: Float[np.ndarray, "probes heads"],
) -> tuple[Float[np.ndarray, "probes heads"], Int[np.ndarray, " heads"]]:
    """Values with a mean square of 1 over the probes that say something; and how many these are.

    0 where a probe says nothing, and where all values are 0.
    """
    known = np.isfinite(values)
    count = np.maximum(known.sum(axis=0), 1)
    values = np.where(known, values, 0)
    size = np.sqrt(np.square(values).sum(axis=0) / count)
    return values / np.where(size > 0, size, 1), count


def z_of(
    sums: Float[np.ndarray, "... heads"],
    cubes: Float[np.ndarray, "... heads"],
    count: Int[np.ndarray, " heads"],
) -> Float[np.ndarray, "... heads"]:
    """z of point 4, from sum u and sum u^3 of values u whose mean square is 1."""
    count = count.astype(sums.dtype)
    mean = sums / count
    square = mean * mean
    spread = np.sqrt(np.maximum(1 - square, _LEAST_VARIANCE))
    skew = (cubes / count + mean * (2 * square - 3)) / (spread * spread * spread)
    skew *= count / (count + _SKEW_PROBES)
    mean /= spread
    bent = skew * mean / 3
    root = np.sqrt(count)
    return root * mean * (1 + bent + bent * bent / 3) + skew / (6 * root)


def mean_error(
    values: Float[np.ndarray, "probes heads"],
) -> tuple[Float[np.ndarray, " heads"], Float[np.ndarray, " heads"]]:
    """Mean over the probes that say something, and its standard error; infinite with fewer than 2.

    The mean of none is 0.
    """
    known = values[np.isfinite(values).all(axis=1)]
    mean = known.sum(axis=0) / max(1, len(known))
    if len(known) < 2:
        return mean, np.full_like(mean, np.inf)
    return mean, known.std(axis=0, ddof=1) / math.sqrt(len(known))
