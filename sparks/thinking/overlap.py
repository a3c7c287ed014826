"""How much the circuits of two modes overlap, with intervals and a null. No torch, no model.

Of n probes, measured under both modes:

1. Overlap is Jaccard = shared / union, of three kinds of sets: what a single probe's circuit holds
   under each mode, the mean over probes (`each`; its interval is a percentile bootstrap over
   probes); what more than half of the circuits hold (`majority`; heads over the grid of circuit
   settings, edges over the paper's circuits); what any of them holds (`any`, the paper's). The
   last two have no interval: resamples hold fewer different probes, and so have other sets.
2. Null, by halves: the probes are split at random into A and B. `one mode`: Jaccard of A and B
   under the same mode (mean of on and off), what other probes alone do; `each` compares the probes
   of A and B two by two. `two modes`: A under one mode against B under the other (mean of both
   ways). Both compare n/2 probes with as many others, so that they differ by the mode alone;
   neither is comparable with the Jaccard of 1, whose modes share all n probes.
3. Null, by exchange: each probe's modes change places with probability one half. If the mode plays
   no part, this changes nothing (Fisher 1935, ch. III); so the heads that a rule then calls
   exclusive are those that it calls by luck.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from sparks.attribution.snapshot import Snapshot
from sparks.stats.intervals import mean_interval, percentiles

DRAWS = 200
"""Of each null."""
_CHUNK = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class Sets:
    """What the circuits of both modes hold, probe by probe."""

    what: str
    """`heads` or `edges`."""
    counted: str
    """`each`, `majority` or `any`."""
    on: Num[np.ndarray, "probes items"]
    off: Num[np.ndarray, "probes items"]
    cut: float
    """An item is in a set where its mean over probes is above this."""

    def held(
        self, values: Num[np.ndarray, "probes items"], weights: Float[np.ndarray, "draws probes"]
    ) -> Bool[np.ndarray, "draws items"]:
        """The set of each draw of probes."""
        means = weights @ values.astype(np.float32) / weights.sum(axis=1, keepdims=True)
        return means > self.cut + 1e-6


def overlap(sets: Sets, *, draws: int = DRAWS, seed: int = 0) -> dict[str, object]:
    """A row of `ThinkComparison.overlap`, which says what its columns are."""
    each = sets.counted == "each"
    weights = np.eye(len(sets.on)) if each else np.ones((1, len(sets.on)))
    on, off = (sets.held(values, weights) for values in (sets.on, sets.off))
    shares = jaccard(on, off)
    known = shares[np.isfinite(shares)]
    row: dict[str, object] = {"what": sets.what, "counted": sets.counted}
    for name, held in (("on", on), ("off", off), ("shared", on & off), ("union", on | off)):
        row[name] = float(held.sum(axis=1).mean())
    row["jaccard"] = float(known.mean()) if len(known) else math.nan
    low, high = mean_interval(known) if each and len(known) > 1 else (math.nan, math.nan)
    row["low"], row["high"] = float(low), float(high)
    one, two = (_pairs if each else _halves)(sets, draws, seed)
    whole = np.isfinite(one) & np.isfinite(two)
    one, two = one[whole], two[whole]
    for name, values in (("one_mode", one), ("two_modes", two)):
        row[name] = float(np.median(values)) if len(values) else math.nan
        row[f"{name}_low"], row[f"{name}_high"] = _ends(values)
    row["two_modes_lower"] = float((two < one).mean()) if len(one) else math.nan
    return row


def jaccard(
    one: Bool[np.ndarray, "draws items"], other: Bool[np.ndarray, "draws items"]
) -> Float[np.ndarray, " draws"]:
    """Shared / union of each pair of sets; NaN where both are empty."""
    shared = (one & other).sum(axis=1).astype(np.float64)
    union = (one | other).sum(axis=1)
    return np.divide(shared, union, out=np.full(len(union), np.nan), where=union > 0)


def exchanged(
    count: Callable[[Bool[np.ndarray, " probes"]], int],
    probes: int,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Median and middle 95 % of a count, where each probe's modes change places by luck.

    Args:
        count: of a mask of the probes whose modes are exchanged.
        probes: how many.
        draws: masks to draw.
        seed: of the draws.
    """
    rng = np.random.default_rng([seed, probes, draws])
    found = np.array([count(rng.random(probes) < 0.5) for _ in range(draws)], dtype=np.float64)
    low, high = _ends(found)
    return float(np.median(found)), low, high


