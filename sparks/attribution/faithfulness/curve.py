"""Faithfulness of circuits of growing size, and its areas CPR and CMD. No model, no torch.

MIB benchmark (Mueller et al. 2025, https://arxiv.org/abs/2504.13151, section 3), as its evaluator
computes them (`MIB_circuit_track/evaluation.py` of hannamw/MIB-circuit-track,
`evaluate_area_under_curve` with its defaults):

1. Edges are ranked by their score over all probes. For each share k of 0.001, 0.002, 0.005, 0.01,
   0.02, 0.05, 0.1, 0.2, 0.5, 1 the int(k x edges) strongest are kept, then pruned: nodes without an
   edge in or an edge out go (`circuit.prune`), so that edges that lead nowhere are not counted.
2. Faithfulness of circuit C of network N under metric m, each m a mean over probes:

       f(C) = (m(C) - m(empty)) / (m(N) - m(empty))

   m(C): everything outside C patched to its corrupted value.
3. CPR (circuit performance ratio) is the area under f, CMD (circuit-model distance) the area of
   |1 - f|: trapezoids over the shares that were asked for, on a linear axis from 0.001 to 1. A
   perfect circuit at all sizes has CPR = 0.999 and CMD = 0. (Shares, not the counts after pruning.)

Ours beside it:

- Necessity: all inside C patched, the rest clean,

      n(C) = (m(N) - m(N without C)) / (m(N) - m(empty))

  Both numbers are 0 for the empty circuit and 1 for the whole network, exactly.
- m is `kl`, -L = -KL(clean || run), the default: the scores are attributions of it and every probe
  has it; f is then 1 - L(C) / L(corrupted). Or `logit-diff`, as MIB: the logit of the token that
  the clean run says next minus that of the token that the corrupted run says next, where L looks.
  (Not at the token where the two beginnings part: what is read before it is the same in both, so
  that no patch moves it.) Probes where both say the same token have no such difference and are
  left out.
- Circuits: `shared` by one ranking of all probes (MIB's), `own` by each probe's own scores (the
  paper's), `random` as the control: the shared ranking shuffled, by default within each pair of
  layers, so that before pruning it has as many edges between any two layers, at every size.
- Edges are those of `Graph`: keys and values once a KV head; MIB counts them once a query head.
- Intervals: bootstrap over probes, the same resamples for all circuits and differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from sparks.attribution.circuit import prune
from sparks.attribution.faithfulness.settings import Control, CurveConfig, Ranking
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph

# -- circuits ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class SizedCircuit:
    """The edges that a share of a ranking leaves after pruning."""

    edges: Int[np.ndarray, " edges"]
    """Flat indices in a score matrix, rising."""
    heads: int
    """Attention heads with an edge in and an edge out."""

    def mask(self, graph: Graph) -> Bool[np.ndarray, "sources destinations"]:
        """True for the edges of the circuit."""
        found = np.zeros(graph.edge_mask.size, dtype=bool)
        found[self.edges] = True
        return found.reshape(graph.edge_mask.shape)


def strengths(
    scores: Float[np.ndarray, "probes sources destinations"], ranking: Ranking
) -> Float[np.ndarray, "sources destinations"]:
    """What edges are ranked by, largest first: one number an edge over all probes."""
    values = np.asarray(scores, dtype=np.float64)
    if ranking == "mean-absolute":
        return np.abs(values).mean(axis=0)
    mean = values.mean(axis=0)
    return mean if ranking == "signed" else np.abs(mean)


def sized_circuits(
    strength: Float[np.ndarray, "sources destinations"], graph: Graph, shares: Sequence[float]
) -> list[SizedCircuit]:
    """The circuit of each share. Of equal strengths the edge of lower index comes first.

    Raises:
        SparksError: `strength` does not fit the graph or is not finite at an edge.
    """
    if np.shape(strength) != graph.edge_mask.shape:
        raise SparksError(
            f"strengths must have shape {graph.edge_mask.shape} (sources, destinations) for this "
            f"graph, got {np.shape(strength)}"
        )
    edges = np.flatnonzero(graph.edge_mask)
    values = strength.ravel()[edges]
    if not np.isfinite(values).all():
        raise SparksError("strengths of edges must be finite: the scores hold nan or inf")
    order = edges[np.argsort(-values, kind="stable")]
    return [_pruned(order[: int(share * len(edges))], graph) for share in shares]


def _pruned(edges: Int[np.ndarray, " edges"], graph: Graph) -> SizedCircuit:
    kept, heads = prune(*np.divmod(edges, graph.num_destinations), graph)
    return SizedCircuit(edges=np.sort(edges[kept]), heads=int(heads.sum()))


def shuffled(
    strength: Float[np.ndarray, "sources destinations"],
    graph: Graph,
    control: Control,
    rng: np.random.Generator,
) -> Float[np.ndarray, "sources destinations"]:
    """The strengths dealt out anew among all edges, or among those between the same two layers."""
    rows, columns = np.nonzero(graph.edge_mask)
    # embed, layer 0, 1, ...; logits are a layer of their own.
    source = (rows - 1) // graph.sources_per_layer + 1
    destination = columns // graph.destinations_per_layer
    pair = source * (graph.num_layers + 1) + destination
    if control == "uniform":
        pair = np.zeros_like(pair)
    found = np.zeros(graph.edge_mask.shape, dtype=np.float64)
    order = np.argsort(pair, kind="stable")
    values = strength[rows, columns]
    for members in np.split(order, np.flatnonzero(np.diff(pair[order])) + 1):
        found[rows[members], columns[members]] = values[rng.permutation(members)]
    return found


# -- areas -------------------------------------------------------------------------------------


def areas(
    shares: Sequence[float], faithfulness: Float[np.ndarray, "... sizes"]
) -> tuple[Float[np.ndarray, " ..."], Float[np.ndarray, " ..."]]:
    """CPR and CMD of curves over `shares`, as MIB's evaluator integrates them."""
    widths = np.diff(np.asarray(shares, dtype=np.float64))

    def trapezoids(values: np.ndarray) -> np.ndarray:
        return ((values[..., 1:] + values[..., :-1]) / 2) @ widths

    return trapezoids(faithfulness), trapezoids(np.abs(1 - faithfulness))


