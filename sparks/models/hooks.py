"""Single modules of a model: watching what goes in and out, and reading a module as a formula.

Knows nothing of architectures: `anatomy` says which module is what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparks.ground.errors import SparksError

# -- hooks -----------------------------------------------------------------------------------------


@contextmanager
def hooks() -> Iterator[list[RemovableHandle]]:
    """A list of hook handles, all removed at the end whatever happens."""
    handles: list[RemovableHandle] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def on_input(module: nn.Module, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call `see` with the module's first argument; what it returns, if anything, replaces it."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            seen = see(args[0])
            return None if seen is None else ((seen, *args[1:]), kwargs)
        name = "hidden_states"
        seen = see(kwargs[name])
        return None if seen is None else (args, kwargs | {name: seen})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def on_output(module: nn.Module, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call `see` with the module's output tensor; what it returns, if anything, replaces it.

    Of several outputs the first is taken: others are attention weights, or a router's choices.
    Tokens that a mixture lays in one row are seen as its input has them.
    """

    def hook(owner: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        first = out[0] if isinstance(out, tuple) else out
        if not isinstance(first, Tensor):
            raise SparksError(
                f"{type(owner).__name__} returns {type(first).__name__} where a tensor is wanted"
            )
        flat = bool(args) and isinstance(args[0], Tensor) and args[0].dim() > first.dim()
        if flat:
            first = first.view(*args[0].shape[:-1], -1)
        seen = see(first)
        if seen is None and not flat:
            return None
        seen = first if seen is None else seen
        return (seen, *out[1:]) if isinstance(out, tuple) else seen

    return module.register_forward_hook(hook)


# -- linear pieces ---------------------------------------------------------------------------------


def linear_map(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """`(weight [out, in], bias [out] or None)` of a module that is affine in its input, else None.

    A plain `nn.Linear` is read. Anything else (LoRA, DoRA, weight-only quantisation) is applied to
    the identity, which gives its effective weight exactly, and checked on a random input.
    """
    weight = getattr(module, "weight", None)
    if type(module) is nn.Linear and weight is not None:
        return module.weight.detach(), None if module.bias is None else module.bias.detach()
    return _probe_linear_map(module)


@torch.no_grad()
def _probe_linear_map(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    size = getattr(module, "in_features", getattr(module, "nx", None))  # nx: GPT-2's Conv1D
    reference = next(iter(module.parameters()), None)
    if not isinstance(size, int) or reference is None:
        return None
    dtype = reference.dtype if reference.dtype.is_floating_point else torch.float32
    eye = torch.eye(size, dtype=dtype, device=reference.device)
    bias = module(torch.zeros_like(eye[:1]))[0].float()
    weight = module(eye).float().T - bias[:, None]
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(4, size, generator=generator).to(reference.device)
    expected = module(probe.to(dtype)).float()
    found = probe @ weight.T + bias
    # Quantised weights are multiplied in a type of their own, mostly bfloat16.
    limit = tolerance(dtype if reference.dtype.is_floating_point else torch.bfloat16)
    return (weight, bias) if relative_difference(found, expected) < limit else None


@dataclass(frozen=True, eq=False)
class Norm:
    """`y = gain * x / r + shift`, `r = sqrt(mean(x^2) + eps)`; `centred`, of x less its mean."""

    gain: Float[Tensor, " d_model"]
    eps: float
    shift: Float[Tensor, " d_model"] | None = None
    centred: bool = False

    def centre(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """x, float32, less its mean where the norm does so; a projection, so its own transpose."""
        x = x.float()
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def scale(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows 1"]:
        """r of each row, float32."""
        return (self.centre(x).square().mean(dim=-1, keepdim=True) + self.eps).sqrt()

    def __call__(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """y, float32."""
        found = self.gain * self.centre(x) / self.scale(x)
        return found if self.shift is None else found + self.shift


@torch.no_grad()
def norm_of(module: nn.Module) -> Norm | None:
    """The module as a formula; None if it computes anything else (tried on a random input).

    RMSNorm or LayerNorm; its gain is the weight, or 1 + weight (Gemma, Nemotron).
    """
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    generator = torch.Generator().manual_seed(0)
    # Off-centre, so that a norm that subtracts the mean differs from one that does not.
    x = (torch.randn(4, weight.shape[0], generator=generator) + 0.5).to(weight.device, weight.dtype)
    expected, gain = module(x).float(), weight.detach().float()
    shift = bias.detach().float() if isinstance(bias, Tensor) else None
    norms = [
        Norm(gain=offset + gain, eps=eps, shift=shift, centred=centred)
        for centred in (False, True)
        for offset in (0, 1)
    ]
    differences = [relative_difference(norm(x), expected) for norm in norms]
    best = min(range(len(norms)), key=differences.__getitem__)  # large gains are near to both
    return norms[best] if differences[best] < tolerance(weight.dtype) else None


# -- comparing -------------------------------------------------------------------------------------


def tolerance(dtype: torch.dtype) -> float:
    """Relative difference that rounding alone can make in a sum of a few such numbers."""
    return 1e-4 if torch.finfo(dtype).eps < 1e-5 else 3e-2


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """`||found - expected|| / ||expected||`, Frobenius, float32."""
    found, expected = found.float(), expected.float()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
