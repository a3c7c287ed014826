"""The edges that the page draws: a consensus over probes, and the strongest of it.

1. Consensus of a checkpoint: of every edge that any probe's circuit keeps, `strength` = mean over
   probes of |score|, `balance` = (mean of score) / strength, and `share` = the part of the probes
   that keep it. A probe that does not keep the edge counts as 0.
2. What is sent: of each checkpoint its `most_edges(...)` strongest, as many of those that enter or
   leave a head (MLPs hold most of the strongest), and the `EDGES_OF_A_HEAD` strongest into and out
   of each head that is active at the first or last checkpoint, or born at this one, by either rule,
   so that a head's page shows its edges at birth and at the end.

Keys and values are shared by a group of heads: an edge into `L5KV0.k` is an edge into each of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sparks.attribution.snapshot import Snapshot
from sparks.models.graph import Graph
from sparks.timeline.growth.settings import GrowthConfig
from sparks.timeline.history import Follower, History
from sparks.timeline.timeline import RULES, Timeline
from sparks.views.report.packing import differences, packed, packed_planes

FEWEST_EDGES = 40
MOST_EDGES = 250
"""Strongest edges of a checkpoint that are sent, in the longest and in the shortest runs."""
EDGES_TOGETHER = 3000
"""Strongest edges of all checkpoints of a run, where that leaves `FEWEST_EDGES` for each."""
EDGES_OF_A_HEAD = 3
"""More of a head's own edges that are sent, into it and out of it."""


@dataclass(frozen=True, kw_only=True)
class Consensus:
    """Edges of one checkpoint that any probe keeps, by source, then destination."""

    source: Int[np.ndarray, " edges"]
    destination: Int[np.ndarray, " edges"]
    strength: Float[np.ndarray, " edges"]
    """Mean over probes of |score|, nats."""
    balance: Float[np.ndarray, " edges"]
    """Mean of the signed score over `strength`; in [-1, 1]."""
    share: Float[np.ndarray, " edges"]
    """Of the probes that keep the edge; above 0."""


def consensus(snapshot: Snapshot, chosen: Int[np.ndarray, " probes"]) -> Consensus:
    """Edges that the circuits of the chosen probes keep; scores that are not finite count as 0."""
    sizes = np.diff(snapshot.edge_offsets)
    probe = np.repeat(np.arange(snapshot.num_probes), sizes)
    mine = np.isin(probe, chosen)
    width = snapshot.graph.num_destinations
    key = snapshot.edge_source[mine].astype(np.int64) * width + snapshot.edge_destination[mine]
    score = np.nan_to_num(snapshot.edge_score[mine].astype(np.float64), posinf=0, neginf=0)
    edges, place = np.unique(key, return_inverse=True)
    probes = max(1, len(chosen))
    count = np.bincount(place, minlength=len(edges))
    strength = np.bincount(place, weights=np.abs(score), minlength=len(edges)) / probes
    signed = np.bincount(place, weights=score, minlength=len(edges)) / probes
    return Consensus(
        source=edges // width,
        destination=edges % width,
        strength=strength,
        balance=np.divide(signed, strength, out=np.zeros_like(signed), where=strength > 0),
        share=count / probes,
    )


