"""Turns attention heads off, down or up, or to their mean, while the model runs.

A head's write into the residual stream is linear in its slice of the `o_proj` input, so that is
where an intervention acts. With x the slice, s the factor and m the head's mean over a reference
set (0 where none is given):

    x becomes m + s (x - m)

Where a norm stands behind the attention (Gemma 2 and 3, OLMo 2), it then divides by what is left.

s = 0 is zero ablation ("Thinking Sparks!", https://arxiv.org/abs/2509.25758, its main one), with m
mean ablation; s = 1.3 and 0.5 are the paper's scaling up and down. Keys and values that heads share
(grouped-query attention) are not touched, adapters and generation caches need nothing of their own:
every forward pass, also of one token behind a cache, goes through the same place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparks.effects.head_means import HeadMeans
from sparks.ground.errors import SparksError
from sparks.models.anatomy import Anatomy, Layer
from sparks.models.anatomy_proof import take_apart
from sparks.models.guard import undisturbed
from sparks.models.heads import Head, check_heads
from sparks.models.hooks import hooks, on_input


@contextmanager
def intervene(
    model: nn.Module,
    heads: Iterable[Sequence[int]],
    *,
    scale: float = 0.0,
    means: HeadMeans | None = None,
) -> Iterator[None]:
    """Inside, the heads give m + scale (x - m); afterwards the model is as it was, to the bit.

    Contexts may be nested. Weights are never touched.

    Args:
        model: a Hugging Face causal language model; PEFT around it counts.
        heads: pairs of layer and head, as `parse_heads` gives them.
        scale: factor s; 0 turns the heads off.
        means: m, from `measure_head_means`; None takes 0. Means by position are used where they
            are there.

    Raises:
        SparksError: no heads, one that the model does not have, a factor that is not finite, means
            of another model, or an architecture that is not known.
    """
    anatomy, chosen = checked(model, heads, scale=scale, means=means)
    with hooks() as handles:
        for index in sorted({layer for layer, _ in chosen}):
            here = [head for layer, head in chosen if layer == index]
            edit = _Edit(anatomy, index, here, scale, means)
            handles += edit.attach(anatomy.layers[index])
        yield


def checked(
    model: nn.Module, heads: Iterable[Sequence[int]], *, scale: float, means: HeadMeans | None
) -> tuple[Anatomy, tuple[Head, ...]]:
    """The parts of the model and the heads, after everything that can be wrong was looked at.

    Raises:
        SparksError: as `intervene`.
    """
    with undisturbed(model):
        anatomy = take_apart(model)
    graph = anatomy.graph
    found = check_heads(heads, num_layers=graph.num_layers, num_heads=graph.num_heads)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise SparksError(f"scale must be a finite number, got {scale!r}: 0 turns heads off")
    expected = (graph.num_layers, graph.num_heads, anatomy.layers[0].query.head_dim)
    if means is not None and (shape := tuple(means.overall.shape)) != expected:
        raise SparksError(
            f"the means are of another model: shape {shape}, this one needs {expected} (layers, "
            f"heads, head_dim)"
        )
    return anatomy, found


class _Edit:
    """What is done to the heads of one layer."""

    def __init__(
        self,
        anatomy: Anatomy,
        index: int,
        heads: Sequence[int],
        scale: float,
        means: HeadMeans | None,
    ) -> None:
        shape = anatomy.graph.num_heads, anatomy.layers[index].query.head_dim
        self._factor = torch.ones(shape)
        self._factor[list(heads)] = scale
        self._shift: Tensor | None = None
        self._shifts: Tensor | None = None
        if means is not None:
            self._shift = self._fixed(means.overall[None, index], heads, scale)[0]
            if means.by_position is not None:
                self._shifts = self._fixed(means.by_position[:, index], heads, scale)
        self._factor = self._factor.flatten()
        self._positions: Tensor | None = None

    def _fixed(
        self, means: Float[Tensor, "pos heads head_dim"], heads: Sequence[int], scale: float
    ) -> Float[Tensor, "pos features"]:
        """(1 - s) m for the heads, 0 for the others."""
        shift = torch.zeros_like(means)
        shift[:, list(heads)] = (1 - scale) * means[:, list(heads)]
        return shift.flatten(1)

    def attach(self, layer: Layer) -> list[Any]:
        found = [on_input(layer.output, self._edited)]
        if self._shifts is not None:
            found.append(layer.attention.register_forward_pre_hook(self._note, with_kwargs=True))
        return found

    def _note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._positions = kwargs.get("position_ids")
        if self._positions is None:
            raise SparksError(
                "this model does not tell its attention where tokens stand: means by position "
                "cannot be used, take the mean over all positions"
            )

    def _edited(self, mixed: Tensor) -> Tensor:
        self._factor = self._factor.to(mixed.device)
        edited = mixed * self._factor.to(mixed.dtype)
        if self._shift is None:
            return edited
        if self._shifts is None or self._positions is None:
            return edited + self._shift.to(mixed.device, mixed.dtype)
        # Behind the last position that the reference reaches: the mean over all.
        table = torch.cat([self._shifts, self._shift[None]])
        places = self._positions.cpu().clamp(max=len(table) - 1)
        return edited + table[places].to(mixed.device, mixed.dtype)
