"""What of L goes to routers that take other experts along the path, which no gradient sees.

Where a router of a mixture switches, its block's output jumps, and L with it: completeness is
missed by the sum of all jumps, however many points there are. The points that are run anyway tell
it. With L_k at alpha_k, and s_k = (e' - e) . dL/de there, between neighbours

    L_k - L_{k+1} - (alpha_{k+1} - alpha_k) (s_k + s_{k+1}) / 2

is a jump where the routers' choices differ, and error of the quadrature where they do not. The ends
of the path cost one forward pass of two rows; a model without a mixture costs nothing. With few
points a jump's part of the path holds some of the quadrature's error too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sparks.attribution.model_runs import GRADIENT_SCALE, Endpoints, Passes
from sparks.models.hooks import hooks

_MOST_EXPERTS = 4096


class Switches:
    """Jumps of L on the paths of a batch of pairs."""

    def __init__(self, passes: Passes, ends: Endpoints) -> None:
        self._passes, self._ends = passes, ends
        self._experts = [
            experts for layer in passes.anatomy.layers if (experts := layer.experts) is not None
        ]
        self._seen: list[Tensor] = []
        self._kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        """alpha, L, s and choices of some points, [pairs, points] each."""
        if not self._experts:
            return
        with self.watched():
            losses = passes.losses(ends, [0.0, 1.0])
        if not self._seen:  # routed in another way (Llama 4): nothing is claimed
            self._experts = []
            return
        alphas = torch.tensor([[0.0, 1.0]], device=losses.device).expand_as(losses)
        self._kept.append((alphas, losses, torch.full_like(losses, torch.nan), self._choices()))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Notes what the routers choose in the run inside."""
        self._seen = []
        with hooks() as handles:
            for experts in self._experts:
                handles.append(experts.register_forward_pre_hook(self._note, with_kwargs=True))
            yield

    def _note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)]
        self._seen += [item for item in given if not item.is_floating_point()][:1]

    def _choices(self) -> Int64[Tensor, "pairs points"]:
        """A number for each row: the same where all routers take the same experts."""
        suffix = self._passes.suffix
        table = torch.Generator().manual_seed(0)
        marks = torch.randint(-(2**62), 2**62, (_MOST_EXPERTS,), generator=table)
        marks = marks.to(self._passes.device)
        places = 2 * torch.arange(suffix, device=self._passes.device) + 1  # odd: none is lost
        found = torch.zeros((), dtype=torch.int64, device=self._passes.device)
        for index, chosen in enumerate(self._seen):
            rows = chosen.reshape(-1, suffix, chosen.shape[-1])
            marked = marks[(rows + 257 * index) % _MOST_EXPERTS].sum(-1)  # wraps, as meant
            found = found + (marked * places).sum(-1)
        return found.unflatten(0, (self._passes.num_pairs, -1))

    def add(
        self,
        alphas: list[float] | Tensor,
        weights: Float[Tensor, "pairs points"] | None,
        logits: Tensor,
        at_embeds: Tensor,
    ) -> None:
        """Take in points that `watched` has seen: their logits, and `Passes.gradients` there."""
        if not self._experts:
            return
        losses = self._passes.divergences(self._ends, logits)
        slopes = at_embeds.float().unflatten(0, (len(losses), -1)) * self._ends.delta_embed[:, None]
        slopes = slopes.sum((2, 3)) / GRADIENT_SCALE
        if weights is not None:
            slopes = slopes / weights
        places = torch.as_tensor(alphas, dtype=losses.dtype, device=losses.device)
        self._kept.append((places.expand_as(losses), losses, slopes, self._choices()))

    def total(self) -> Float[Tensor, " pairs"]:
        """Sum of all jumps, from the clean to the corrupted end, nats; 0 without a mixture."""
        if not self._experts:
            return torch.zeros_like(self._ends.loss_corrupted)
        alphas, losses, slopes, choices = (
            torch.cat(parts, 1) for parts in zip(*self._kept, strict=True)
        )
        order = alphas.argsort(1)
        alphas, losses, slopes, choices = (
            item.gather(1, order) for item in (alphas, losses, slopes, choices)
        )
        slopes[:, 0], slopes[:, -1] = slopes[:, 1], slopes[:, -2]
        smooth = alphas.diff(dim=1) * (slopes[:, 1:] + slopes[:, :-1]) / 2
        return ((-losses.diff(dim=1) - smooth) * (choices.diff(dim=1) != 0)).sum(1)

    def only(self, passes: Passes, ends: Endpoints, rows: list[int]) -> Switches:
        """Those of some pairs of the batch, whose passes and ends these are."""
        some = copy(self)
        some._passes, some._ends = passes, ends
        some._kept = [
            (alphas[rows], losses[rows], slopes[rows], choices[rows])
            for alphas, losses, slopes, choices in self._kept
        ]
        return some
