"""Secant attribution: one backward pass between the two ends, in place of points on a path.

    score(u -> v) = < Delta z_u , G(input of v) >

as EAP-IG's, but G carries *secants* from the clean to the corrupted end where EAP-IG averages
derivatives along a path: for every operation, D output = coefficients . D input holds exactly
(`secant_rules`). So the scores of the edges that cross any cut of the network sum to L, up to
rounding, whatever the model; no points, no quadrature, no gap.

1. Run the shared prefix once, then both continuations, rows of one batch, as EAP-IG does; but with
   the rules swapped in, so that autograd remembers them.
2. L = KL(clean || run) goes from 0 to L between the ends, and with l as in the softmax's rule

       D L = sum_i (l_i / sum l - p_clean,i) D u_i,    u = logits:

   the seed of one backward pass, in both rows of a pair.
3. Split the pass at each attention block over the heads that read (`SecantReader`), and contract
   with Delta z, as EAP-IG does (`path_sums`). The mean over "points" is that over the two ends.

Plain gradients at the clean end would give nothing: L is smallest there. Two rows and one backward
pass cost as much as two points. `secant_proof` says of which models it holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparks.attribution.head_gradients import AttentionReader, HeadGradients
from sparks.attribution.model_runs import Endpoints, Passes, Trace
from sparks.attribution.secant_rules import (
    Secants,
    both,
    ends,
    log_mean,
    mean,
    refuse_unknown,
    rsqrt_slope,
)
from sparks.models.hooks import Norm

ENDS = 2
"""Rows of a pair."""


def run_ends(passes: Passes, *, nodes: bool) -> tuple[Endpoints, Trace]:
    """Both ends of every pair in one run, secants swapped in. `nodes` as in `Passes.interpolate`.

    Raises:
        SecantError: an operation between embeddings and logits has no secant.
        SparksError: an output is not finite.
    """
    trace = Trace()
    with Secants():
        found = passes.endpoints(trace, nodes=nodes)
    refuse_unknown(trace.logits)
    return found, trace


@torch.no_grad()
def loss_secant(logits: Tensor) -> Tensor:
    """D L / D logits, [rows, targets, vocab], the same in both rows of a pair; step 2 above."""
    log_clean, log_corrupted = (end.log_softmax(-1) for end in ends(logits))
    weights = log_mean(log_clean, log_corrupted)
    seed = weights / weights.sum(-1, keepdim=True) - log_clean.exp()
    return both(seed / logits.shape[1])


class SecantReader(AttentionReader):
    """Splits one layer's pass over the heads that read. Sums over the two ends, as over points.

    RMSNorm: y = gamma x s, s = 1 / sqrt(u), u = mean(x^2) + eps, D u = (2 / d) xbar . Dx. With
    g = W_h^T G and t = D s / D u, the read of head h is

        gamma * g sbar + xbar (gamma * g . xbar) t 2 / d:

    the two terms of the derivative at xbar, were 1 / r = sbar and the head's output (without bias)
    y^ = - W_h (gamma * xbar) t 2 / sbar^2. W_h (gamma * xbar) is the mean of the outputs, each
    times its own r.
    """

    def read(
        self, x: Tensor, outputs: list[Tensor], grads: list[Tensor], num_pairs: int
    ) -> HeadGradients:
        """As there; the generic route has the rules swapped in."""
        norm = self.norm
        if norm is None:
            with Secants():
                return super().read(x, outputs, grads, num_pairs)
        x = norm.centre(x)
        u_a, u_b = (end.square().mean(-1, keepdim=True) + norm.eps for end in ends(x))
        scale = (u_a.rsqrt() + u_b.rsqrt()) / 2
        along = -2 * rsqrt_slope(u_a, u_b) / scale.square()
        alike = []
        for module, output in zip(self.layer.projection_modules, outputs, strict=True):
            bias = self.maps[id(module)][1]
            shift = 0 if bias is None else bias.float()
            alike.append(mean((output.float() - shift) * norm.scale(x)) * along + shift)
        summed = [grad.float().unflatten(0, (-1, ENDS)).sum(1) for grad in grads]
        between = _Between(**vars(norm), r=1 / scale)
        reader = AttentionReader(self.layer, between, self.maps)
        return reader.read(mean(x), alike, summed, num_pairs)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Between(Norm):
    """A norm whose r is given."""

    r: Tensor

    def scale(self, x: Tensor) -> Tensor:
        return self.r
