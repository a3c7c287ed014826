"""The computational graph that edges live in: names and order of its nodes.

Nodes (paper, section "Graph"): the embedding `embed`, attention heads `L5H1`, MLPs `L5MLP`,
`logits`. A *source* is what a node writes into the residual stream; a *destination* is one input
that reads it: a query head `L5H1.q`, a key or value head `L5KV0.k` / `L5KV0.v` (as many as the
model really has), an MLP `L5MLP`, or `logits`. An edge source -> destination exists when the source
writes before the destination reads.

Order of sources:       embed, then layer by layer: heads 0.., MLP.
Order of destinations:  layer by layer: q heads, k heads, v heads, MLP; then logits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int, UInt32

from sparks.ground.errors import SparksError
from sparks.ground.schema import Size

_HEAD = re.compile(r"L(\d+)H(\d+)\Z")


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The shape of a decoder, and the names and indices of its sources and destinations."""

    num_layers: Size
    num_heads: Size
    """Query heads a layer."""
    num_kv_heads: Size
    """Key/value heads a layer; divides `num_heads`."""
    parallel: bool = False
    """Whether an MLP reads beside its layer's heads, not behind them (GPT-NeoX, Cohere)."""

    def __post_init__(self) -> None:
        if min(self.num_layers, self.num_heads, self.num_kv_heads) < 1:
            raise SparksError(f"a graph needs at least one layer, head and key/value head: {self}")
        if self.num_heads % self.num_kv_heads:
            raise SparksError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} heads "
                f"and {self.num_kv_heads} key/value heads"
            )

    # -- sizes -------------------------------------------------------------------------------

    @property
    def sources_per_layer(self) -> int:
        """Heads and one MLP."""
        return self.num_heads + 1

    @property
    def attention_destinations(self) -> int:
        """Query, key and value heads of one layer."""
        return self.num_heads + 2 * self.num_kv_heads

    @property
    def destinations_per_layer(self) -> int:
        """Query, key and value heads, and one MLP."""
        return self.attention_destinations + 1

    @property
    def num_sources(self) -> int:
        """Rows of a score matrix."""
        return 1 + self.num_layers * self.sources_per_layer

    @property
    def num_destinations(self) -> int:
        """Columns of a score matrix."""
        return self.num_layers * self.destinations_per_layer + 1

    @property
    def num_edges(self) -> int:
        """Edges that exist."""
        return int(self.edge_mask.sum())

    # -- names -------------------------------------------------------------------------------

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources, in order."""
        names = ["embed"]
        for layer in range(self.num_layers):
            names += [f"L{layer}H{head}" for head in range(self.num_heads)]
            names.append(f"L{layer}MLP")
        return tuple(names)

    @cached_property
    def destinations(self) -> tuple[str, ...]:
        """Names of the destinations, in order."""
        names = []
        for layer in range(self.num_layers):
            names += [f"L{layer}H{head}.q" for head in range(self.num_heads)]
            names += [f"L{layer}KV{kv}.{part}" for part in "kv" for kv in range(self.num_kv_heads)]
            names.append(f"L{layer}MLP")
        return (*names, "logits")

    def head(self, name: str) -> tuple[int, int]:
        """`(layer, head)` of a name such as `L5H1`.

        Raises:
            SparksError: the name is not of that form, or the model has no such head.
        """
        match = _HEAD.match(name)
        if match is None:
            raise SparksError(f"a head is named like L5H1 (layer 5, head 1), got {name!r}")
        layer, head = int(match[1]), int(match[2])
        if layer >= self.num_layers or head >= self.num_heads:
            raise SparksError(
                f"there is no head {name}: layers are 0..{self.num_layers - 1}, "
                f"heads 0..{self.num_heads - 1}"
            )
        return layer, head

    # -- indices -----------------------------------------------------------------------------

    def sources_before_attention(self, layer: int) -> int:
        """How many sources write before the attention of `layer` reads; index of its head 0."""
        return 1 + layer * self.sources_per_layer

    def sources_before_mlp(self, layer: int) -> int:
        """How many sources write before the MLP of `layer` reads."""
        return self.sources_before_attention(layer) if self.parallel else self.mlp_row(layer)

    def mlp_row(self, layer: int) -> int:
        """Row of the MLP of `layer`."""
        return self.sources_before_attention(layer) + self.num_heads

    def attention_columns(self, layer: int) -> slice:
        """Columns of the q, k and v heads of `layer`."""
        start = layer * self.destinations_per_layer
        return slice(start, start + self.attention_destinations)

    def mlp_column(self, layer: int) -> int:
        """Column of the MLP of `layer`."""
        return layer * self.destinations_per_layer + self.attention_destinations

    @cached_property
    def head_sources(self) -> Int[np.ndarray, "layers heads"]:
        """Row of every head."""
        first = 1 + np.arange(self.num_layers) * self.sources_per_layer
        return first[:, None] + np.arange(self.num_heads)

    @cached_property
    def sources_read(self) -> UInt32[np.ndarray, " destinations"]:
        """How many sources write before each destination reads: the first so many."""
        readable = np.empty(self.num_destinations, dtype=np.uint32)
        for layer in range(self.num_layers):
            readable[self.attention_columns(layer)] = self.sources_before_attention(layer)
            readable[self.mlp_column(layer)] = self.sources_before_mlp(layer)
        readable[-1] = self.num_sources
        return readable

    @cached_property
    def edge_mask(self) -> Bool[np.ndarray, "sources destinations"]:
        """True where the edge exists."""
        return np.arange(self.num_sources)[:, None] < self.sources_read
