"""Exact paired sign-flip tests: what luck alone gives a sum of differences.

If nothing changed but luck, each difference d_i is as likely to be -d_i (Fisher 1935, ch. III). So,
given whole |d_i|, F(c) = P(sum of +-|d_i| >= c) is known exactly: a convolution, and for many
differences the same by its Fourier transform; no random draws.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

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
