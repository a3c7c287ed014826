"""Gradients of L at what each attention head reads from the residual stream, summed over steps.

The gradient at the layer's input is a sum over its query, key and value heads; an edge needs the
part of each head alone. Symbols: x = the residual row, y = norm(x), c = dL/d(projection output) of
one head, W = that head's rows of the projection, gamma = the norm's gain, r = sqrt(mean(x^2) +
eps), y^ = the projection's output without bias.

Factored route (RMSNorm before an affine projection):

    sum_k J_k^T W^T c_k = gamma * W^T (sum_k c_k / r_k) - sum_k x_k (y^_k . c_k) / (d r_k^2)

so a step costs head-sized work, and the projection is applied once.

Generic route (anything else): the exact vector-Jacobian product of the norm -> projection piece
with c restricted to one head, head by head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparks.models.anatomy import Layer, Projection
from sparks.models.hooks import RMSNorm, linear_map, rms_norm

HeadGradients = Float[Tensor, "pairs heads pos d_model"]


@dataclass(frozen=True, eq=False)
class AttentionReader:
    """Splits the gradients of one layer's attention over the heads that read. Made by `of`."""

    layer: Layer
    norm: RMSNorm | None
    """None sends the layer through the generic route."""
    maps: dict[int, tuple[Tensor, Tensor | None]]
    """`id` of a projection module -> its weight and bias; empty on the generic route."""

    @classmethod
    def of(cls, layer: Layer, *, generic: bool = False) -> AttentionReader:
        """Choose the route: factored where it is exact, else (or on request) generic."""
        norm = None if generic else rms_norm(layer.attention_norm)
        maps = {} if norm is None else {id(m): linear_map(m) for m in layer.projection_modules}
        if norm is None or None in maps.values():
            return cls(layer, None, {})
        return cls(layer, norm, maps)  # type: ignore[arg-type]

    def read(
        self, x: Tensor, outputs: list[Tensor], grads: list[Tensor], num_pairs: int
    ) -> HeadGradients:
        """Sum over steps of the gradient at each head's input: queries, keys, values in that order.

        `x` is [pairs * steps, pos, d_model]; `outputs` and `grads` belong to the layer's projection
        modules, [pairs * steps, pos, features].
        """
        if self.norm is None:
            return self._read_generic(x, outputs, grads, num_pairs)
        return self._read_factored(self.norm, x, outputs, grads, num_pairs)

    @torch.no_grad()
    def _read_factored(
        self, norm: RMSNorm, x: Tensor, outputs: list[Tensor], grads: list[Tensor], num_pairs: int
    ) -> HeadGradients:
        modules = [id(module) for module in self.layer.projection_modules]
        by_module = dict(zip(modules, zip(outputs, grads, strict=True), strict=True))
        x = x.float()
        scale = norm.scale(x)
        direct, radial = [], []
        for item in self.layer.projections:
            output, grad = by_module[id(item.module)]
            weight, bias = self.maps[id(item.module)]
            c = _heads(grad, item).float()
            y = _heads(output, item).float()
            if bias is not None:
                y = y - bias[item.features].float().unflatten(0, (item.heads, -1))
            radial.append((y * c).sum(-1))
            summed = (c / scale[..., None]).unflatten(0, (num_pairs, -1)).sum(1)
            rows = weight[item.features].float().unflatten(0, (item.heads, -1))
            direct.append(torch.einsum("pshf,hfd->phsd", summed, rows))
        # [pairs, pos, steps, heads] and [pairs, pos, steps, d_model]: one small product a position
        weights = torch.cat(radial, -1) / (x.shape[-1] * scale.square())
        weights = weights.unflatten(0, (num_pairs, -1)).transpose(1, 2)
        rows = x.unflatten(0, (num_pairs, -1)).transpose(1, 2)
        along_x = (weights.transpose(-1, -2) @ rows).transpose(1, 2)
        return torch.cat(direct, 1).mul_(norm.gain).sub_(along_x)

    def _read_generic(
        self, x: Tensor, outputs: list[Tensor], grads: list[Tensor], num_pairs: int
    ) -> HeadGradients:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            normed = self.layer.attention_norm(leaf)
            again = [module(normed) for module in self.layer.projection_modules]
        modules = [id(module) for module in self.layer.projection_modules]
        found = []
        for item in self.layer.projections:
            place = modules.index(id(item.module))
            for head in range(item.heads):
                start = item.start + head * item.head_dim
                alone = torch.zeros_like(grads[place])
                alone[..., start : start + item.head_dim] = grads[place][
                    ..., start : start + item.head_dim
                ]
                (at_x,) = torch.autograd.grad(again[place], leaf, alone, retain_graph=True)
                found.append(at_x.float().unflatten(0, (num_pairs, -1)).sum(1))
        return torch.stack(found, 1)


def _heads(tensor: Tensor, item: Projection) -> Float[Tensor, "rows pos heads head_dim"]:
    return tensor[..., item.features].unflatten(-1, (item.heads, item.head_dim))
