"""Secants in place of derivatives: the rules, an operation each, and the mode that swaps them in.

Two runs of a model are rows of one batch: rows 2 i and 2 i + 1 are the ends a and b of pair i. For
one tensor let D = b - a, bar = (a + b) / 2. A rule says how D of an operation's output follows from
D of its inputs, *exactly*, with coefficients that are known once both ends are:

    product, matmul   D(x y) = ybar Dx + xbar Dy
    elementwise f     Df = (f(b) - f(a)) / (b - a) Dx; near b = a, Simpson's mean of f' between them
    powers            x^2: a + b; x^3: a^2 + a b + b^2; with s = f(x): sqrt 1 / (s_a + s_b);
                      1 / x: - s_a s_b; 1 / sqrt(x): - (s_a s_b)^2 / (s_a + s_b)
    softmax p of u    with l = (p_b - p_a) / (log p_b - log p_a), the logarithmic mean:
                      Dp = l (Du - sum l Du / sum l), D log sum exp u = sum l Du / sum l
    attention         D(P V) = Pbar DV + DP Vbar, DS = scale (Dq kbar + qbar Dk)
    norms             by the product, power and elementwise rules

A linear operation needs no rule. So L(b) - L(a) = < D x , G(x) > on every cut of the network, where
G is what autograd makes of these coefficients in a backward pass, in both rows of a pair alike.
Where a = b, G is the gradient.

What a rule computes is float32 whatever the model's type, for differences lose digits. An operation
that is neither linear nor known is found in autograd's graph, and refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from sparks.ground.errors import SparksError

_NEAR = 0.05
"""Ends are near where |b - a| is below this share of 1 + |bar|: a quotient would lose digits."""


class SecantError(SparksError):
    """A model has an operation that no secant is known of, or its secants do not add up."""


class Secants(TorchFunctionMode):
    """Inside, what is computed from a tensor that requires a gradient has secants for derivatives.

    Weights must be frozen (`guard.undisturbed`).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """As torch calls it, for every function and method."""
        rule = _RULES.get(getattr(func, "__name__", ""))
        if rule is None or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        return rule(func, *args, **(kwargs or {}))


# -- both ends -------------------------------------------------------------------------------------


