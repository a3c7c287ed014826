"""Gradients of L at what each attention head reads from the residual stream, summed over steps.

The gradient at the layer's input is a sum over its query, key and value heads; an edge needs the
part of each head alone. Symbols: x = the residual row, y = norm(x), c = dL/d(projection output) of
one head, W = that head's rows of the projection, gamma = the norm's gain, r = sqrt(mean(x^2) +
eps), y^ = the projection's output without bias.

Factored route (RMSNorm or LayerNorm before an affine projection):

    sum_k J_k^T W^T c_k = gamma * W^T (sum_k c_k / r_k) - sum_k x_k (y^_k . c_k) / (d r_k^2)

So a step costs head-sized work, and the projection is applied once. A LayerNorm is the same for x
less its mean, with its shift as a part of the bias; the mean over features then goes from the sum
too, for taking it away is a projection. A block without a norm before it has the first term alone,
with gamma = r = 1.

Generic route (anything else): the exact vector-Jacobian product of the norm -> projection piece
with c restricted to one head, head by head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparks.models.anatomy import Layer, Projection
from sparks.models.hooks import Norm, linear_map, norm_of

HeadGradients = Float[Tensor, "pairs heads pos d_model"]


@dataclass(frozen=True, eq=False)
class AttentionReader:
    """Splits the gradients of one layer's attention over the heads that read. Made by `of`."""

    layer: Layer
    norm: Norm | None
    """None where there is none, or on the generic route."""
    maps: dict[int, tuple[Tensor, Tensor | None]]
    """`id` of a projection module -> its weight and what it gives for a row of zeros, if anything;
    empty sends the layer through the generic route."""

    @classmethod
    def of(cls, layer: Layer, *, generic: bool = False) -> AttentionReader:
        """Choose the route: factored where it is exact, else (or on request) generic."""
        norm = None if layer.attention_norm is None else norm_of(layer.attention_norm)
        if generic or (norm is None and layer.attention_norm is not None):
            return cls(layer, None, {})
        shift, maps = None if norm is None else norm.shift, {}
        for module in layer.projection_modules:
            if (found := linear_map(module)) is None:
                return cls(layer, None, {})
            weight, bias = found
            if shift is not None:
                bias = weight.float() @ shift + (0 if bias is None else bias.float())
            maps[id(module)] = weight, bias
        return cls(layer, norm, maps)

    def read(
        self, x: Tensor, outputs: list[Tensor], grads: list[Tensor], num_pairs: int
    ) -> HeadGradients:
        """Sum over steps of the gradient at each head's input: queries, keys, values in that order.

        `x` is [pairs * steps, pos, d_model]; `outputs` and `grads` belong to the layer's projection
        modules, [pairs * steps, pos, features].
        """
        if not self.maps:
            return self._read_generic(x, outputs, grads, num_pairs)
        return self._read_factored(x, outputs, grads, num_pairs)

    @torch.no_grad()
    def _read_factored(
        self, x: Tensor, outputs: list[Tensor], grads: list[Tensor], num_pairs: int
    ) -> HeadGradients:
        modules = [id(module) for module in self.layer.projection_modules]
        by_module = dict(zip(modules, zip(outputs, grads, strict=True), strict=True))
        norm = self.norm
        x = x.float() if norm is None else norm.centre(x)
        scale = None if norm is None else norm.scale(x)
        direct, radial = [], []
        for item in self.layer.projections:
            output, grad = by_module[id(item.module)]
            weight, bias = self.maps[id(item.module)]
            c = _heads(grad, item).float()
            if scale is not None:
                y = _heads(output, item).float()
                if bias is not None:
                    y = y - bias[item.features].float().unflatten(0, (item.heads, -1))
                radial.append((y * c).sum(-1))
                c = c / scale[..., None]
            summed = c.unflatten(0, (num_pairs, -1)).sum(1)
            rows = weight[item.features].float().unflatten(0, (item.heads, -1))
            direct.append(torch.einsum("pshf,hfd->phsd", summed, rows))
        if norm is None or scale is None:
            return torch.cat(direct, 1)
        # [pairs, pos, steps, heads] and [pairs, pos, steps, d_model]: one small product a position
        weights = torch.cat(radial, -1) / (x.shape[-1] * scale.square())
        weights = weights.unflatten(0, (num_pairs, -1)).transpose(1, 2)
        rows = x.unflatten(0, (num_pairs, -1)).transpose(1, 2)
        along_x = (weights.transpose(-1, -2) @ rows).transpose(1, 2)
        return norm.centre(torch.cat(direct, 1).mul_(norm.gain).sub_(along_x))

    def _read_generic(
        self, x: Tensor, outputs: list[Tensor], grads: list[Tensor], num_pairs: int
    ) -> HeadGradients:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            normed = self.layer.normed(leaf)
            again = [module(normed) for module in self.layer.projection_modules]
        modules = [id(module) for module in self.layer.projection_modules]
        found = []
        for item in self.layer.projections:
            place = modules.index(id(item.module))
            for head in range(item.heads):
                features = item.place(head)
                alone = torch.zeros_like(grads[place])
                alone[..., features] = grads[place][..., features]
                (at_x,) = torch.autograd.grad(again[place], leaf, alone, retain_graph=True)
                found.append(at_x.float().unflatten(0, (num_pairs, -1)).sum(1))
        return torch.stack(found, 1)


def _heads(tensor: Tensor, item: Projection) -> Float[Tensor, "rows pos heads head_dim"]:
    return tensor[..., item.features].unflatten(-1, (item.heads, item.head_dim))