def edge_sets(
    on: Snapshot, off: Snapshot, chosen: tuple[list[int], list[int]]
) -> tuple[Bool[np.ndarray, "probes edges"], Bool[np.ndarray, "probes edges"]]:
    """Which edges each probe's circuit holds, over the edges that any circuit of either holds.

    Args:
        on: one mode.
        off: the other.
        chosen: probes of each to look at, by index.
    """
    codes = [list(_edges(snap, index)) for snap, index in zip((on, off), chosen, strict=True)]
    known = np.unique(np.concatenate([held for mode in codes for held in mode]))
    first, second = (
        np.stack([np.isin(known, held, assume_unique=True) for held in mode]) for mode in codes
    )
    return first, second


def _edges(snapshot: Snapshot, chosen: list[int]) -> Iterator[np.ndarray]:
    width = snapshot.graph.num_destinations
    for probe in chosen:
        start, end = snapshot.edge_offsets[probe : probe + 2]
        source = snapshot.edge_source[start:end].astype(np.int64)
        yield source * width + snapshot.edge_destination[start:end]


def _splits(probes: int, draws: int, seed: int) -> Int[np.ndarray, "draws probes"]:
    """Random orders of the probes: their first half is A, as many others are B."""
    if probes < 4:
        return np.zeros((0, probes), dtype=np.int64)
    return np.argsort(np.random.default_rng([seed, probes, draws]).random((draws, probes)), axis=1)


def _halves(
    sets: Sets, draws: int, seed: int
) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
    """Jaccard of what disjoint halves hold, under one mode and under two."""
    probes = len(sets.on)
    half, one, two = probes // 2, [np.zeros(0)], [np.zeros(0)]
    order = _splits(probes, draws, seed)
    for part in np.array_split(order, max(1, draws // _CHUNK)):
        first, second = (np.zeros(part.shape, dtype=np.float32) for _ in range(2))
        np.put_along_axis(first, part[:, :half], 1, axis=1)
        np.put_along_axis(second, part[:, half : 2 * half], 1, axis=1)
        if not len(part):
            continue
        on_a, on_b = (sets.held(sets.on, weights) for weights in (first, second))
        off_a, off_b = (sets.held(sets.off, weights) for weights in (first, second))
        one.append((jaccard(on_a, on_b) + jaccard(off_a, off_b)) / 2)
        two.append((jaccard(on_a, off_b) + jaccard(off_a, on_b)) / 2)
    return np.concatenate(one), np.concatenate(two)


def _pairs(
    sets: Sets, draws: int, seed: int
) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
    """Mean Jaccard of one probe of A with one of B, under one mode and under two."""
    probes = len(sets.on)
    half, order = probes // 2, _splits(probes, draws, seed)
    a, b = order[:, :half], order[:, half : 2 * half]
    on, off = (values > sets.cut for values in (sets.on, sets.off))
    same = (_between(on, on)[a, b] + _between(off, off)[a, b]) / 2
    mixed = (_between(on, off)[a, b] + _between(off, on)[a, b]) / 2
    return same.mean(axis=1), mixed.mean(axis=1)


def _between(
    one: Bool[np.ndarray, "probes items"], other: Bool[np.ndarray, "probes items"]
) -> Float[np.ndarray, "probes probes"]:
    """Jaccard of every probe of the one with every probe of the other."""
    first, second = one.astype(np.float32), other.astype(np.float32)
    shared = (first @ second.T).astype(np.float64)
    union = first.sum(axis=1)[:, None] + second.sum(axis=1)[None] - shared
    return np.divide(shared, union, out=np.full(union.shape, np.nan), where=union > 0)


def _ends(values: Float[np.ndarray, " draws"]) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = percentiles(known)
    return float(low), float(high)