def ends(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The ends a and b of each pair, in float32 at least."""
    return _wide(rows[::2]), _wide(rows[1::2])


def mean(rows: Tensor) -> Tensor:
    """bar of each pair."""
    a, b = ends(rows)
    return (a + b) / 2


def both(pairs: Tensor) -> Tensor:
    """What belongs to a pair, in both of its rows."""
    return pairs.repeat_interleave(2, 0)


def log_mean(log_a: Tensor, log_b: Tensor) -> Tensor:
    """The logarithmic mean (b - a) / (log b - log a) of two positive numbers, from their logs."""
    lowest = torch.finfo(log_a.dtype).min / 4  # masked cells, -inf in both, become 0
    log_a, log_b = log_a.clamp_min(lowest), log_b.clamp_min(lowest)
    apart = (log_a - log_b).abs().clamp_min(1e-30)
    return torch.maximum(log_a, log_b).exp() * (-torch.expm1(-apart)) / apart


def softmax_secant(at_p: Tensor, mean_p: Tensor) -> Tensor:
    """l (G - sum l G / sum l): what G at a softmax's output is at its input; `mean_p` is l."""
    whole = mean_p.sum(-1, keepdim=True).clamp_min(torch.finfo(mean_p.dtype).tiny)
    return mean_p * (at_p - (mean_p * at_p).sum(-1, keepdim=True) / whole)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _on_path(*found: Any) -> bool:
    return all(isinstance(item, Tensor) and item.requires_grad for item in found)


def _pair(grad: Tensor) -> Tensor:
    """G of each pair, from one of its rows: they are alike."""
    return _wide(grad[::2])


class _Rule(Function):
    """An operation whose backward pass uses both ends."""


# -- elementwise -----------------------------------------------------------------------------------


class _Sloped(_Rule):
    """f(x), where D f = slope D x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Callable[[Tensor], Tensor], slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        ctx.dtype = x.dtype
        return f(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return both(_pair(grad) * slope).to(ctx.dtype), None, None


def _elementwise(near: float) -> Callable[..., Tensor]:
    def rule(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        f = partial(func, **kwargs) if not args else lambda tensor: func(tensor, *args, **kwargs)
        if not _on_path(x) or kwargs.get("inplace"):
            return f(x)
        return _Sloped.apply(x, f, _quotient(f, x, near))

    return rule


@torch.no_grad()
def _quotient(f: Callable[[Tensor], Tensor], x: Tensor, near: float) -> Tensor:
    """(f(b) - f(a)) / (b - a), and Simpson's mean of f' where the ends are near."""
    a, b = ends(x)
    middle, step = (a + b) / 2, b - a
    at_a, at_middle, at_b = (_derivative(f, point) for point in (a, middle, b))
    simpson = (at_a + 4 * at_middle + at_b) / 6
    is_near = step.abs() <= near * (1 + middle.abs())
    return torch.where(is_near, simpson, (f(b) - f(a)) / step.masked_fill(is_near, 1))


def _derivative(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(f(leaf).sum(), leaf)[0]


def _power(func: Any, x: Any, exponent: Any, **kwargs: Any) -> Any:
    if not _on_path(x):
        return func(x, exponent, **kwargs)
    slope = _SLOPES.get(exponent) if isinstance(exponent, int | float) else None
    if slope is None:
        return _elementwise(_NEAR)(func, x, exponent, **kwargs)
    return _sloped(x, lambda tensor: torch.pow(tensor, exponent), slope)


def _known_power(exponent: float) -> Callable[..., Any]:
    def rule(func: Any, x: Any, **kwargs: Any) -> Any:
        return _sloped(x, func, _SLOPES[exponent]) if _on_path(x) else func(x, **kwargs)

    return rule


_Slope = Callable[[Tensor, Tensor], Tensor]


def _sloped(x: Tensor, f: Callable[[Tensor], Tensor], slope: _Slope) -> Any:
    with torch.no_grad():
        found = slope(*ends(x))
    return _Sloped.apply(x, f, found)


def rsqrt_slope(a: Tensor, b: Tensor) -> Tensor:
    """Of 1 / sqrt(x), without any difference."""
    s_a, s_b = a.rsqrt(), b.rsqrt()
    return -((s_a * s_b) ** 2) / (s_a + s_b)


_SLOPES: dict[float, _Slope] = {
    2: lambda a, b: a + b,
    3: lambda a, b: a * a + a * b + b * b,
    0.5: lambda a, b: 1 / (a.sqrt() + b.sqrt()),
    -0.5: rsqrt_slope,
    -1: lambda a, b: -1 / (a * b),
}
"""D (x ** exponent) / D x."""


# -- products --------------------------------------------------------------------------------------


class _Product(_Rule):
    """x y, element by element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, y = ctx.saved_tensors
        g, x_mean, y_mean = _pair(grad), mean(x), mean(y)
        at_x = (g * y_mean).sum_to_size(x_mean.shape)
        at_y = (g * x_mean).sum_to_size(y_mean.shape)
        return both(at_x).to(x.dtype), both(at_y).to(y.dtype)


class _MatMul(_Rule):
    """x @ y, batched."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x @ y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, y = ctx.saved_tensors
        g, x_mean, y_mean = _pair(grad), mean(x), mean(y)
        at_x = (g @ y_mean.mT).sum_to_size(x_mean.shape)
        at_y = (x_mean.mT @ g).sum_to_size(y_mean.shape)
        return both(at_x).to(x.dtype), both(at_y).to(y.dtype)


class _Linear(_Rule):
    """Linear, so that autograd's own would do; but G is one for both rows: half the work."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, func: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return func(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        found = grad[::2] @ weight.to(grad.dtype)  # autocast may have narrowed it
        return both(found).to(ctx.dtype), None, None, None


def _two(rule: type[_Rule]) -> Callable[..., Any]:
    def swapped(func: Any, x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not _on_path(x, y):
            return func(x, y, *args, **kwargs)
        return rule.apply(x, y)

    return swapped


def _ratio(func: Any, x: Any, y: Any, **kwargs: Any) -> Any:
    if kwargs or not _on_path(y):
        return func(x, y, **kwargs)
    inverse = _sloped(y, torch.reciprocal, _SLOPES[-1])
    return _Product.apply(x, inverse) if _on_path(x) else x * inverse


def _linear(func: Any, x: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not _on_path(x) or weight.requires_grad:
        return func(x, weight, bias)
    return _Linear.apply(x, func, weight, bias)


# -- softmax, attention ----------------------------------------------------------------------------


class _Softmax(_Rule):
    """softmax(u) over the last axis."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, dtype: torch.dtype | None) -> Tensor:
        ctx.save_for_backward(u)
        return u.softmax(-1, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (u,) = ctx.saved_tensors
        logs = (end.log_softmax(-1) for end in ends(u))
        return both(softmax_secant(_pair(grad), log_mean(*logs))).to(u.dtype), None


def _softmax(func: Any, u: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    if not _on_path(u) or dim not in (-1, u.dim() - 1) or args:
        return func(u, dim, *args, **kwargs)
    return _Softmax.apply(u, kwargs.get("dtype"))


class _LogSumExp(_Rule):
    """log sum exp(u) over the last axis: D = sum l Du / sum l."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, keepdim: bool) -> Tensor:
        ctx.save_for_backward(u)
        ctx.keepdim = keepdim
        return u.logsumexp(-1, keepdim=keepdim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (u,) = ctx.saved_tensors
        g = _pair(grad if ctx.keepdim else grad[..., None])
        weights = log_mean(*(end.log_softmax(-1) for end in ends(u)))
        return both(g * weights / weights.sum(-1, keepdim=True)).to(u.dtype), None


def _log_sum_exp(func: Any, u: Any, dim: Any, keepdim: bool = False) -> Any:
    if not _on_path(u) or dim not in (-1, u.dim() - 1):
        return func(u, dim, keepdim=keepdim)
    return _LogSumExp.apply(u, keepdim)


class _Attention(_Rule):
    """softmax(scale q k^T + mask) v by the model's own kernel; P is computed anew for G."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, func: Any, options: Any
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.options = options
        return func(q, k, v, attn_mask=mask, **options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, mask = ctx.saved_tensors
        group = q.shape[1] // k.shape[1]  # query heads a key head, under `enable_gqa`
        scale = ctx.options.get("scale") or q.shape[-1] ** -0.5
        shown = partial(_seen, mask, bool(ctx.options.get("is_causal")))
        logs = []
        for row, (q_end, k_end) in enumerate(zip(ends(q), ends(k), strict=True)):
            scores = scale * q_end @ k_end.repeat_interleave(group, 1).mT
            logs.append(shown(scores, row).log_softmax(-1))
        g, q_mean = _pair(grad), mean(q)
        k_mean, v_mean = (mean(x).repeat_interleave(group, 1) for x in (k, v))
        at_v = (logs[0].exp() + logs[1].exp()).mT @ g / 2
        at_s = scale * softmax_secant(g @ v_mean.mT, log_mean(*logs))
        grouped = ((at_s.mT @ q_mean), at_v)
        at_k, at_v = (x.unflatten(1, (-1, group)).sum(2) for x in grouped)
        found = (at_s @ k_mean, q), (at_k, k), (at_v, v)
        return *(both(x).to(like.dtype) for x, like in found), None, None, None


def _seen(mask: Tensor | None, is_causal: bool, scores: Tensor, row: int) -> Tensor:
    """The scores with what a query does not see at -inf."""
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores
    if mask.dim() == 4 and mask.shape[0] > 1:
        mask = mask[row::2]
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def _attention(
    func: Any, q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, **options: Any,
) -> Any:  # fmt: skip
    options = {"dropout_p": dropout_p, "is_causal": is_causal, **options}
    if not _on_path(q) or dropout_p:
        return func(q, k, v, attn_mask=attn_mask, **options)
    return _Attention.apply(q, k, v, attn_mask, func, options)


# -- norms -----------------------------------------------------------------------------------------


def _rms_norm(
    func: Any, x: Any, shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Any:
    if not _on_path(x):
        return func(x, shape, weight, eps)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _normed(_wide(x), shape, weight, None, eps).to(x.dtype)


def _layer_norm(
    func: Any, x: Any, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:  # fmt: skip
    if not _on_path(x):
        return func(x, shape, weight, bias, eps)
    wide = _wide(x)
    centred = wide - wide.mean(_last(shape), keepdim=True)
    return _normed(centred, shape, weight, bias, eps).to(x.dtype)


def _normed(
    x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    square = _sloped(x, torch.square, _SLOPES[2]).mean(_last(shape), keepdim=True)
    found = _Product.apply(x, _sloped(square + eps, torch.rsqrt, rsqrt_slope))
    found = found if weight is None else found * weight
    return found if bias is None else found + bias


def _last(shape: Any) -> list[int]:
    return list(range(-len(shape), 0))


# -- which operation has which rule ----------------------------------------------------------------

_RULES: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    **dict.fromkeys(("mul", "__mul__", "__rmul__", "multiply"), _two(_Product)),
    **dict.fromkeys(("matmul", "__matmul__", "bmm"), _two(_MatMul)),
    **dict.fromkeys(("div", "__truediv__", "divide", "true_divide"), _ratio),
    **dict.fromkeys(("__rdiv__", "__rtruediv__"), lambda _, y, x: _ratio(torch.div, x, y)),
    **dict.fromkeys(("pow", "__pow__"), _power),
    "square": _known_power(2),
    "sqrt": _known_power(0.5),
    "rsqrt": _known_power(-0.5),
    "reciprocal": _known_power(-1),
    **dict.fromkeys(("silu", "gelu", "tanh", "sigmoid", "softplus"), _elementwise(_NEAR)),
    "relu": _elementwise(0.0),  # straight but for its kink: the quotient loses nothing
    "softmax": _softmax,
    "logsumexp": _log_sum_exp,
    "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
}
"""By the name of a function or method; those written in place are left to `refuse_unknown`."""

_LINEAR = re.compile(
    "AccumulateGrad|Add|Alias|AsStrided|Cat|Clone|ConstantPadNd|Expand|Flip|Index|IndexSelect|"
    "LigerRopeFunction|MaskedFill|Mean|Narrow|Neg|Permute|Repeat|ReshapeAlias|Roll|Rsub|Select|Slice|Split|"
    "SplitWithSizes|Squeeze|Stack|Sub|Sum|T|ToCopy|Transpose|Unbind|UnsafeSplit|UnsafeView|"
    "Unsqueeze|View|Where"
)
"""Nodes of autograd's graph that are linear, whatever comes in."""
_LINEAR_IN_EACH = re.compile("Addmm|Baddbmm|Bmm|Div|Mm|Mul|Mv")
"""Those that are linear in one input, the others being constant."""


def refuse_unknown(output: Tensor) -> None:
    """Check that everything between the leaves and `output` is linear or has a rule.

    Raises:
        SecantError: something is not; names it.
    """
    seen, left = set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        left += [inner for inner, _ in node.next_functions]
        if not _is_known(node):
            raise SecantError(f"there is no secant of {_kind(node)}")


def _is_known(node: Any) -> bool:
    if issubclass(getattr(type(node), "_forward_cls", object), _Rule):
        return True
    kind, inputs = _kind(node), [inner for inner, _ in node.next_functions]
    if _LINEAR_IN_EACH.fullmatch(kind):
        factors = inputs[1:] if kind in ("Addmm", "Baddbmm") else inputs
        denominators = inputs[1:] if kind == "Div" else []
        return sum(item is not None for item in factors) < 2 and not any(denominators)
    return _LINEAR.fullmatch(kind) is not None


def _kind(node: Any) -> str:
    """`Mul` of `MulBackward0`."""
    return str(node.name()).removeprefix("torch::autograd::").split("Backward")[0]
