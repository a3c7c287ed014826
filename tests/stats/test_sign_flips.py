"""Sign-flip tests against full enumeration, a hand-worked case, and simulated errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sparks.stats.sign_flips import _by_convolution, changed, tails


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


def plainly(differences: np.ndarray, candidates: np.ndarray, alpha: float) -> np.ndarray:
    """The procedure of the module's text over all heads, with nothing left out."""
    sums = differences.sum(axis=1)
    highest = int(sums[candidates].max(initial=0))
    chance = tails(np.abs(differences), max(highest, 0))
    for first in range(1, highest + 1):
        odds = (chance[:, first] / (1 - chance[:, first])).sum()
        if odds > alpha * len(differences):
            continue
        for cut in range(first, highest + 1):
            false = (chance[:, cut] / (1 - chance[:, first])).sum()
            if false <= alpha * (candidates & (sums >= cut)).sum():
                return candidates & (sums >= cut)
        break
    return np.zeros(len(differences), dtype=bool)


def test_heads_that_are_not_worked_out_change_no_answer():
    rng, named = np.random.default_rng(5), 0
    for _ in range(60):
        heads, probes = 400, 14
        differences = rng.integers(-3, 4, (heads, probes)) * (rng.random((heads, 1)) < 0.4)
        rise = rng.choice(heads, int(rng.integers(0, 12)), replace=False)
        differences[rise] = rng.integers(0, 10, (len(rise), probes))
        candidates = rng.random(heads) < 0.1
        candidates[rise] = True
        alpha = float(rng.choice([5e-4, 0.01, 0.05]))
        found = changed(differences, candidates, alpha)
        np.testing.assert_array_equal(found, plainly(differences, candidates, alpha))
        named += int(found.any())
    assert 20 < named < 58  # both kinds of answer were asked for


def rising(heads: int, probes: int, *, changed_heads: int, size: int = 9) -> np.ndarray:
    """The first heads rise in every probe, the others stay."""
    out = np.zeros((heads, probes), dtype=np.int64)
    out[:changed_heads] = size
    return out


def test_a_change_needs_enough_probes():
    """One head of one: V = 2^-probes / (1 - F(c0)), so alpha = 1/1000 needs ten probes."""
    for probes, expected in ((9, False), (10, True)):
        differences = rising(1, probes, changed_heads=1)
        assert changed(differences, np.array([True]), 1 / 1000).tolist() == [expected]


def test_heads_that_did_not_move_cost_nothing():
    """A head with no difference cannot reach any cut: 5000 of them change no answer."""
    few = changed(rising(1, 10, changed_heads=1), np.array([True]), 0.002)
    many = changed(rising(5001, 10, changed_heads=1), np.ones(5001, bool), 0.002)
    assert few.tolist() == many[:1].tolist() == [True]
    assert not many[1:].any()


def test_only_candidates_are_named_but_all_heads_count_as_tests():
    rng = np.random.default_rng(0)
    noise = rng.choice([-9, 9], (400, 12))
    differences = np.concatenate([rising(1, 12, changed_heads=1), noise])
    candidates = np.zeros(401, dtype=bool)
    candidates[0] = True
    alone = changed(differences[:1], candidates[:1], 0.001)
    among = changed(differences, candidates, 0.001)
    assert alone.tolist() == [True]
    assert not among.any()  # 401 heads could all reach twelve of twelve by luck


def test_a_fall_is_no_rise():
    assert not changed(-rising(3, 16, changed_heads=3), np.ones(3, bool), 0.05).any()


def test_no_candidates_no_changes():
    assert not changed(rising(3, 16, changed_heads=3), np.zeros(3, bool), 0.05).any()


@pytest.mark.parametrize("dependent", [False, True], ids=["independent", "dependent"])
def test_false_discoveries_stay_below_alpha(dependent):
    """Of 60 heads 10 rise; the others differ by luck, alone or all together."""
    rng = np.random.default_rng(5)
    shares, missed = [], []
    for _ in range(300):
        luck = rng.choice([-6, -3, 0, 0, 3, 6], (50, 14))
        if dependent:
            luck = np.abs(luck) * rng.choice([-1, 1], 14)
        real = rng.choice([0, 6, 9], (10, 14), p=[0.1, 0.3, 0.6])
        named = changed(np.concatenate([real, luck]), np.ones(60, bool), 0.05)
        shares.append(named[10:].sum() / max(1, named.sum()))
        missed.append(1 - named[:10].mean())
    assert np.mean(shares) <= 0.05
    assert np.mean(missed) < 0.01
