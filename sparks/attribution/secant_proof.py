"""Proof by numbers that secants hold on a model, before the first measurement: once a model.

A few random tokens, the last three in two versions, are run with the rules swapped in. The pass
starts from w = D logits at the last position, so that what it must sum to, |w|^2, is no small
difference of large numbers. Relative differences of 1e-4 are allowed, of `_NARROW` in narrow types.

1. Nothing between embeddings and logits is without a rule (`refuse_unknown`).
2. The scores of the edges that cross each cut sum to |w|^2: before every layer's attention, before
   every MLP that reads what the attention wrote, before the logits.
3. With two equal rows, what every destination reads is what plain autograd gives it.

A model that a rule does not fit (routing, a mask or a scale that depends on the tokens) breaks one
of these; EAP-IG is taken in its place, and that is told in one line.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from sparks.attribution.head_gradients import AttentionReader
from sparks.attribution.model_runs import Endpoints, Passes, Trace
from sparks.attribution.path_sums import EdgeSums
from sparks.attribution.secant import ENDS, SecantReader, run_ends
from sparks.attribution.secant_rules import SecantError, Secants, both
from sparks.ground.config import SnapshotConfig
from sparks.models import processes
from sparks.models.anatomy import Anatomy
from sparks.models.anatomy_proof import allowed, signature, take_apart
from sparks.models.graph import Graph
from sparks.models.guard import undisturbed
from sparks.models.hooks import relative_difference, tolerance
from sparks.probes.pairs import TokenPair

_TOKENS = 3
"""Of the prefix, and of each continuation."""
_NARROW = 0.1
"""What sums over a whole network may miss in a narrow type, by rounding at each layer: SmolLM2's 30
layers 0.017 in bfloat16, 0.006 in float16, 0.000006 in float32. A wrong rule misses more."""
_WHOLE = 1 << 62
"""A budget, bytes, under which what is read is kept: so few tokens need little."""

_REFUSALS: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()
"""Models that were tried, with what they were made of and why secants do not hold, if so."""


def settle(model: nn.Module, config: SnapshotConfig) -> SnapshotConfig:
    """The settings with the method that `model` can be measured by.

    Raises:
        SparksError: as `take_apart` does.
    """
    if config.method != "secant":
        return config
    with undisturbed(model):
        why = refusal(take_apart(model))
    if not why:
        return config
    if processes.index() == 0:
        warnings.warn(f"sparks: EAP-IG in place of secants: {why}", stacklevel=2)
    return replace(config, method="eap-ig")


def refusal(anatomy: Anatomy) -> str:
    """Why secants do not hold on a model; empty where they do."""
    made_of = signature(anatomy)
    known = _REFUSALS.get(anatomy.root)
    if known is None or known[0] != made_of:
        known = _REFUSALS[anatomy.root] = made_of, _tried(anatomy)
    return known[1]


def _tried(anatomy: Anatomy) -> str:
    try:
        prove(anatomy)
    except SecantError as error:
        return str(error)
    return ""


def prove(anatomy: Anatomy) -> None:
    """Prove that secants hold on a model.

    Raises:
        SecantError: an operation has no rule, or the numbers do not fit; says which.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(anatomy.vocab_size, (_TOKENS, 3), generator=generator)
    prefix, clean, corrupted = ids.T.tolist()
    passes = Passes(anatomy, [TokenPair(prefix, clean, corrupted)], "last")
    found, trace = run_ends(passes, nodes=False)
    seen = (trace.logits, trace.embeds, *trace.projected[0])
    limit = allowed(anatomy, *(tensor.dtype for tensor in seen))
    if limit > tolerance(torch.float32):
        limit = _NARROW
    seed = _difference(trace.logits)
    scores = _sums(anatomy, passes, found, trace, seed).result().scores[0]
    for name, total in cuts(anatomy.graph, scores):
        if not abs(total - 1) <= limit:
            raise SecantError(
                f"it does not hold that the secants before {name} sum to the whole (they sum to "
                f"{total:.6g} of it, allowed {limit:g} beside 1)"
            )
    plain = passes.interpolate(found, [1.0, 1.0], nodes=False)
    with Secants():
        trace = passes.interpolate(found, [1.0, 1.0], nodes=False)
    secants = _sums(anatomy, passes, found, trace, seed).reads
    gradients = _sums(anatomy, passes, found, plain, seed, plain=True).reads
    assert secants is not None  # the budget holds them
    assert gradients is not None
    if not (apart := relative_difference(secants, gradients)) <= limit:
        raise SecantError(
            f"it does not hold that between equal ends they are the gradient (relative difference "
            f"{apart:.2g}, allowed {limit:g})"
        )


@torch.no_grad()
def _difference(logits: Tensor) -> Tensor:
    """w / |w|^2 in both rows."""
    w = (logits[1::2] - logits[::2]).float()
    return both(w / w.square().sum())


def _sums(
    anatomy: Anatomy,
    passes: Passes,
    found: Endpoints,
    trace: Trace,
    seed: Tensor,
    *,
    plain: bool = False,
) -> EdgeSums:
    reader = AttentionReader if plain else SecantReader
    readers = [reader.of(layer) for layer in anatomy.layers]
    sums = EdgeSums(anatomy, readers, passes, found, _WHOLE)
    sums.take(trace, seed, ENDS)
    return sums


def cuts(graph: Graph, scores: Tensor) -> list[tuple[str, float]]:
    """Of one pair: what reads after each cut, and the sum of the scores that cross it.

    A cut stands before every destination that reads more than the one before it.
    """
    read = graph.sources_read.astype(int)
    columns = np.flatnonzero(np.diff(read, prepend=0))
    return [
        (graph.destinations[column], float(scores[: read[column], column:].sum()))
        for column in columns
    ]
