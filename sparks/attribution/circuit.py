"""From the edge scores of one probe to its circuit: the kept edges, and the heads they run through.

"Thinking Sparks!" (https://arxiv.org/abs/2509.25758), section "Circuit":

1. Keep the n edges of largest |score| (n = `top_n`, or `top_share` of the edges that exist).
2. Drop those with |score| < tau (`threshold`, absolute or relative to the largest |score|).
3. Prune isolated nodes: a node with no kept edge in, or none out, goes with its edges, until
   nothing changes. `embed` needs no edge in, `logits` none out.

What we settle beyond the paper: of equal |score| the edge of lower index (row, then column) wins;
an edge of score 0 is never kept, whatever tau. Keys and values are the KV heads that the model
really has: an edge into one counts for every query head of its group, and goes when none of them
lives.

Beside it stands a grid of settings (`heads_of_grid`), from the same scores without extra passes.
The paper's n and tau are fixed, so that the size of its circuit follows the size of the model and
the scale of L: n is 15 % of GPT-2's edges, 7 % of SmolLM2-135M's, 2.7 % of Qwen2.5-1.5B's and
0.25 % of Qwen3-8B's; tau is 0.8 % of L where L is 13 nats and 4 % where it is 2.5. In the grid n is
a share of the edges that exist, tau a share of the probe's L, and a head is held by a share of the
grid: its *consensus* (after CIRCUS, https://arxiv.org/abs/2603.00523).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph

SHARES = (0.02, 0.05, 0.1)
"""Edges kept, of those that exist."""
THRESHOLDS = (0.003, 0.006, 0.012)
"""Lowest |score| of a kept edge, of the probe's L."""
GRID: tuple[tuple[float, float], ...] = tuple(itertools.product(SHARES, THRESHOLDS))
"""`(share of edges, tau / L)` of each setting."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Circuit:
    """The kept edges of one probe, strongest |score| first, and what they say about heads."""

    source: Int32[np.ndarray, " edges"]
    """Row in the score matrix."""
    destination: Int32[np.ndarray, " edges"]
    """Column in the score matrix."""
    score: Float32[np.ndarray, " edges"]
    """Signed."""
    heads: Bool[np.ndarray, "layers heads"]
    """The head is in the circuit: it has a kept edge in and a kept edge out."""
    importance: Float32[np.ndarray, "layers heads"]
    """Sum of |score| over the kept edges that leave the head (paper A.6, unnormalised)."""


def extract_circuit(
    scores: Float32[np.ndarray, "sources destinations"], graph: Graph, config: SnapshotConfig
) -> Circuit:
    """The circuit of one probe; it may be empty. `scores` is not changed.

    Args:
        scores: signed edge scores; cells without an edge are ignored.
        graph: names the rows and columns of `scores`.
        config: `top_n` or `top_share`, `threshold`, `threshold_mode`.

    Raises:
        SparksError: `scores` does not fit the graph, or the score of an edge is not finite.
    """
    expected = (graph.num_sources, graph.num_destinations)
    if np.shape(scores) != expected:
        raise SparksError(
            f"scores must have shape {expected} (sources, destinations) for this graph, "
            f"got {np.shape(scores)}"
        )
    signed = np.asarray(scores, dtype=np.float32)
    edges, _ = _ranked_edges(
        signed,
        graph,
        floor=config.threshold,
        limit=config.top_n if config.top_share is None else _count(config.top_share, graph),
        of_largest=config.threshold_mode == "relative",
    )
    source, destination = np.divmod(edges, graph.num_destinations)
    kept, heads = prune(source, destination, graph)
    source, destination = source[kept], destination[kept]
    score = signed[source, destination]
    leaving = np.bincount(source, weights=np.abs(score), minlength=graph.num_sources)
    return Circuit(
        source=source.astype(np.int32),
        destination=destination.astype(np.int32),
        score=score,
        heads=heads,
        importance=leaving[graph.head_sources].astype(np.float32),
    )


def heads_of_grid(
    scores: Float32[np.ndarray, "sources destinations"],
    graph: Graph,
    loss: float,
    grid: tuple[tuple[float, float], ...] = GRID,
) -> Bool[np.ndarray, "settings layers heads"]:
    """Whether the head is in the circuit, under each setting.

    Args:
        scores: signed edge scores.
        graph: names the rows and columns of `scores`.
        loss: L of the probe at its corrupted end, nats.
        grid: `(share of edges, tau / L)` of each setting.

    Raises:
        SparksError: the score of an edge is not finite.
    """
    most = max(share for share, _ in grid)
    edges, strength = _ranked_edges(
        scores, graph, floor=min(tau for _, tau in grid) * loss, limit=_count(most, graph)
    )
    held = np.zeros((len(grid), graph.num_layers, graph.num_heads), dtype=bool)
    for index, (share, tau) in enumerate(grid):
        kept = np.searchsorted(-strength, -np.float32(tau * loss), side="right")
        chosen = edges[: min(int(kept), _count(share, graph))]
        held[index] = prune(*np.divmod(chosen, graph.num_destinations), graph)[1]
    return held


def _ranked_edges(
    scores: Float32[np.ndarray, "sources destinations"],
    graph: Graph,
    *,
    floor: float,
    limit: int,
    of_largest: bool = False,
) -> tuple[Int64[np.ndarray, " edges"], Float32[np.ndarray, " edges"]]:
    """Flat indices and |score| of edges that reach `floor`, strongest first, then by index.

    Args:
        scores: signed edge scores.
        graph: names the rows and columns of `scores`.
        floor: the lowest |score|; 0 lets every edge through whose score is not 0.
        limit: at most this many edges.
        of_largest: `floor` is a share of the largest |score|.

    Raises:
        SparksError: the score of an edge is not finite.
    """
    magnitude = np.abs(scores)
    np.copyto(magnitude, 0, where=~graph.edge_mask)
    largest = magnitude.max()
    if not np.isfinite(largest):
        row, column = np.argwhere(~np.isfinite(magnitude))[0]
        raise SparksError(
            f"the score of edge {graph.sources[row]} -> {graph.destinations[column]} must be "
            f"finite, got {scores[row, column]}: the model's weights or activations hold NaN or inf"
        )
    # tau before top-n leaves the same edges as the other way round, and far fewer to rank.
    magnitude = magnitude.ravel()
    with np.errstate(over="ignore"):  # a tau beyond float32 is infinite: nothing passes
        lowest = np.float32(floor) * (largest if of_largest else np.float32(1))
    found = np.flatnonzero(magnitude >= lowest if lowest > 0 else magnitude > 0)
    magnitude = magnitude[found]
    if found.size > limit:
        weakest = np.partition(magnitude, -limit)[-limit]
        above, ties = np.flatnonzero(magnitude > weakest), np.flatnonzero(magnitude == weakest)
        chosen = np.concatenate([above, ties[: limit - above.size]])
        found, magnitude = found[chosen], magnitude[chosen]
    order = np.argsort(-magnitude, kind="stable")
    return found[order], magnitude[order]


def _count(share: float, graph: Graph) -> int:
    return max(1, round(share * graph.num_edges))


def prune(
    source: Int64[np.ndarray, " edges"], destination: Int64[np.ndarray, " edges"], graph: Graph
) -> tuple[Int64[np.ndarray, " kept"], Bool[np.ndarray, "layers heads"]]:
    """Indices of the edges that stay, and the heads that live."""
    kept = np.arange(source.size)
    while True:
        writes, reads = _living(source[kept], destination[kept], graph)
        stays = writes[source[kept]] & reads[destination[kept]]
        if stays.all():
            return kept, writes[graph.head_sources]
        kept = kept[stays]


def _living(
    source: Int64[np.ndarray, " edges"], destination: Int64[np.ndarray, " edges"], graph: Graph
) -> tuple[Bool[np.ndarray, " sources"], Bool[np.ndarray, " destinations"]]:
    """Sources whose node has an edge in and an edge out, and destinations of such nodes."""
    layers, heads, kv_heads = graph.num_layers, graph.num_heads, graph.num_kv_heads
    left = np.bincount(source, minlength=graph.num_sources) > 0
    entered = np.bincount(destination, minlength=graph.num_destinations) > 0
    query, key, value, mlp = np.split(
        entered[:-1].reshape(layers, -1), [heads, heads + kv_heads, heads + 2 * kv_heads], axis=1
    )
    shared = np.repeat(key | value, heads // kv_heads, axis=1)
    nodes = left[1:].reshape(layers, -1) & np.concatenate([query | shared, mlp], axis=1)
    groups = nodes[:, :heads].reshape(layers, kv_heads, -1).any(axis=2)
    inputs = np.concatenate([nodes[:, :heads], groups, groups, nodes[:, heads:]], axis=1)
    return np.append(True, nodes), np.append(inputs, True)
