"""How far circuits move between checkpoints, and how alike they are: edges as well as heads.

Fine-tuning can change the edges of a circuit while its nodes stay (Wang et al., ICML 2025), and
circuits of single inputs agree less than they seem to (https://arxiv.org/abs/2510.00845). A circuit
is a set of kept edges, and the set of heads in it. J(A, B) = |A and B| / |A or B| (Jaccard).

1. Turnover, from the checkpoint before and from the first: mean over probes of 1 - J of the probe's
   circuit then and now. The same probes are measured each time, so that this is not their noise.
2. Stability at a checkpoint: mean of J over all pairs of probes. 1 means that every probe finds the
   same circuit. Of more than 64 probes those pairs count whose two are in one of the random blocks
   of at most 64 that all are dealt into: the cost grows with the probes, not with their square.
3. Intervals: 95 % percentile bootstrap over probes, with the same draws at every checkpoint. For
   stability the pairs of a draw count, without those of a probe with itself, which always agree.

Where both circuits are empty, J does not exist: such probes and pairs are left out. NaN stands
where none remains, and for an interval of fewer than two probes, or fewer than three for stability.

A checkpoint's numbers need it, the one before and the first, never a later one: `TurnoverMeter`
takes snapshots as they come.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from sparks.attribution.snapshot import Snapshot
from sparks.ground.errors import SparksError
from sparks.stats.intervals import NO_INTERVAL, Interval, resampled_counts
from sparks.stats.trends import middle_of

MOST_TOGETHER = 64
"""Probes of which all pairs are looked at for stability."""
_COLUMNS_AT_ONCE = 1 << 15
_SEED = 2509_25758


@dataclass(frozen=True, kw_only=True)
class Turnover:
    """Of one checkpoint; every number with its 95 % interval over probes."""

    step: int
    edges_from_previous: Interval = NO_INTERVAL
    """Mean Jaccard distance of the probes' kept edges; NaN at the first checkpoint."""
    edges_from_first: Interval = NO_INTERVAL
    heads_from_previous: Interval = NO_INTERVAL
    heads_from_first: Interval = NO_INTERVAL
    edges_stability: Interval
    """Mean Jaccard similarity of the kept edges of two probes."""
    heads_stability: Interval


@dataclass(frozen=True, kw_only=True, eq=False)
class _Circuits:
    """The chosen probes' circuits at one checkpoint, as sorted numbers, each once."""

    step: int
    edges: Int[np.ndarray, " edge_entries"]
    """place of the probe x kinds of edges + edge; heads likewise."""
    heads: Int[np.ndarray, " head_entries"]


class TurnoverMeter:
    """Takes the snapshots of a run one after the other.

    Args:
        chosen: indices of the probes that count; None for all.
    """

    def __init__(self, chosen: Int[np.ndarray, " chosen"] | None = None) -> None:
        self._chosen = chosen
        self._first: _Circuits | None = None
        self._previous: _Circuits | None = None

    def add(self, snapshot: Snapshot) -> Turnover:
        """The numbers of the next checkpoint.

        Raises:
            SparksError: the snapshot is not later than the one before, or no probe counts.
        """
        if self._previous is not None and snapshot.step <= self._previous.step:
            raise SparksError(
                f"snapshots must come in order of step, got step {snapshot.step} after "
                f"{self._previous.step}: sort them"
            )
        chosen = np.arange(snapshot.num_probes) if self._chosen is None else self._chosen
        if not len(chosen):
            raise SparksError("turnover needs at least one probe, got none: choose some")
        edge_kinds, head_kinds = _num_codes(snapshot)
        now = _Circuits(
            step=snapshot.step,
            edges=_edge_entries(snapshot, chosen),
            heads=_head_entries(snapshot, chosen),
        )
        previous, self._previous = self._previous, now
        self._first = self._first or now
        probes = len(chosen)
        moved = {}
        if previous is not None:
            for name, then in (("previous", previous), ("first", self._first)):
                moved["edges_from_" + name] = _moved(then.edges, now.edges, edge_kinds, probes)
                moved["heads_from_" + name] = _moved(then.heads, now.heads, head_kinds, probes)
        return Turnover(
            step=snapshot.step,
            edges_stability=_stability(now.edges, edge_kinds, probes),
            heads_stability=_stability(now.heads, head_kinds, probes),
            **moved,
        )


def turnover_frame(rows: Iterable[Turnover]) -> pd.DataFrame:
    """A row a checkpoint: step, and of every number three columns: NAME, NAME_low, NAME_high."""
    found = []
    for row in rows:
        cells: dict[str, float] = {"step": row.step}
        for item in fields(row)[1:]:
            cells |= getattr(row, item.name).cells(item.name)
        found.append(cells)
    return pd.DataFrame(found)


# -- sets as sorted numbers ------------------------------------------------------------------------


def _num_codes(snapshot: Snapshot) -> tuple[int, int]:
    graph = snapshot.graph
    return graph.num_sources * graph.num_destinations, graph.num_layers * graph.num_heads


