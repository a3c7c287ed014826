"""Exact EAP-IG scores on native Hugging Face decoders, at the cost of a bare forward and backward.

EAP-IG, "inputs" variant (Hanna et al. 2024, https://arxiv.org/abs/2403.17806; paper Eq. 3):

    score(u -> v | x) = < Delta z_u , (1/m) sum_k dL/d(input of v) at alpha_k >

summed over the residual dimension and positions, Delta z_u = what u writes in the corrupted run
minus the clean run, L = KL(clean || run), and every token embedding moved together along
z' + alpha (z - z').

In steps:
1. run the prefix that both prompts share once; its Delta z is 0 and, with a causal mask, no
   gradient path of a later position runs through it (`passes`);
2. run the clean and the corrupted continuation without gradients: Delta z of every node;
3. run m points of the path as rows of a batch; ask autograd for gradients at activations only;
4. split the gradient of each attention block over its heads, summed over the points
   (`destinations`);
5. contract once: [sources, pos * d_model] x [pos * d_model, destinations].

Symbol map: z' = corrupted, z = clean, m = `steps`, alpha_k = `quadrature.points`, L = KL at the
last position (`positions="last"`) or its mean over the continuation ("all"). What differs from the
official code: key and value destinations are the heads that the model has (the official columns of
a group sum to ours); scores are accumulated in float32 whatever the model's type; `midpoint` is the
default rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparks.anatomy import Anatomy
from sparks.config import Positions, Rule, SnapshotConfig
from sparks.destinations import AttentionReader
from sparks.errors import SparksError
from sparks.graph import Graph
from sparks.guard import undisturbed
from sparks.memory import MemoryEstimate, Progress
from sparks.modules import linear_map
from sparks.passes import GRADIENT_SCALE, Endpoints, Passes, Trace
from sparks.quadrature import points
from sparks.schedule import Schedule
from sparks.token_pairs import TokenPair

_DEFAULTS = SnapshotConfig()
_LAYERS_AT_ONCE = 4
"""Layers whose reads are contracted by one product: fewer make it thin, more multiply zeros."""


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """Edge scores of some pairs, on the CPU, float32. Delta = corrupted - clean, as officially."""

    scores: Float[Tensor, "pairs sources destinations"]
    """0 where no edge exists."""
    graph: Graph
    loss_corrupted: Float[Tensor, " pairs"]
    """KL(clean || corrupted), nats."""
    completeness_gap: Float[Tensor, " pairs"]
    """|sum of (e' - e) . mean gradient at the embeddings - loss_corrupted| / loss_corrupted: the
    relative error of the quadrature. 0 for an exact integral."""
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

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the columns: `embed`, `L5H1`, `L5MLP`."""
        return self.graph.sources


def edge_attribution(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    *,
    steps: int = _DEFAULTS.steps,
    rule: Rule = _DEFAULTS.rule,
    positions: Positions = _DEFAULTS.positions,
    memory_gib: float = _DEFAULTS.memory_gib,
    progress: Progress | None = None,
) -> EdgeScores:
    """EAP-IG score of every edge, for every pair.

    Args:
        model: a Hugging Face causal language model, PEFT-wrapped or not. Left exactly as found.
        pairs: token ids; continuations and prefixes may differ in length from pair to pair.
        steps: m, points on the path.
        rule: where they lie, see `quadrature`.
        positions: L at the `last` position, or its mean over `all` positions of the continuation.
        memory_gib: budget for activations; pairs and steps are split to stay under it.
        progress: called with the number of (pair, point) rows just done, of `len(pairs) * steps`.

    Raises:
        SparksError: no pairs, a token outside the vocabulary, a pair longer than the model's
            context, an unknown architecture, or activations that are not finite.
    """
    parts = list(
        iter_edge_attribution(
            model, pairs, steps=steps, rule=rule, positions=positions, memory_gib=memory_gib,
            progress=progress,
        )
    )  # fmt: skip
    order = torch.tensor([index for indices, _ in parts for index in indices]).argsort()
    return EdgeScores(
        scores=torch.cat([part.scores for _, part in parts])[order],
        graph=parts[0][1].graph,
        loss_corrupted=torch.cat([part.loss_corrupted for _, part in parts])[order],
        completeness_gap=torch.cat([part.completeness_gap for _, part in parts])[order],
        precision=parts[0][1].precision,
    )


def iter_edge_attribution(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    *,
    steps: int = _DEFAULTS.steps,
    rule: Rule = _DEFAULTS.rule,
    positions: Positions = _DEFAULTS.positions,
    memory_gib: float = _DEFAULTS.memory_gib,
    progress: Progress | None = None,
) -> Iterator[tuple[list[int], EdgeScores]]:
    """`edge_attribution` a batch at a time: `(indices of the pairs, their scores)`.

    Batches come in the order that suits the machine. For sets whose scores would not fit in memory.
    """
    alphas = _check_settings(steps, rule, positions, memory_gib)
    with undisturbed(model):
        work = Schedule(model, pairs, steps, positions, memory_gib)
        readers = [AttentionReader.of(layer) for layer in work.anatomy.layers]
    for indices in work.batches():
        with undisturbed(model):  # not around the yield: there the model is the caller's again
            run = _EdgeRun(work.anatomy, readers, *work.prepare(indices), work.budget)
            for chunk in work.chunks(alphas, indices):
                run.add(chunk)
                if progress is not None:
                    progress(len(chunk) * len(indices))
            result = run.result(steps)
        yield indices, result


def node_attribution(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    *,
    steps: int = _DEFAULTS.steps,
    rule: Rule = _DEFAULTS.rule,
    positions: Positions = _DEFAULTS.positions,
    memory_gib: float = _DEFAULTS.memory_gib,
    progress: Progress | None = None,
) -> NodeScores:
    """EAP-IG score of every node (embedding, heads, MLPs): for when edges are not wanted.

    Arguments and errors as for `edge_attribution`.
    """
    alphas = _check_settings(steps, rule, positions, memory_gib)
    order: list[int] = []
    scores, losses, gaps = [], [], []
    with undisturbed(model):
        work = Schedule(model, pairs, steps, positions, memory_gib)
        for indices in work.batches():
            passes, ends = work.prepare(indices)
            total = torch.zeros(len(indices), work.anatomy.graph.num_sources, device=passes.device)
            for chunk in work.chunks(alphas, indices):
                total += _node_chunk(passes, ends, chunk)
                if progress is not None:
                    progress(len(chunk) * len(indices))
            total /= steps * GRADIENT_SCALE
            order += indices
            scores.append(total.cpu())
            losses.append(ends.loss_corrupted.cpu())
            gaps.append(_gap(total[:, 0], ends).cpu())
    back = torch.tensor(order).argsort()
    return NodeScores(
        scores=_finite(torch.cat(scores)[back]),
        graph=work.anatomy.graph,
        loss_corrupted=torch.cat(losses)[back],
        completeness_gap=torch.cat(gaps)[back],
    )


def estimate_memory(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    *,
    steps: int = _DEFAULTS.steps,
    positions: Positions = _DEFAULTS.positions,
    memory_gib: float = _DEFAULTS.memory_gib,
) -> MemoryEstimate:
    """What `edge_attribution` with these arguments is going to need, before it runs.

    Costs one forward pass of the longest pair. Raises as `edge_attribution` does.
    """
    SnapshotConfig(steps=steps, positions=positions, memory_gib=memory_gib)
    with undisturbed(model):
        return Schedule(model, pairs, steps, positions, memory_gib).estimate


def _check_settings(steps: int, rule: Rule, positions: Positions, memory_gib: float) -> list[float]:
    """Points on the path."""
    SnapshotConfig(steps=steps, rule=rule, positions=positions, memory_gib=memory_gib)
    return points(rule, steps)


# -- edges -----------------------------------------------------------------------------------------


class _EdgeRun:
    """Accumulates the edge scores of one batch, some points of the path at a time.

    What the destinations read is summed over all points and contracted once where that is small;
    else it is contracted as it comes, a layer at a time.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        readers: list[AttentionReader],
        passes: Passes,
        ends: Endpoints,
        budget_bytes: int,
    ) -> None:
        self.graph, self.readers, self.passes, self.ends = anatomy.graph, readers, passes, ends
        token = passes.num_pairs * passes.suffix * anatomy.d_model
        small = budget_bytes // (8 * 4 * token)  # nodes whose vectors fill an eighth of the budget
        device = passes.device
        self.writes = _Writes(anatomy, ends, keep=self.graph.num_sources <= small)
        shape = (passes.num_pairs, self.graph.num_destinations, passes.suffix, anatomy.d_model)
        keep = self.graph.num_destinations <= small
        self.reads = torch.zeros(shape, device=device) if keep else None
        self.scores = torch.zeros(
            passes.num_pairs, self.graph.num_sources, self.graph.num_destinations, device=device
        )
        self.embed_total = torch.zeros(passes.num_pairs, device=device)

    def add(self, alphas: list[float]) -> None:
        trace = self.passes.interpolate(self.ends, alphas, nodes=False)
        flat = [tensor for outputs in trace.projected for tensor in outputs]
        wanted = [trace.embeds, *trace.final_in, *trace.mlp_in, *flat]
        grads = self.passes.gradients(trace, self.ends, wanted)
        with torch.no_grad():
            self._read(trace, grads)

    def _read(self, trace: Trace, grads: list[Tensor]) -> None:
        graph, pairs = self.graph, self.passes.num_pairs
        at_embeds, at_final = self._sum(grads[0]), self._sum(grads[1])
        at_mlps = grads[2 : 2 + graph.num_layers]
        rest = iter(grads[2 + graph.num_layers :])
        self.embed_total += (at_embeds * self.ends.delta_embed).sum((1, 2))
        self._take(slice(graph.num_destinations - 1, graph.num_destinations), at_final[:, None])
        for layer, reader in enumerate(self.readers):
            outputs = [self.passes.unpacked(output) for output in trace.projected[layer]]
            at_outputs = [next(rest) for _ in outputs]
            x = self.passes.unpacked(trace.attention_in[layer])
            at_heads = reader.read(x, outputs, at_outputs, pairs)
            self._take(graph.attention_columns(layer), at_heads)
            mlp = graph.mlp_column(layer)
            self._take(slice(mlp, mlp + 1), self._sum(at_mlps[layer])[:, None])

    def _sum(self, gradient: Tensor) -> Float[Tensor, "pairs pos d_model"]:
        return gradient.float().unflatten(0, (self.passes.num_pairs, -1)).sum(1)

    def _take(self, columns: slice, reads: Float[Tensor, "pairs destinations pos d_model"]) -> None:
        if self.reads is None:
            self._contract(columns, reads)
        else:
            self.reads[:, columns] += reads

    def _contract(
        self, columns: slice, reads: Float[Tensor, "pairs destinations pos d_model"]
    ) -> None:
        """Add < Delta z_u , reads > for the sources that the last of `columns` can read."""
        flat = reads.flatten(2).transpose(1, 2)
        limit = int(self.graph.edge_mask[:, columns.stop - 1].sum())
        for rows, written in self.writes.blocks(limit):
            self.scores[:, rows, columns] += written.flatten(2) @ flat

    def result(self, steps: int) -> EdgeScores:
        total = steps * GRADIENT_SCALE
        if self.reads is not None:
            self._contract_kept(self.reads)
        no_edge = torch.from_numpy(~self.graph.edge_mask)
        return EdgeScores(
            scores=_finite((self.scores / total).cpu()).masked_fill_(no_edge, 0),
            graph=self.graph,
            loss_corrupted=self.ends.loss_corrupted.cpu(),
            completeness_gap=_gap(self.embed_total / total, self.ends).cpu(),
            precision=self.ends.precision,
        )

    def _contract_kept(self, reads: Tensor) -> None:
        graph = self.graph
        size = _LAYERS_AT_ONCE * graph.destinations_per_layer
        for start in range(0, graph.num_destinations, size):
            columns = slice(start, min(start + size, graph.num_destinations))
            self._contract(columns, reads[:, columns])


class _Writes:
    """What every source writes, corrupted minus clean, [pairs, sources, pos, d_model].

    Kept whole where that is small; else rebuilt a layer at a time from what the heads computed.
    """

    def __init__(self, anatomy: Anatomy, ends: Endpoints, *, keep: bool) -> None:
        self.anatomy, self.ends = anatomy, ends
        layers = range(anatomy.graph.num_layers)
        self.whole = (
            torch.cat([ends.delta_embed[:, None], *map(self._layer, layers)], 1) if keep else None
        )

    def blocks(self, limit: int) -> Iterator[tuple[slice, Tensor]]:
        """`(rows, writes of those sources)` that cover the first `limit` sources."""
        if self.whole is not None:
            yield slice(0, limit), self.whole[:, :limit]
            return
        yield slice(0, 1), self.ends.delta_embed[:, None]
        graph = self.anatomy.graph
        for layer in range(graph.num_layers):
            start = graph.sources_before_attention(layer)
            stop = min(start + graph.sources_per_layer, limit)
            if start >= limit:
                return
            yield slice(start, stop), self._layer(layer)[:, : stop - start]

    @torch.no_grad()
    def _layer(self, layer: int) -> Float[Tensor, "pairs sources pos d_model"]:
        output = linear_map(self.anatomy.layers[layer].output)
        assert output is not None  # take_apart has checked it
        heads = self.ends.delta_heads[layer].unflatten(-1, (self.anatomy.graph.num_heads, -1))
        columns = output[0].float().unflatten(1, (self.anatomy.graph.num_heads, -1))
        written = torch.einsum("pshf,dhf->phsd", heads, columns)
        return torch.cat([written, self.ends.delta_mlps[layer][:, None]], 1)


# -- nodes -----------------------------------------------------------------------------------------


def _node_chunk(
    passes: Passes, ends: Endpoints, alphas: list[float]
) -> Float[Tensor, "pairs sources"]:
    trace = passes.interpolate(ends, alphas, nodes=True)
    wanted = [trace.embeds, *trace.mixed, *trace.mlp_out]
    grads = passes.gradients(trace, ends, wanted)
    layers = len(trace.mixed)
    with torch.no_grad():
        summed = [grad.float().unflatten(0, (passes.num_pairs, -1)).sum(1) for grad in grads]
        columns = [(summed[0] * ends.delta_embed).sum((1, 2))[:, None]]
        for layer in range(layers):
            at_heads = summed[1 + layer] * ends.delta_heads[layer]
            heads = passes.anatomy.graph.num_heads
            columns.append(at_heads.unflatten(-1, (heads, -1)).sum((1, 3)))
            at_mlp = summed[1 + layers + layer] * ends.delta_mlps[layer]
            columns.append(at_mlp.sum((1, 2))[:, None])
        return torch.cat(columns, 1)


# -- shared ----------------------------------------------------------------------------------------


def _gap(embed_total: Tensor, ends: Endpoints) -> Float[Tensor, " pairs"]:
    """Completeness: the embeddings' share must be L(corrupted) - L(clean), and L(clean) = 0."""
    loss = ends.loss_corrupted
    return (embed_total - loss).abs() / loss.abs().clamp_min(torch.finfo(loss.dtype).tiny)


def _finite(scores: Tensor) -> Tensor:
    if not bool(torch.isfinite(scores).all()):
        raise SparksError(
            "attribution scores are not finite (nan or inf gradients): the model's weights are "
            "broken or its precision is too narrow; use float32 or bfloat16"
        )
    return scores
