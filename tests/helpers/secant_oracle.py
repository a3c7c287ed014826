"""Secant scores by their definition: D carried forward through the network, an operation at a time.

A `Dual` is a tensor at both ends, a and b, and the D that reaches it. Every operation of the model,
in float64 and with plain attention, maps D of its inputs to D of its output by the secant that
stands here once more, as differences over differences. What has no secant here must be affine,
which each use of it checks. Let one destination v read D = Delta z_u beside what it reads, and
nothing else differ: then D L is score(u -> v), for all u as rows of one batch. No autograd, no
shared prefix, nothing taken apart; of sparks, only the finder of the parts is used.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from oracle import endpoint
from torch import Tensor, nn
from torch._C import DisableTorchFunctionSubclass
from torch.utils._pytree import tree_map_only

from sparks.models.anatomy import base_model
from sparks.models.anatomy_proof import take_apart
from sparks.models.hooks import hooks, on_input, on_output
from sparks.probes.pairs import TokenPair


def defined_scores(model: nn.Module, pair: TokenPair, *, positions: str = "last") -> Tensor:
    """Secant scores [sources, destinations], Delta = corrupted - clean."""
    model = copy.deepcopy(model).double()
    base_model(model).set_attn_implementation("eager")
    anatomy = take_apart(model)
    targets = 1 if positions == "last" else len(pair.clean)
    ends = [endpoint(anatomy, pair.prefix + ids) for ids in (pair.clean, pair.corrupted)]
    (clean, clean_writes, _), (corrupted, corrupted_writes, _) = ends
    delta = corrupted_writes - clean_writes  # [sources, pos, d_model]
    graph, size = anatomy.graph, len(delta)
    found = torch.zeros(graph.num_sources, graph.num_destinations, dtype=torch.float64)
    for column, name in enumerate(graph.destinations):
        count = int(graph.sources_read[column])
        start = Dual.of(*(e.expand(size, -1, -1).clone() for e in (clean, corrupted)))
        with hooks() as handles, torch.no_grad():
            _deliver(anatomy, name, delta, handles)
            logits = anatomy.root(inputs_embeds=start, use_cache=False).logits[:, -targets:]
        found[:count, column] = _of_loss(logits)[:count]
    return found


def _of_loss(logits: Dual) -> Tensor:
    """D KL(clean || run), the mean over targets."""
    a, b, d = logits.ends()
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    weights = _over(log_b.exp() - log_a.exp(), log_b - log_a, log_a.exp())
    d_log_sum = (weights * d).sum(-1) / weights.sum(-1)
    return (d_log_sum - (log_a.exp() * d).sum(-1)).mean(-1)


def _deliver(anatomy: Any, name: str, delta: Tensor, handles: list[Any]) -> None:
    """Have the destination of this name alone read `delta` beside what it reads."""
    if name == "logits":
        handles.append(on_input(anatomy.final_norm, lambda x: x.moved(delta)))
        return
    place, _, part = name.partition(".")
    index, *head = map(int, re.findall(r"\d+", place))
    layer = anatomy.layers[index]
    if not part:
        handles.append(on_input(layer.mlp_norm, lambda x: x.moved(delta)))
        return
    item = dict(zip("qkv", layer.projections, strict=True))[part]
    begin = item.start + head[0] * item.head_dim
    end = begin + item.head_dim
    read: list[Dual] = []

    def see(output: Dual) -> Tensor:
        again = item.module.forward(layer.attention_norm.forward(read[0].moved(delta)))
        return torch.cat([output[..., :begin], again[..., begin:end], output[..., end:]], -1)

    handles.append(on_input(layer.attention_norm, read.append))
    handles.append(on_output(item.module, see))


class Dual(Tensor):
    """A tensor whose own values are those at a; `b`, and the D that reaches it."""

    b: Tensor
    d: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor, d: Tensor | None = None) -> Dual:
        with DisableTorchFunctionSubclass():
            found = a.as_subclass(cls)
        found.b, found.d = b, torch.zeros_like(b) if d is None else d
        return found

    def ends(self) -> tuple[Tensor, Tensor, Tensor]:
        with DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor), self.b, self.d

    def moved(self, delta: Tensor) -> Dual:
        a, b, d = self.ends()
        return Dual.of(a, b, d + delta)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = _kept_wide(args), _kept_wide(kwargs or {})
        two = [item for item in args[:2] if isinstance(item, Dual)]
        name = func.__name__
        if name in _UNARY:
            return _elementwise(func, *args, **kwargs)
        if name in ("mul", "matmul") and len(two) == 2:
            return _product(func, *two)
        if name == "softmax":
            return _softmax(*two)
        if name == "layer_norm":
            return _layer_norm(*args, **kwargs)
        return _affine(func, args, kwargs)


_UNARY = ("pow", "rsqrt", "silu", "gelu", "tanh", "sigmoid")


def _kept_wide(given: Any) -> Any:
    """Float32 islands are float64 here."""
    return tree_map_only(torch.dtype, lambda _: torch.float64, given)


def _over(rise: Tensor, run: Tensor, where_equal: Tensor) -> Tensor:
    return torch.where(run == 0, where_equal, rise / run)


def _affine(func: Any, args: Any, kwargs: Any) -> Any:
    def at(choose: Callable[[Dual], Tensor]) -> Any:
        with DisableTorchFunctionSubclass():
            return func(*tree_map_only(Dual, choose, args), **tree_map_only(Dual, choose, kwargs))

    a, b = at(lambda x: x.ends()[0]), at(lambda x: x.b)
    if isinstance(a, tuple | list) and a and isinstance(a[0], Tensor):
        picks = [_pick(func, place) for place in range(len(a))]
        return type(a)(_affine(pick, args, kwargs) for pick in picks)
    if not isinstance(a, Tensor) or not a.is_floating_point():
        return a
    zero = at(lambda x: torch.zeros_like(x.b))
    step = at(lambda x: x.b - x.ends()[0])
    assert torch.allclose(b - a, step - zero, atol=1e-9), f"{func} is not affine"
    return Dual.of(a, b, at(lambda x: x.d) - zero)


def _pick(func: Any, place: int) -> Any:
    return lambda *args, **kwargs: func(*args, **kwargs)[place]


def _elementwise(func: Any, x: Dual, *args: Any, **kwargs: Any) -> Dual:
    a, b, d = x.ends()
    f_a, f_b = func(a, *args, **kwargs), func(b, *args, **kwargs)
    return Dual.of(f_a, f_b, d * _over(f_b - f_a, b - a, torch.zeros_like(a)))


def _product(func: Any, x: Dual, y: Dual) -> Dual:
    (x_a, x_b, x_d), (y_a, y_b, y_d) = x.ends(), y.ends()
    d = func(x_d, (y_a + y_b) / 2) + func((x_a + x_b) / 2, y_d)
    return Dual.of(func(x_a, y_a), func(x_b, y_b), d)


def _softmax(u: Dual) -> Dual:
    a, b, d = u.ends()
    p_a, p_b = a.softmax(-1), b.softmax(-1)
    mean = _over(p_b - p_a, p_b.log() - p_a.log(), p_a).nan_to_num(0)  # nothing where masked
    rest = (mean * d).sum(-1, keepdim=True) / mean.sum(-1, keepdim=True)
    return Dual.of(p_a, p_b, mean * (d - rest))


def _layer_norm(x: Dual, shape: Any, weight: Tensor, bias: Tensor, eps: float) -> Any:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps) * weight + bias