def _edge_entries(
    snapshot: Snapshot, chosen: Int[np.ndarray, " chosen"]
) -> Int[np.ndarray, " entries"]:
    kinds, _ = _num_codes(snapshot)
    source, destination = (
        edges.astype(np.int64) for edges in (snapshot.edge_source, snapshot.edge_destination)
    )
    codes = source * snapshot.graph.num_destinations + destination
    offsets = snapshot.edge_offsets
    parts = [
        place * kinds + codes[offsets[probe] : offsets[probe + 1]]
        for place, probe in enumerate(chosen.tolist())
    ]
    entries = np.sort(np.concatenate(parts, dtype=np.int64))  # 10 times as fast as np.unique
    return entries[np.diff(entries, prepend=-1) > 0]


def _head_entries(
    snapshot: Snapshot, chosen: Int[np.ndarray, " chosen"]
) -> Int[np.ndarray, " entries"]:
    held: Bool[np.ndarray, "chosen heads"] = snapshot.active[chosen].reshape(len(chosen), -1)
    return np.flatnonzero(held)


def _starts(
    entries: Int[np.ndarray, " entries"], kinds: int, probes: int
) -> Int[np.ndarray, " chosen_plus_one"]:
    """Where the entries of each probe begin, and where all end."""
    return np.searchsorted(entries, kinds * np.arange(probes + 1))


# -- numbers ---------------------------------------------------------------------------------------


def _moved(
    then: Int[np.ndarray, " then"], now: Int[np.ndarray, " now"], kinds: int, probes: int
) -> Interval:
    """Mean over probes of the Jaccard distance."""
    both = np.sort(np.concatenate([then, now]), kind="stable")  # merges two sorted runs
    twice = both[1:][both[1:] == both[:-1]]
    shared, before, after = (
        np.diff(_starts(entries, kinds, probes)).astype(np.float64)
        for entries in (twice, then, now)
    )
    union = before + after - shared
    known = union > 0
    distance = 1 - shared[known] / union[known]
    if not len(distance):
        return NO_INTERVAL
    drawn = resampled_counts(len(distance)) @ distance / len(distance)
    return _interval(float(distance.mean()), drawn, len(distance) > 1)


def _stability(entries: Int[np.ndarray, " entries"], kinds: int, probes: int) -> Interval:
    """Mean over pairs of probes of the Jaccard similarity."""
    starts = _starts(entries, kinds, probes)
    counts = resampled_counts(probes).astype(np.float64)
    sums, weights = np.zeros(len(counts)), np.zeros(len(counts))
    total, num_pairs = 0.0, 0
    for block in _blocks(probes):
        shared = _shared([entries[starts[i] : starts[i + 1]] % kinds for i in block])
        sizes = np.diag(shared)
        union = sizes[:, None] + sizes - shared
        pairs = (union > 0) & ~np.eye(len(block), dtype=bool)
        similarity = np.divide(shared, union, out=np.zeros_like(shared), where=pairs)
        drawn = counts[:, block]
        sums += ((drawn @ similarity) * drawn).sum(axis=1)
        weights += ((drawn @ pairs) * drawn).sum(axis=1)
        total, num_pairs = total + float(similarity.sum()), num_pairs + int(pairs.sum())
    if not num_pairs:
        return NO_INTERVAL
    means = np.divide(sums, weights, out=np.full(len(sums), np.nan), where=weights > 0)
    return _interval(total / num_pairs, means, probes > 2)


@cache
def _blocks(probes: int) -> list[Int[np.ndarray, " block"]]:
    """Probes in as few blocks of even size as there must be: all in one, or drawn at random."""
    order = np.arange(probes)
    if probes > MOST_TOGETHER:
        order = np.random.default_rng([_SEED, probes]).permutation(probes)
    return np.array_split(order, math.ceil(probes / MOST_TOGETHER))


def _shared(codes: Sequence[Int[np.ndarray, " kept"]]) -> Float[np.ndarray, "block block"]:
    """How many codes each two probes share: a matrix product, some columns at a time.

    Args:
        codes: of each probe, no code twice.
    """
    probes = len(codes)
    keys = np.sort(np.concatenate([kept * probes + i for i, kept in enumerate(codes)]))
    code, probe = keys // probes, keys % probes
    column = np.cumsum(np.diff(code, prepend=code[:1]) > 0)
    out = np.zeros((probes, probes))
    for start in range(0, int(column[-1:].sum()) + 1, _COLUMNS_AT_ONCE):
        inside = slice(*np.searchsorted(column, [start, start + _COLUMNS_AT_ONCE]))
        width = int(column[inside].max(initial=start)) + 1 - start
        held = np.zeros((probes, width), dtype=np.float32)
        held[probe[inside], column[inside] - start] = 1
        out += held @ held.T
    return out


def _interval(value: float, drawn: Float[np.ndarray, " resamples"], enough: bool) -> Interval:
    low, high = middle_of(drawn) if enough else (math.nan, math.nan)
    return Interval(value=value, low=low, high=high)
