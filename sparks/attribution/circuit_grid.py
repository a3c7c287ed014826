"""Heads in the circuit under a grid of settings, from the scores of one probe: no extra passes.

The paper's circuit (`circuit`) has a fixed n = 5000 and a fixed tau = 0.1, so its size follows the
size of the model and the scale of L: n is 15 % of GPT-2's edges, 7 % of SmolLM2-135M's, 2.7 % of
Qwen2.5-1.5B's and 0.25 % of Qwen3-8B's; tau is 0.8 % of L where L is 13 nats and 4 % where it is
2.5. Here n is a share of the edges that exist, tau a share of the probe's L, and a head is held by
a share of the grid: its *consensus* (after CIRCUS, https://arxiv.org/abs/2603.00523). The paper's
numbers correspond to one setting with absolute n and tau, which `circuit.extract_circuit` gives
beside the grid.
"""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Bool, Float32

from sparks.attribution.circuit import prune, ranked_edges
from sparks.models.graph import Graph

SHARES = (0.02, 0.05, 0.1)
"""Edges kept, of those that exist."""
THRESHOLDS = (0.003, 0.006, 0.012)
"""Lowest |score| of a kept edge, of the probe's L."""
GRID: tuple[tuple[float, float], ...] = tuple(itertools.product(SHARES, THRESHOLDS))
"""`(share of edges, tau / L)` of each setting."""


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
    edges, strength = ranked_edges(
        scores, graph, floor=min(tau for _, tau in grid) * loss, limit=_count(most, graph)
    )
    held = np.zeros((len(grid), graph.num_layers, graph.num_heads), dtype=bool)
    for index, (share, tau) in enumerate(grid):
        kept = np.searchsorted(-strength, -np.float32(tau * loss), side="right")
        chosen = edges[: min(int(kept), _count(share, graph))]
        held[index] = prune(*np.divmod(chosen, graph.num_destinations), graph)[1]
    return held


def _count(share: float, graph: Graph) -> int:
    return max(1, round(share * graph.num_edges))
