"""What an attribution gives: scores of edges or nodes, and how exact they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparks.models.graph import Graph


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """Edge scores of some pairs, on the CPU, float32. Delta = corrupted - clean, as officially."""

    scores: Float[Tensor, "pairs sources destinations"]
    """0 where no edge exists."""
    graph: Graph
    loss_corrupted: Float[Tensor, " pairs"]
    """KL(clean || corrupted), nats."""
    completeness_gap: Float[Tensor, " pairs"]
    """|sum of (e' - e) . mean gradient at the embeddings + jumps - loss_corrupted| /
    loss_corrupted: the relative error of the quadrature. 0 for an exact integral; of secants,
    rounding alone."""
    switches: Float[Tensor, " pairs"]
    """Jumps / loss_corrupted: the share of L where routers of a mixture take other experts along
    the path (`routing`); no score has it. 0 without a mixture."""
    points: Int[Tensor, " pairs"]
    """m, the points that the pair was given; of secants 2, the ends."""
    precision: str
    """Type that the model computed in: `float32`, `bfloat16`, or `float32, blocks bfloat16`."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the rows: `embed`, `L5H1`, `L5MLP`."""
        return self.graph.sources

    @property
    def destinations(self) -> tuple[str, ...]:
        """Names of the columns: `L5H1.q`, `L5KV0.k`, `L5KV0.v`, `L5MLP`, `logits`."""
        return self.graph.destinations

    def heads(
        self, kept: Bool[Tensor, "pairs sources destinations"] | None = None
    ) -> Float[Tensor, "pairs layers heads"]:
        """Importance of each head (paper A.6, unnormalised): the sum of |score| over its edges.

        `kept` restricts the sum to a circuit's edges, as the paper does; without it, all edges.
        """
        strength = self.scores.abs() if kept is None else self.scores.abs() * kept
        return strength.sum(-1)[:, torch.from_numpy(self.graph.head_sources)]


@dataclass(frozen=True, eq=False)
class NodeScores:
    """Node scores `< Delta z_u , mean dL/d(output of u) >` of some pairs, on the CPU, float32."""

    scores: Float[Tensor, "pairs sources"]
    graph: Graph
    loss_corrupted: Float[Tensor, " pairs"]
    completeness_gap: Float[Tensor, " pairs"]
    """As in `EdgeScores`."""
    points: Int[Tensor, " pairs"]
    """As in `EdgeScores`."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the columns: `embed`, `L5H1`, `L5MLP`."""
        return self.graph.sources
