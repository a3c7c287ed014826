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
    """Call `see` with the module's output tensor; what it returns, if anything, replaces it."""

    def hook(owner: nn.Module, _: tuple[Any, ...], out: Any) -> Any:
        if not isinstance(out, Tensor):
            raise SparksError(
                f"{type(owner).__name__} returns {type(out).__name__}, not one tensor: mixtures of "
                f"experts and blocks with several outputs are not supported"
            )
        return see(out)

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
    size = getattr(module, "in_features", None)
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
class RMSNorm:
    """`y = gain * x / r`, `r = sqrt(mean(x^2) + eps)`."""

    gain: Float[Tensor, " d_model"]
    eps: float

    def scale(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows 1"]:
        """r of each row, float32."""
        return (x.float().square().mean(dim=-1, keepdim=True) + self.eps).sqrt()


@torch.no_grad()
def rms_norm(module: nn.Module) -> RMSNorm | None:
    """The module as an `RMSNorm`; None if it computes anything else (tried on a random input)."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    norm = RMSNorm(gain=weight.detach().float(), eps=eps)
    generator = torch.Generator().manual_seed(0)
    # Off-centre, so that a norm that subtracts the mean cannot pass.
    x = (torch.randn(4, weight.shape[0], generator=generator) + 0.5).to(weight.device, weight.dtype)
    found = norm.gain * x.float() / norm.scale(x)
    matches = relative_difference(found, module(x).float()) < tolerance(weight.dtype)
    return norm if matches else None


# -- comparing -------------------------------------------------------------------------------------


def tolerance(dtype: torch.dtype) -> float:
    """Relative difference that rounding alone can make in a sum of a few such numbers."""
    return 1e-4 if torch.finfo(dtype).eps < 1e-5 else 3e-2


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """`||found - expected|| / ||expected||`, Frobenius, float32."""
    found, expected = found.float(), expected.float()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
