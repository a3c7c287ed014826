"""Sign-flip tests against full enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sparks.stats.sign_flips import _by_convolution, tails


@pytest.mark.parametrize("seed", range(12))
def test_tails_agree_with_full_enumeration(seed):
    rng = np.random.default_rng(seed)
    probes, unit = int(rng.integers(1, 9)), int(rng.integers(1, 4))
    sizes = rng.integers(0, 5, (6, probes)) * unit
    found = tails(sizes, 40)
    signs = np.array(list(itertools.product((1, -1), repeat=probes)))
    sums = signs @ sizes.T
    expected = np.stack([(sums >= cut).mean(axis=0) for cut in range(41)], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_many_probes_by_frequencies_agree_with_the_convolution(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 10, (7, 120)) * rng.integers(0, 2, (7, 120))
    sizes[0], sizes[1, 3:] = 0, 0
    for most in (30, 400, 2000):
        expected = _by_convolution(sizes, most)
        np.testing.assert_allclose(tails(sizes, most), expected, atol=1e-12)


def test_the_cost_of_many_probes_does_not_grow_with_their_square(monkeypatch):
    """Numbers that are transformed: 10 times the probes, at most 20 times as many."""
    lengths, work = [], np.fft.irfft
    monkeypatch.setattr(np.fft, "irfft", lambda *a, n, **k: lengths.append(n) or work(*a, n=n, **k))
    for probes in (100, 1000, 10_000):
        tails(np.ones((1, probes), dtype=np.int64), probes)
    assert len(lengths) == 3
    assert all(later <= 20 * earlier for earlier, later in itertools.pairwise(lengths))
