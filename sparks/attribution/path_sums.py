"""Sums over the points of the path, and the scores that they give: steps 3 to 6 of `eap_ig`.

`EdgeSums` and `NodeSums` take the gradients of some points of a batch at a time; `until_steady`
gives each pair points until its completeness gap is small enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparks.attribution.batches import Schedule
from sparks.attribution.head_gradients import AttentionReader
from sparks.attribution.model_runs import GRADIENT_SCALE, Endpoints, Passes, Trace
from sparks.attribution.quadrature import (
    PILOT_POINTS,
    Strata,
    added_alphas,
    alphas_of,
    grown,
    largest,
)
from sparks.attribution.routing import Switches
from sparks.attribution.scores import EdgeScores, NodeScores
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.anatomy import Anatomy
from sparks.models.memory import Progress

_STALE = 0.25
"""A gap that growing moved by less than this share of it is no error of the quadrature: narrow
types round the forward and the backward pass apart (bfloat16: by about a hundredth of L)."""
_LAYERS_AT_ONCE = 4
"""Layers whose reads are contracted by one product: fewer make it thin, more multiply zeros."""


# -- points ----------------------------------------------------------------------------------------


class _Sums:
    """Sums over the points of the path, for one batch of pairs."""

    nodes = False

    def __init__(self, passes: Passes, ends: Endpoints) -> None:
        self.passes, self.ends = passes, ends
        self.switches = Switches(passes, ends)
        self.strata: Strata | None = None
        """Where points lie that are not the same for all pairs."""
        self.points = 0
        """Points summed so far."""
        self.before: Tensor | None = None
        """`found` before the last growth."""

    def look(self, alphas: list[float], points: int) -> None:
        """Choose the strata by forward passes at these alphas."""
        inner = self.passes.losses(self.ends, alphas)
        start = self.ends.loss_corrupted[:, None]
        self.strata = Strata.of(torch.cat([start, inner, torch.zeros_like(start)], 1), points)

    def add(self, names: list[float]) -> None:
        """Run every pair at these points too: alphas, or their names where there are strata."""
        alphas, weights = (names, None) if self.strata is None else self.strata.place(names)
        with self.switches.watched():
            trace = self.passes.interpolate(self.ends, alphas, nodes=self.nodes)
        seeds = self.passes.seeds(trace, self.ends, weights)
        at_embeds = self.take(trace, seeds, len(names))
        self.switches.add(alphas, weights, trace.logits, at_embeds)

    def take(self, trace: Trace, seeds: Tensor, points: int) -> Tensor:
        """Add the gradients of a run, `seeds` at its logits; `points` rows a pair.

        Returns:
            The gradients at the embeddings.
        """
        self.points += points
        grads = self.passes.gradients(trace, seeds, self._watched(trace))
        with torch.no_grad():
            self._read(trace, grads)
        return grads[0]

    def _watched(self, trace: Trace) -> list[Tensor]:
        """The activations at which gradients are wanted, `nodes` of them or those that read."""
        raise NotImplementedError

    def _read(self, trace: Trace, grads: list[Tensor]) -> None:
        """Add the gradients to the sums."""
        raise NotImplementedError

    def _embed_total(self) -> Float[Tensor, " pairs"]:
        """Sum of (e' - e) . gradient at the embeddings over the points."""
        raise NotImplementedError

    def found(self) -> Float[Tensor, " pairs"]:
        """What of L the embeddings' attributions and switches of experts add up to."""
        return self._embed_total() / (self.points * GRADIENT_SCALE) + self.switches.total()

    def gap(self) -> Float[Tensor, " pairs"]:
        """Completeness: that must be L(corrupted) - L(clean), and L(clean) = 0."""
        loss = self.ends.loss_corrupted
        return (self.found() - loss).abs() / loss.abs().clamp_min(torch.finfo(loss.dtype).tiny)

    def sum(self, gradient: Tensor) -> Float[Tensor, "pairs pos features"]:
        """Over the points of each pair, in float32."""
        return gradient.float().unflatten(0, (self.passes.num_pairs, -1)).sum(1)

    def mean(self, scores: Tensor) -> Tensor:
        """The mean over all points, on the CPU.

        Raises:
            SparksError: it is not finite.
        """
        scores = (scores / (self.points * GRADIENT_SCALE)).cpu()
        if not bool(torch.isfinite(scores).all()):
            raise SparksError(
                "attribution scores are not finite (nan or inf gradients): the model's weights are "
                "broken or its precision is too narrow; use float32 or bfloat16"
            )
        return scores

    def only(self, rows: list[int]) -> Self:
        """The sums of some pairs of the batch, to go on with."""
        some = copy(self)
        some.passes, some.ends = self.passes.only(rows), self.ends.only(rows)
        some.before = None if self.before is None else self.before[rows]
        some.switches = self.switches.only(some.passes, some.ends, rows)
        some.strata = None if self.strata is None else self.strata.only(rows)
        return some


Sums = TypeVar("Sums", bound=_Sums)


def until_steady(
    run: Sums,
    indices: list[int],
    work: Schedule,
    config: SnapshotConfig,
    progress: Progress | None,
    spared: Progress | None,
) -> Iterator[tuple[list[int], Sums]]:
    """Add points until each pair's gap is small enough or m is spent: `(pairs done, their run)`."""
    if config.quadrature == "pilot":
        run.look(alphas_of("right", PILOT_POINTS + 1)[:-1], config.first_points)
    names = alphas_of(config.quadrature, config.first_points)
    most = largest(config.quadrature, config.first_points, config.most_points)
    while True:
        for chunk in work.chunks(names, indices):
            run.add(chunk)
            if progress is not None:
                progress(len(chunk) * len(indices))
        done, left = _split(run, config)
        if spared is not None:
            spared((most - run.points) * len(done))
        if not left:
            yield indices, run
            return
        if done:
            yield [indices[row] for row in done], run.only(done)
            run, indices = run.only(left), [indices[row] for row in left]
        names = added_alphas(config.quadrature, run.points)


def _split(run: _Sums, config: SnapshotConfig) -> tuple[list[int], list[int]]:
    """Rows of the batch that have points enough, and those that want more."""
    rows = range(run.passes.num_pairs)
    if config.tolerance is None or grown(config.quadrature, run.points) > config.most_points:
        return list(rows), []
    found = run.found()
    large = run.gap() > config.tolerance  # not where it is nan
    if run.before is not None:
        missed = (found - run.ends.loss_corrupted).abs()
        large &= (found - run.before).abs() > _STALE * missed
    run.before = found
    wants = large.tolist()
    return [row for row in rows if not wants[row]], [row for row in rows if wants[row]]


# -- edges -----------------------------------------------------------------------------------------


class EdgeSums(_Sums):
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
        super().__init__(passes, ends)
        self.graph, self.readers = anatomy.graph, readers
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
        self.embeds = torch.zeros(passes.num_pairs, device=device)

    def _embed_total(self) -> Float[Tensor, " pairs"]:
        return self.embeds

    def only(self, rows: list[int]) -> Self:
        """As every sum has it."""
        some = super().only(rows)
        some.writes = self.writes.only(rows, some.ends)
        some.reads = None if self.reads is None else self.reads[rows]
        some.scores, some.embeds = self.scores[rows], self.embeds[rows]
        return some

    def _watched(self, trace: Trace) -> list[Tensor]:
        flat = [tensor for outputs in trace.projected for tensor in outputs]
        return [trace.embeds, *trace.final_in, *trace.mlp_in, *flat]

    def _read(self, trace: Trace, grads: list[Tensor]) -> None:
        graph, pairs = self.graph, self.passes.num_pairs
        at_embeds, at_final = self.sum(grads[0]), self.sum(grads[1])
        at_mlps = grads[2 : 2 + graph.num_layers]
        rest = iter(grads[2 + graph.num_layers :])
        self.embeds += (at_embeds * self.ends.delta_embed).sum((1, 2))
        self._take(slice(graph.num_destinations - 1, graph.num_destinations), at_final[:, None])
        for layer, reader in enumerate(self.readers):
            outputs = [self.passes.unpacked(output) for output in trace.projected[layer]]
            at_outputs = [next(rest) for _ in outputs]
            x = self.passes.unpacked(trace.attention_in[layer])
            at_heads = reader.read(x, outputs, at_outputs, pairs)
            self._take(graph.attention_columns(layer), at_heads)
            mlp = graph.mlp_column(layer)
            self._take(slice(mlp, mlp + 1), self.sum(at_mlps[layer])[:, None])

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

    def result(self) -> EdgeScores:
        """The scores of the batch."""
        if self.reads is not None:
            self._contract_kept(self.reads)
        no_edge = torch.from_numpy(~self.graph.edge_mask)
        return EdgeScores(
            scores=self.mean(self.scores).masked_fill_(no_edge, 0),
            graph=self.graph,
            loss_corrupted=self.ends.loss_corrupted.cpu(),
            completeness_gap=self.gap().cpu(),
            switches=(self.switches.total() / self.ends.loss_corrupted).cpu(),
            points=torch.full((self.passes.num_pairs,), self.points),
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
            torch.cat([ends.delta_stream[:, None], *map(self._layer, layers)], 1) if keep else None
        )

    def only(self, rows: list[int], ends: Endpoints) -> _Writes:
        """The writes of some pairs, whose `ends` these are."""
        some = copy(self)
        some.ends, some.whole = ends, None if self.whole is None else self.whole[rows]
        return some

    def blocks(self, limit: int) -> Iterator[tuple[slice, Tensor]]:
        """`(rows, writes of those sources)` that cover the first `limit` sources."""
        if self.whole is not None:
            yield slice(0, limit), self.whole[:, :limit]
            return
        yield slice(0, 1), self.ends.delta_stream[:, None]
        graph = self.anatomy.graph
        for layer in range(graph.num_layers):
            start = graph.sources_before_attention(layer)
            stop = min(start + graph.sources_per_layer, limit)
            if start >= limit:
                return
            yield slice(start, stop), self._layer(layer)[:, : stop - start]

    @torch.no_grad()
    def _layer(self, layer: int) -> Float[Tensor, "pairs sources pos d_model"]:
        parts = self.anatomy.layers[layer]
        heads = self.ends.delta_heads[layer].unflatten(-1, (self.anatomy.graph.num_heads, -1))
        columns = parts.head_columns().unflatten(1, (self.anatomy.graph.num_heads, -1))
        written = torch.einsum("pshf,dhf->phsd", heads, columns)
        return torch.cat([written, parts.scale * self.ends.delta_mlps[layer][:, None]], 1)


# -- nodes -----------------------------------------------------------------------------------------


class NodeSums(_Sums):
    """Accumulates the node scores of one batch."""

    nodes = True

    def __init__(self, passes: Passes, ends: Endpoints) -> None:
        super().__init__(passes, ends)
        shape = (passes.num_pairs, passes.anatomy.graph.num_sources)
        self.scores = torch.zeros(shape, device=passes.device)

    def _embed_total(self) -> Float[Tensor, " pairs"]:
        return self.scores[:, 0]

    def only(self, rows: list[int]) -> Self:
        """As every sum has it."""
        some = super().only(rows)
        some.scores = self.scores[rows]
        return some

    def _watched(self, trace: Trace) -> list[Tensor]:
        return [trace.embeds, *trace.mixed, *trace.mlp_out]

    def _read(self, trace: Trace, grads: list[Tensor]) -> None:
        ends, graph = self.ends, self.passes.anatomy.graph
        summed = [self.sum(grad) for grad in grads]
        columns = [(summed[0] * ends.delta_embed).sum((1, 2))[:, None]]
        for layer in range(graph.num_layers):
            at_heads = summed[1 + layer]
            parts = self.passes.anatomy.layers[layer]
            if parts.attention_after is not None:
                at_heads = at_heads @ parts.head_columns() / parts.scale
            at_heads = at_heads * ends.delta_heads[layer]
            columns.append(at_heads.unflatten(-1, (graph.num_heads, -1)).sum((1, 3)))
            at_mlp = summed[1 + graph.num_layers + layer] * ends.delta_mlps[layer]
            columns.append(at_mlp.sum((1, 2))[:, None])
        self.scores += torch.cat(columns, 1)

    def result(self) -> NodeScores:
        """The scores of the batch."""
        return NodeScores(
            scores=self.mean(self.scores),
            graph=self.passes.anatomy.graph,
            loss_corrupted=self.ends.loss_corrupted.cpu(),
            completeness_gap=self.gap().cpu(),
            points=torch.full((self.passes.num_pairs,), self.points),
        )
