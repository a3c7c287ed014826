"""Edge scores as the MIB benchmark reads them: the JSON of `Graph.to_json` of EAP-IG. No torch.

MIB (https://arxiv.org/abs/2504.13151) loads a submission with `Graph.from_json` of hannamw/EAP-IG
(`src/eap/graph.py`), keeps the strongest edges at each of its sizes and runs them itself:

    {"cfg":   {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"},
     "nodes": {"input" | "a0.h0" | "m0" | "logits": {"in_graph"}},
     "edges": {"input->a0.h0<q>" | "a0.h0->m0" | "m0->logits" ...: {"score", "in_graph"}}}

1. `embed` is `input`, `L0H3` is `a0.h3`, `L0MLP` is `m0`. An edge into a head ends in `<q>`, `<k>`
   or `<v>`.
2. The sign is theirs: Delta = corrupted - clean, and patching an edge of positive score raises the
   loss (L here, the negated logit difference there).
3. With grouped-query attention theirs has a key and a value of every QUERY head, the model and
   `Graph` only one of every group. The score of a KV head is split evenly over the query heads of
   its group: what belongs to each cannot be told from it, and the sum over a group's columns, which
   is how our scores compare with theirs (`attribution.eap_ig`), gives it back. An edge into keys or
   values thus stands lower in their ranking by the size of the group, as their own scores do on
   average.

Edges and nodes are written in the order in which the official graph makes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sparks.ground.errors import SparksError
from sparks.ground.files import read_file, why, write_atomically
from sparks.ground.schema import LIMITS, Number, Size, decode
from sparks.models.graph import Graph


@dataclass(frozen=True)
class _Edge:
    """An edge of the official graph, and the cell of our matrix that it is a part of."""

    name: str
    row: int
    column: int
    parts: int
    """Official edges that share the cell."""


def write_mib(
    path: str | os.PathLike[str],
    scores: Float[np.ndarray, "sources destinations"],
    graph: Graph,
    *,
    d_model: int,
    kept: Bool[np.ndarray, "sources destinations"] | None = None,
) -> Path:
    """Write edge scores for MIB's evaluator, whole or not at all; returns the path.

    Args:
        path: a `.json` file; the evaluator tells formats by the ending.
        scores: one number an edge over all probes, such as the mean score; MIB's evaluator ranks by
            it (for CPR) or by its absolute value (for CMD).
        graph: names the rows and columns of `scores`.
        d_model: width of the residual stream; a part of the file's `cfg`.
        kept: edges of one circuit, for `in_graph`; None marks nothing, as for scores alone.

    Raises:
        SparksError: the file has another ending or cannot be written, the scores do not fit the
            graph, or one is not finite.
    """
    if Path(path).suffix != ".json":
        raise SparksError(f"MIB reads scores from a .json file, got {path}: name it so")
    values = np.asarray(scores, dtype=np.float64)
    kept = np.zeros(graph.edge_mask.shape, dtype=bool) if kept is None else np.asarray(kept)
    if not values.shape == kept.shape == graph.edge_mask.shape:
        raise SparksError(
            f"scores and kept must have shape {graph.edge_mask.shape} (sources, destinations) for "
            f"this graph, got {values.shape} and {kept.shape}"
        )
    if not np.isfinite(values[graph.edge_mask]).all():
        raise SparksError("scores must be finite for MIB: they hold nan or inf")
    record = {
        "cfg": {
            "n_layers": graph.num_layers,
            "n_heads": graph.num_heads,
            "parallel_attn_mlp": graph.parallel,
            "d_model": d_model,
        },
        "nodes": _nodes(graph, kept & graph.edge_mask),
        "edges": {
            edge.name: {
                "score": float(values[edge.row, edge.column]) / edge.parts,
                "in_graph": bool(kept[edge.row, edge.column]),
            }
            for edge in _edges(graph)
        },
    }
    return write_atomically(path, json.dumps(record), what="scores for MIB to")


def read_mib(
    path: str | os.PathLike[str], num_kv_heads: int | None = None
) -> tuple[Graph, Float[np.ndarray, "sources destinations"]]:
    """Graph and scores of such a file, ours or that of another method.

    Args:
        path: the file.
        num_kv_heads: KV heads a layer of the model, which the file does not tell: the official
            columns of a group are summed. None takes as many as query heads.

    Raises:
        SparksError: the file cannot be read, is of another form, or lacks edges of its graph.
    """
    try:
        record = decode(_File, read_file(path))
    except OSError as error:
        raise SparksError(f"cannot read {path}: {why(error)}") from error
    except SparksError as error:
        raise SparksError(
            f"{path}: not scores in MIB's form ({error}): it needs cfg, nodes and edges with a "
            f"score"
        ) from error
    heads = record.cfg.n_heads
    graph = Graph(
        num_layers=record.cfg.n_layers,
        num_heads=heads,
        num_kv_heads=num_kv_heads or heads,
        parallel=record.cfg.parallel_attn_mlp,
    )
    given = {name: edge.score for name, edge in record.edges.items()}
    # A graph has more edges than this; asked before it is laid out, for it may be told to be huge.
    if graph.num_sources**2 // 2 > len(given):
        raise SparksError(
            f"{path}: edges are missing, {len(given)} of a graph with {graph.num_sources} sources"
        )
    found = np.zeros(graph.edge_mask.shape, dtype=np.float64)
    for edge in _edges(graph):
        if edge.name not in given:
            raise SparksError(f"{path}: edge {edge.name} is missing: the file is of another graph")
        found[edge.row, edge.column] += given.pop(edge.name)
    if given:
        raise SparksError(f"{path}: edge {next(iter(given))} is not in its graph")
    return graph, found


@dataclass(frozen=True, kw_only=True)
class _Shape:
    __pydantic_config__ = LIMITS

    n_layers: Size
    n_heads: Size
    parallel_attn_mlp: bool


@dataclass(frozen=True, kw_only=True)
class _Score:
    __pydantic_config__ = LIMITS

    score: Number


@dataclass(frozen=True, kw_only=True)
class _File:
    """What is read of the file."""

    __pydantic_config__ = LIMITS

    cfg: _Shape
    edges: dict[str, _Score]


def _nodes(graph: Graph, kept: np.ndarray) -> dict[str, dict[str, Any]]:
    """Sources with a kept edge out; `logits` always, as officially."""
    writing = set(np.flatnonzero(kept.any(axis=1)).tolist())
    found = {name: {"in_graph": row in writing} for row, name in enumerate(_source_names(graph))}
    return found | {"logits": {"in_graph": True}}


def _source_names(graph: Graph) -> list[str]:
    names = ["input"]
    for layer in range(graph.num_layers):
        names += [f"a{layer}.h{head}" for head in range(graph.num_heads)]
        names.append(f"m{layer}")
    return names


def _edges(graph: Graph) -> Iterator[_Edge]:
    names = _source_names(graph)
    group = graph.num_heads // graph.num_kv_heads
    for layer in range(graph.num_layers):
        first = graph.attention_columns(layer).start
        keys = first + graph.num_heads
        values = keys + graph.num_kv_heads
        for row in range(graph.sources_before_attention(layer)):
            for head in range(graph.num_heads):
                to = f"{names[row]}->a{layer}.h{head}"
                yield _Edge(f"{to}<q>", row, first + head, 1)
                yield _Edge(f"{to}<k>", row, keys + head // group, group)
                yield _Edge(f"{to}<v>", row, values + head // group, group)
        for row in range(graph.sources_before_mlp(layer)):
            yield _Edge(f"{names[row]}->m{layer}", row, graph.mlp_column(layer), 1)
    for row, name in enumerate(names):
        yield _Edge(f"{name}->logits", row, graph.num_destinations - 1, 1)