def circuits_of_probes(
    scores: Float[np.ndarray, "probes sources destinations"], graph: Graph, config: CurveConfig
) -> Mapping[str, list[list[list[SizedCircuit]]]]:
    """Circuits by name (`shared`, `own`, `random`), then [draw][probe][size].

    Raises:
        SparksError: the scores do not fit the graph or the settings, or are not finite.
    """
    if np.shape(scores)[1:] != graph.edge_mask.shape:
        raise SparksError(
            f"scores must have shape (probes, {graph.num_sources}, {graph.num_destinations}) for "
            f"this graph, got {np.shape(scores)}"
        )
    if config.held_out and len(scores) < 2:
        raise SparksError("held_out ranks each probe by the others: give two probes or more, got 1")
    count, rest = len(scores), range(len(scores))

    def each(strength: np.ndarray) -> list[SizedCircuit]:
        return sized_circuits(strength, graph, config.shares)

    def of_others(probe: int) -> np.ndarray:
        return strengths(np.delete(scores, probe, axis=0), config.ranking)

    whole = strengths(scores, config.ranking)
    rng = np.random.default_rng(config.seed)
    return {
        "shared": [
            [each(of_others(i)) for i in rest] if config.held_out else [each(whole)] * count
        ],
        "own": [[each(strengths(scores[i : i + 1], config.ranking)) for i in rest]],
        "random": [
            [each(shuffled(whole, graph, config.control, rng))] * count for _ in range(config.draws)
        ],
    }