def most_edges(checkpoints: int) -> int:
    """How many of a checkpoint's strongest edges are sent."""
    return int(np.clip(EDGES_TOGETHER // max(1, checkpoints), FEWEST_EDGES, MOST_EDGES))


def edge_data(by_rule: Sequence[Timeline]) -> dict[str, Any]:
    """The edges of a run, packed.

    Args:
        by_rule: the run, by each rule.

    Returns:
        `most` and `of_a_head`, the numbers of the module's text; `found`: edges of each consensus;
        `counts`: edges sent of each checkpoint; and of these, one checkpoint after another by
        source, then destination: `source` (differences of uint16) and `destination` (uint16);
        `strength` (uint16: 4095 * sqrt(strength / `strength_max`)); `balance` (int8, in 1 / 127);
        `share` (uint8, in 1 / 255).
    """
    timeline = by_rule[0]
    most, last = most_edges(len(timeline)), len(timeline) - 1
    rows: list[Candidates] = timeline.snapshots.follow(
        EdgeCandidates(timeline.group, timeline.growth_config)
    )
    cohorts = [seen.cohort for seen in by_rule]
    parts = []
    for at, row in enumerate(rows):
        heads = np.logical_or.reduce([cohort == at for cohort in cohorts])
        edges = row.edges
        if at in (0, last):  # what heads that are active then need beside the candidates
            heads = np.logical_or.reduce([heads, *(seen.active[at] for seen in by_rule)])
            edges = consensus(timeline.snapshots[at], timeline.chosen)
        parts.append(_chosen(edges, _sent(edges, timeline.graph, heads, most)))
    whole = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("source", "destination", "strength", "balance", "share")
    }
    largest = float(whole["strength"].max(initial=0))
    root = np.sqrt(whole["strength"] / largest) if largest > 0 else whole["strength"]
    return {
        "most": most,
        "of_a_head": EDGES_OF_A_HEAD,
        "found": [row.found for row in rows],
        "counts": [len(part.source) for part in parts],
        "source": packed_planes(differences(whole["source"].astype("<u2"))),
        "destination": packed_planes(whole["destination"].astype("<u2")),
        "strength": packed_planes(np.rint(root * 4095).astype("<u2")),
        "strength_max": largest,
        "balance": packed(np.rint(whole["balance"] * 127).astype(np.int8)),
        "share": packed(np.clip(np.rint(whole["share"] * 255), 1, 255).astype(np.uint8)),
    }


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Edges of one checkpoint that may be sent, however long the run gets."""

    edges: Consensus
    found: int
    """In the whole consensus."""


class EdgeCandidates(Follower):
    """Reads `Candidates` off the snapshots of a run: the most that can be sent of each.

    Args:
        group: whose probes count.
        config: of the rule by which heads are born.
    """

    def __init__(self, group: str | None, config: GrowthConfig) -> None:
        super().__init__(group)
        self._config = config

    def anew(self) -> EdgeCandidates:
        """One that has read nothing."""
        return EdgeCandidates(self.group, self._config)

    @property
    def key(self) -> Hashable:
        """Group and rule."""
        return self.group, self._config

    def read(self, history: History, snapshot: Snapshot) -> Candidates:
        """Of the last snapshot of the history."""
        edges = consensus(snapshot, history.chosen(self.group))
        at = len(history) - 1
        states = [history.states(rule, self.group, self._config)[0] for rule in RULES]
        born = np.logical_or.reduce([one.cohort == at for one in states])
        sent = _sent(edges, snapshot.graph, born, MOST_EDGES)
        return Candidates(edges=_chosen(edges, sent), found=len(edges.source))


def _sent(
    edges: Consensus, graph: Graph, heads: Bool[np.ndarray, "layers heads"], most: int
) -> Int[np.ndarray, " sent"]:
    """Indices of the edges that are sent, in their order, with those of some heads."""
    strongest = np.argsort(-edges.strength, kind="stable")
    keep = np.zeros(len(strongest), dtype=bool)
    keep[strongest[:most]] = True
    touches = _touch_heads(edges, graph)
    keep[strongest[touches[strongest]][:most]] = True
    for out_of, into in _edges_of_heads(edges, graph, np.argwhere(heads)):
        for mine in (out_of, into):
            keep[strongest[mine[strongest]][:EDGES_OF_A_HEAD]] = True
    return np.flatnonzero(keep)


def _touch_heads(edges: Consensus, graph: Graph) -> Bool[np.ndarray, " edges"]:
    """Which edges leave a head, or enter a head or the keys and values of its group."""
    leave = np.isin(edges.source, graph.head_sources)
    place = edges.destination % graph.destinations_per_layer
    is_logits = edges.destination == graph.num_destinations - 1
    return leave | ((place < graph.attention_destinations) & ~is_logits)


def _edges_of_heads(
    edges: Consensus, graph: Graph, heads: Int[np.ndarray, "heads two"]
) -> Iterator[tuple[Bool[np.ndarray, " edges"], Bool[np.ndarray, " edges"]]]:
    """Of each head: which edges leave it, and which enter it."""
    for layer, head in heads.tolist():
        kv = head // (graph.num_heads // graph.num_kv_heads)
        first = graph.attention_columns(layer).start
        inputs = [first + head, *(first + graph.num_heads + n * graph.num_kv_heads + kv
                                  for n in (0, 1))]  # fmt: skip
        yield edges.source == graph.head_sources[layer, head], np.isin(edges.destination, inputs)


def _chosen(edges: Consensus, index: Int[np.ndarray, " sent"]) -> Consensus:
    return Consensus(
        source=edges.source[index],
        destination=edges.destination[index],
        strength=edges.strength[index],
        balance=edges.balance[index],
        share=edges.share[index],
    )
