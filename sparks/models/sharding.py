"""A whole model from one that is sharded over processes (FSDP2, DeepSpeed ZeRO-3).

The sharded model is never called: its hooks gather and free weights for training, and a call from
outside disturbs them. Instead its weights are gathered once, parameter by parameter, into a copy of
its module tree that has no hooks; each process then measures its probes on its own copy, without
waiting for the others, and drops it. So one whole model, in the type that it computes in, must fit
on each device beside the shards.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from sparks.ground.errors import SparksError
from sparks.models import processes

_GIB = 2**30
_ROOM = 1.1
"""Free memory wanted, in sizes of the copy: allocators round up."""

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_WAY_OUT = "measure the checkpoints afterwards with `sparks replay`"


def is_sharded(model: nn.Module) -> bool:
    """Whether weights of `model` are spread over processes."""
    return any(_is_sharded(parameter) for parameter in model.parameters())


def refuse_unknown_sharding(model: nn.Module) -> None:
    """Check that `whole` can gather `model`.

    Raises:
        SparksError: it is sharded by FSDP1.
    """
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise SparksError(
            f"FSDP version 1 is not supported: set fsdp_version: 2 in the accelerate "
            f"configuration, or {_WAY_OUT}"
        )


@torch.no_grad()
def whole(model: nn.Module) -> nn.Module:
    """`model` itself, or a whole copy of it if it is sharded.

    Collective if the model is sharded: every process must call it. The copy has weights of its own,
    the buffers and attributes of `model`, and no hooks.

    Raises:
        SparksError: the copy does not fit on the device of some process, or FSDP1.
    """
    refuse_unknown_sharding(model)
    if not is_sharded(model):
        return model
    types = _types(model)
    _check_room(types)
    weights = {
        id(parameter): nn.Parameter(_gather(parameter, dtype), requires_grad=False)
        for parameter, dtype in types.items()
    }
    return _copy(model, weights, {})


def _is_sharded(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")


def _types(model: nn.Module) -> dict[nn.Parameter, torch.dtype]:
    """The type that each parameter is computed in: FSDP2 may keep a wider one."""
    found: dict[nn.Parameter, torch.dtype] = {}
    narrow: dict[nn.Module, torch.dtype | None] = {}

    def visit(module: nn.Module, dtype: torch.dtype | None) -> None:
        if isinstance(module, FSDPModule):
            dtype = module._get_fsdp_state()._mp_policy.param_dtype
        narrow[module] = dtype
        for parameter in module.parameters(recurse=False):
            wanted = dtype if dtype is not None and parameter.is_floating_point() else None
            found.setdefault(parameter, wanted or parameter.dtype)
        for child in module.children():
            if child not in narrow:
                visit(child, dtype)

    visit(model, None)
    return found


def _check_room(types: dict[nn.Parameter, torch.dtype]) -> None:
    def room() -> tuple[float, float]:
        need = sum(_num_values(item) * dtype.itemsize for item, dtype in types.items())
        if not torch.cuda.is_available():
            return need / _GIB, float("inf")
        free = torch.cuda.mem_get_info()[0]
        free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return need / _GIB, free / _GIB

    # Agreed before the first gather: a process that ran out of memory in one would leave the
    # others waiting.
    for process, (need, free) in enumerate(processes.together(room)):
        if need * _ROOM > free:
            raise SparksError(
                f"sharded weights are measured on a whole copy, {need:.1f} GiB on each device, and "
                f"process {process} has {free:.1f} GiB free: lower the training's own memory, or "
                f"{_WAY_OUT}"
            )


def _num_values(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", None) or parameter.numel())


def _gather(parameter: nn.Parameter, dtype: torch.dtype) -> Tensor:
    if isinstance(parameter, DTensor):
        found = cast(DTensor, parameter.detach().to(dtype)).full_tensor()
    elif hasattr(parameter, "ds_id"):
        deepspeed = sys.modules["deepspeed"]  # it made the parameter
        with deepspeed.zero.GatheredParameters([parameter]):
            found = parameter.detach().to(dtype, copy=True)
    else:
        return parameter.detach().to(dtype)
    # Weights that are kept on the CPU are computed on the device.
    return found.cuda() if torch.cuda.is_available() and not found.is_cuda else found


def _copy(module: nn.Module, weights: dict[int, nn.Parameter], made: dict[int, Any]) -> nn.Module:
    """The module tree again: the same classes and attributes, other weights, no hooks."""
    if id(module) in made:
        return made[id(module)]
    kind = type(module)
    if isinstance(module, FSDPModule):  # a subclass made for the occasion: (FSDPX, FSDPModule, X)
        kind = kind.__mro__[2]
    copy = kind.__new__(kind)
    made[id(module)] = copy
    # An instance's own `forward` or `generate` is a trainer's or an accelerator's wrapper around
    # the original.
    wrappers = ("forward", "generate")
    own = {name: value for name, value in vars(module).items() if name not in wrappers}
    copy.__dict__.update(own)
    copy.__dict__.update({name: OrderedDict() for name in _HOOKS})
    copy.__dict__["_parameters"] = {
        name: None if parameter is None else weights[id(parameter)]
        for name, parameter in module._parameters.items()
    }
    copy.__dict__["_buffers"] = dict(module._buffers)
    copy.__dict__["_modules"] = {
        name: None if child is None else _copy(child, weights, made)
        for name, child in module._modules.items()
    }
    return copy
