"""Which heads changed between two checkpoints: exact paired tests over probes, errors held.

For a head, d_i = level of probe i now - level of probe i at the checkpoint compared with, both
whole numbers (in how many settings of the grid the head is in the circuit). Statistic: D = sum d_i.

1. If nothing changed but luck, each d_i is as likely to be -d_i (Fisher 1935, ch. III). So, given
   the |d_i|, F(c) = P(sum of +-|d_i| >= c) is known exactly: a convolution, and for many probes the
   same by its Fourier transform; no random draws.
2. Heads differ in what they can reach: F_h(c) = 0 where sum |d_i| < c. False discoveries at cut c
   are at most V(c) = sum_h F_h(c) / (1 - F_h(c0)), and the cut is the lowest c >= c0 with
   V(c) <= alpha R(c), R(c) = heads found at c. c0 is the lowest cut at which
   sum_h F_h / (1 - F_h) <= alpha x heads. This is the step-up procedure for discrete tests of
   Doehler, Durand and Roquain (2018, https://arxiv.org/abs/1706.08250), on the scale of D. It
   holds the false discovery rate at alpha for independent heads; heads of one model are not
   independent, which `tests/bench/calibration.py` measures.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

MOST_CONVOLVED = 64
"""Probes whose differences are summed one after another."""
_NUMBERS_AT_ONCE = 1 << 22


def tails(sizes: Int[np.ndarray, "heads probes"], most: int) -> Float[np.ndarray, "heads cuts"]:
    """F_h(c) for c = 0 .. `most`.

    Args:
        sizes: |d_i|, at least 0.
        most: the highest cut of interest.
    """
    by_many = sizes.shape[1] > MOST_CONVOLVED
    return _by_frequencies(sizes, most) if by_many else _by_convolution(sizes, most)


def _by_convolution(
    sizes: Int[np.ndarray, "heads probes"], most: int
) -> Float[np.ndarray, "heads cuts"]:
    """One probe after another: its cost grows with the square of the probes."""
    kinds, kind = np.unique(np.sort(sizes, axis=1), axis=0, return_inverse=True)
    unit = max(1, int(np.gcd.reduce(kinds, axis=None)))
    kinds = kinds // unit
    total, largest = kinds.sum(axis=1), int(kinds.max(initial=0))
    reach = int(total.max(initial=0))
    # The sum is 2 S - total, S = the sum of those with a plus: of every S from 0 to reach.
    padded = np.zeros((len(kinds), largest + reach + 1))
    padded[:, largest] = 1.0
    places = np.arange(largest, largest + reach + 1)
    for size in kinds.T:
        shifted = np.take_along_axis(padded, places - size[:, None], axis=1)
        padded[:, largest:] = (padded[:, largest:] + shifted) / 2
    above = np.zeros((len(kinds), reach + 2))
    above[:, :-1] = np.cumsum(padded[:, largest:][:, ::-1], axis=1)[:, ::-1]
    cuts = -(-np.arange(most + 1) // unit)
    least = np.minimum(-(-(cuts + total[:, None]) // 2), reach + 1)
    return np.take_along_axis(above, least, axis=1)[kind.reshape(-1)]


def _by_frequencies(
    sizes: Int[np.ndarray, "heads probes"], most: int
) -> Float[np.ndarray, "heads cuts"]:
    """The inverse Fourier transform of prod cos(|d_i| t); good to 1e-12, whatever the size of F."""
    values, reach = np.unique(sizes), int(sizes.sum(axis=1).max(initial=0))
    length = 1 << (2 * reach + 1).bit_length()
    wave = np.cos(2 * np.pi / length * (np.outer(values, np.arange(length // 2 + 1)) % length))
    logs, is_negative = np.log(np.maximum(np.abs(wave), 1e-300)), (wave < 0).astype(np.float64)
    out = np.zeros((len(sizes), most + 1))
    kept, rows = min(most, reach) + 1, max(1, _NUMBERS_AT_ONCE // length)
    for start in range(0, len(sizes), rows):
        part = slice(start, start + rows)
        counts = np.stack([(sizes[part] == value).sum(axis=1) for value in values], axis=1)
        sign = 1 - 2 * (counts.astype(np.float64) @ is_negative % 2)
        chance = np.fft.irfft(sign * np.exp(counts @ logs), n=length, axis=1)[:, : reach + 1]
        out[part, :kept] = np.cumsum(chance.clip(0)[:, ::-1], axis=1)[:, ::-1][:, :kept]
    return out


def changed(
    differences: Int[np.ndarray, "heads probes"],
    candidates: Bool[np.ndarray, " heads"],
    alpha: float,
) -> Bool[np.ndarray, " heads"]:
    """Candidates whose level rose by more than luck.

    Args:
        differences: d_i, positive towards the change that is looked for.
        candidates: heads that may be named; all heads count as tests.
        alpha: false discovery rate.
    """
    sums = differences.sum(axis=1)
    found = np.zeros(len(differences), dtype=bool)
    highest = int(sums[candidates].max(initial=0))
    if highest < 1:
        return found
    named = _named(sums[candidates], highest)
    chance = _chances(np.abs(differences), highest, alpha * named)
    if chance is None:
        return found
    odds = np.divide(chance, 1 - chance, out=np.full_like(chance, np.inf), where=chance < 1)
    possible = np.flatnonzero(odds.sum(axis=0) <= alpha * len(differences))
    if not len(possible):
        return found
    cuts = np.arange(possible[0], highest + 1)
    false = (chance[:, cuts] / (1 - chance[:, cuts[:1]])).sum(axis=0)
    good = np.flatnonzero((false <= alpha * named[cuts]) & (named[cuts] > 0))
    return candidates & (sums >= cuts[good[0]]) if len(good) else found


def _named(sums: Int[np.ndarray, " candidates"], highest: int) -> Int[np.ndarray, " cuts"]:
    """Candidates whose sum reaches each cut, 0 .. `highest`."""
    return len(sums) - np.searchsorted(np.sort(sums), np.arange(highest + 1))


def _chances(
    sizes: Int[np.ndarray, "heads probes"], highest: int, accepted: Float[np.ndarray, " cuts"]
) -> Float[np.ndarray, "moving cuts"] | None:
    """F_h of the heads that moved, in their order; None where no cut can name any head.

    V(c) is at least the sum of F_h(c) over some of the heads. Those that reach farthest come first:
    where they alone have more than is `accepted` at every cut, as nearly always, the others are
    not worked out.
    """
    reach = sizes.sum(axis=1)
    moving = np.flatnonzero(reach)
    chance = np.zeros((len(moving), highest + 1))
    least = np.zeros(highest + 1)
    for rows in _parts(np.argsort(-reach[moving], kind="stable")):
        chance[rows] = tails(sizes[moving[rows]], highest)
        least += chance[rows].sum(axis=0)
        if (least[1:] > accepted[1:] * (1 + 1e-9)).all():
            return None
    chance[:, 0] = 1  # a cut of 0 names heads that did not move
    return chance


def _parts(order: Int[np.ndarray, " heads"]) -> Iterator[Int[np.ndarray, " some"]]:
    """The first few, then ever more."""
    start, size = 0, 32
    while start < len(order):
        yield order[start : start + size]
        start, size = start + size, 4 * size
