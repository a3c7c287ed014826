"""Exact EAP-IG scores on native Hugging Face decoders, at the cost of a bare forward and backward.

EAP-IG, "inputs" variant (Hanna et al. 2024, https://arxiv.org/abs/2403.17806; paper Eq. 3):

    score(u -> v | x) = < Delta z_u , (1/m) sum_k dL/d(input of v) at alpha_k >

summed over the residual dimension and positions, Delta z_u = what u writes in the corrupted run
minus the clean run, L = KL(clean || run), and every token embedding moved together along
z' + alpha (z - z').

In steps:
1. run the prefix that both prompts share once; its Delta z is 0 and, with a causal mask, no
   gradient path of a later position runs through it; what the prefixes of many pairs begin with
   is run once for all of them (`model_runs`);
2. run the clean and the corrupted continuation without gradients: Delta z of every node;
3. run m points of the path as rows of a batch; ask autograd for gradients at activations only;
4. split the gradient of each attention block over its heads, summed over the points
   (`head_gradients`);
5. where a tolerance is set, give the pairs whose completeness gap is above it more points and go
   back to 3, up to `max_points`: sums are kept, only points that are new are run (`quadrature`);
   what routers of a mixture take by switching experts is no part of the gap (`routing`);
6. contract once: [sources, pos * d_model] x [pos * d_model, destinations].

Symbol map: z' = corrupted, z = clean, m = `points`, alpha_k =
`quadrature.alphas_of`, L = KL at the last position (`positions="last"`) or its mean over the
continuation ("all"). What differs from the official code: key and value destinations are the heads
that the model has (the official columns of a group sum to ours); scores are accumulated in float32
whatever the model's type; `midpoint` is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from tqdm import tqdm

from sparks.attribution.batches import Schedule
from sparks.attribution.head_gradients import AttentionReader
from sparks.attribution.model_runs import Endpoints, Passes
from sparks.attribution.path_sums import EdgeSums, NodeSums, Sums, until_steady
from sparks.attribution.quadrature import (
    largest,
)
from sparks.attribution.scores import EdgeScores, NodeScores
from sparks.attribution.secant import ENDS, SecantReader, loss_secant, run_ends
from sparks.attribution.secant_proof import settle
from sparks.ground.config import Method, Positions, Quadrature, SnapshotConfig
from sparks.models.guard import undisturbed
from sparks.models.memory import MemoryEstimate, Progress
from sparks.probes.pairs import TokenPair

_DEFAULTS = SnapshotConfig()


def edge_attribution(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    *,
    method: Method = _DEFAULTS.method,
    points: int | None = None,
    tolerance: float | None = None,
    max_points: int = _DEFAULTS.max_points,
    quadrature: Quadrature = _DEFAULTS.quadrature,
    positions: Positions = _DEFAULTS.positions,
    memory_gib: float = _DEFAULTS.memory_gib,
    progress: Progress | None = None,
    spared: Progress | None = None,
) -> EdgeScores:
    """EAP-IG score of every edge, for every pair.

    Args:
        model: a Hugging Face causal language model, PEFT-wrapped or not. Left exactly as found.
        pairs: token ids; continuations and prefixes may differ in length from pair to pair.
        method: `eap-ig`, or `secant` (see there): one pass in place of points. Of a model that has
            no secants EAP-IG is taken, which is warned of; the settings of points serve it alone.
        points: m, points on the path; with a tolerance, the m to start from. None takes the
            defaults of `SnapshotConfig`.
        tolerance: completeness gap aimed at: m grows, pair by pair, until the gap is not above it,
            or was hardly moved by the last growth, as rounding in narrow types is. None keeps m.
        max_points: m grows while it stays at most this.
        quadrature: where they lie, see `quadrature`.
        positions: L at the `last` position, or its mean over `all` positions of the continuation.
        memory_gib: budget for activations; pairs and points are split to stay under it.
        progress: called with the number of (pair, point) rows just done, of at most `len(pairs)`
            times `quadrature.largest`.
        spared: called with the number of those rows that pairs turned out not to need.

    Raises:
        SparksError: no pairs, a token outside the vocabulary, a pair longer than the model's
            context, an unknown architecture, or activations that are not finite.
    """
    parts = list(
        iter_edge_attribution(
            model, pairs, method=method, points=points, tolerance=tolerance, max_points=max_points,
            quadrature=quadrature, positions=positions, memory_gib=memory_gib, progress=progress,
            spared=spared,
        )
    )  # fmt: skip
    order = torch.tensor([index for indices, _ in parts for index in indices]).argsort()
    return EdgeScores(
        scores=torch.cat([part.scores for _, part in parts])[order],
        graph=parts[0][1].graph,
        loss_corrupted=torch.cat([part.loss_corrupted for _, part in parts])[order],
        completeness_gap=torch.cat([part.completeness_gap for _, part in parts])[order],
        switches=torch.cat([part.switches for _, part in parts])[order],
        points=torch.cat([part.points for _, part in parts])[order],
        precision=parts[0][1].precision,
    )


def iter_edge_attribution(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    *,
    method: Method = _DEFAULTS.method,
    points: int | None = None,
    tolerance: float | None = None,
    max_points: int = _DEFAULTS.max_points,
    quadrature: Quadrature = _DEFAULTS.quadrature,
    positions: Positions = _DEFAULTS.positions,
    memory_gib: float = _DEFAULTS.memory_gib,
    progress: Progress | None = None,
    spared: Progress | None = None,
) -> Iterator[tuple[list[int], EdgeScores]]:
    """`edge_attribution` a batch at a time: `(indices of the pairs, their scores)`.

    Batches come in the order that suits the machine. For sets whose scores would not fit in memory.
    """
    config = SnapshotConfig(
        method=method, points=points, tolerance=tolerance, max_points=max_points,
        quadrature=quadrature, positions=positions, memory_gib=memory_gib,
    )  # fmt: skip
    for indices, scores, _ in edge_parts(model, pairs, config, progress, spared):
        yield indices, scores


def edge_parts(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    config: SnapshotConfig,
    progress: Progress | None,
    spared: Progress | None,
) -> Iterator[tuple[list[int], EdgeScores, Passes]]:
    """`iter_edge_attribution`, and beside the scores of some pairs what runs them.

    Further runs need not run the prefix again; for them the model must be `undisturbed`, and its
    weights as they were.
    """
    config = settle(model, config)
    with undisturbed(model):
        work = Schedule(model, pairs, config)
        reader = SecantReader if config.method == "secant" else AttentionReader
        readers = [reader.of(layer) for layer in work.anatomy.layers]

    def sums(passes: Passes, ends: Endpoints) -> EdgeSums:
        return EdgeSums(work.anatomy, readers, passes, ends, work.budget)

    for indices in work.batches():
        with undisturbed(model):  # not around the yield: there the model is the caller's again
            found = _summed(sums, indices, work, config, progress, spared)
            results = [(done, part.result(), part.passes) for done, part in found]
        yield from results


def _summed(
    sums: Callable[[Passes, Endpoints], Sums],
    indices: list[int],
    work: Schedule,
    config: SnapshotConfig,
    progress: Progress | None,
    spared: Progress | None,
) -> Iterator[tuple[list[int], Sums]]:
    """The sums of one batch, by either method: `(pairs done, their run)`."""
    if config.method == "eap-ig":
        run = sums(*work.prepare(indices))
        yield from until_steady(run, indices, work, config, progress, spared)
        return
    passes = work.passes(indices)
    ends, trace = run_ends(passes, nodes=sums is NodeSums)
    run = sums(passes, ends)
    run.take(trace, loss_secant(trace.logits), ENDS)
    if progress is not None:
        progress(ENDS * len(indices))
    yield indices, run


def node_attribution(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    *,
    method: Method = _DEFAULTS.method,
    points: int | None = None,
    tolerance: float | None = None,
    max_points: int = _DEFAULTS.max_points,
    quadrature: Quadrature = _DEFAULTS.quadrature,
    positions: Positions = _DEFAULTS.positions,
    memory_gib: float = _DEFAULTS.memory_gib,
    progress: Progress | None = None,
    spared: Progress | None = None,
) -> NodeScores:
    """EAP-IG score of every node (embedding, heads, MLPs): for when edges are not wanted.

    Arguments and errors as for `edge_attribution`.
    """
    config = SnapshotConfig(
        method=method, points=points, tolerance=tolerance, max_points=max_points,
        quadrature=quadrature, positions=positions, memory_gib=memory_gib,
    )  # fmt: skip
    config = settle(model, config)
    order: list[int] = []
    parts: list[NodeScores] = []
    with undisturbed(model):
        work = Schedule(model, pairs, config)
        for indices in work.batches():
            for done, part in _summed(NodeSums, indices, work, config, progress, spared):
                order += done
                parts.append(part.result())
    back = torch.tensor(order).argsort()
    return NodeScores(
        scores=torch.cat([part.scores for part in parts])[back],
        graph=work.anatomy.graph,
        loss_corrupted=torch.cat([part.loss_corrupted for part in parts])[back],
        completeness_gap=torch.cat([part.completeness_gap for part in parts])[back],
        points=torch.cat([part.points for part in parts])[back],
    )


def estimate_memory(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    *,
    method: Method = _DEFAULTS.method,
    points: int | None = None,
    tolerance: float | None = None,
    max_points: int = _DEFAULTS.max_points,
    positions: Positions = _DEFAULTS.positions,
    memory_gib: float = _DEFAULTS.memory_gib,
) -> MemoryEstimate:
    """What `edge_attribution` with these arguments is going to need, before it runs.

    Costs one forward pass of the longest pair. Raises as `edge_attribution` does.
    """
    config = SnapshotConfig(
        method=method, points=points, tolerance=tolerance, max_points=max_points,
        positions=positions, memory_gib=memory_gib,
    )  # fmt: skip
    config = settle(model, config)
    with undisturbed(model):
        return Schedule(model, pairs, config).estimate


def points_bar(pairs: int, config: SnapshotConfig, name: str, *, shown: bool) -> tqdm:
    """A bar for `progress` and `spared`, which only goes forward.

    Its whole is all points that the pairs may come to need; those that are spared count as done.
    How many there are says little, so that the share alone is shown.
    """
    return tqdm(
        total=pairs * largest(config.quadrature, config.first_points, config.most_points),
        desc=name,
        leave=False,
        disable=not shown,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
    )
