"""Look at a model and leave it as it was found."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from sparks.ground.errors import SparksError

_ROPE = "apply_rotary_pos_emb"


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen weights inside; everything as before afterwards, whatever happens.

    The caller's autocast is off inside, so that sums stay in float32; a model that a trainer has
    wrapped in its own autocast runs as it trains. Compiled models run eagerly, and Liger's kernels
    rest (`without_liger`).

    Restored: the `training` flag of every module (set directly: `.train()` swaps kernels in some
    models), `requires_grad` of every parameter, and the random states of Python, numpy, torch and
    every CUDA device. Gradients and optimizer state are never touched: inside, gradients are taken
    with `torch.autograd.grad` with respect to activations only.

    Raises:
        SparksError: `model` is no torch module.
    """
    if not isinstance(model, nn.Module):
        raise SparksError(
            f"model must be a Hugging Face causal language model, got {type(model).__name__}: load "
            f"it with AutoModelForCausalLM.from_pretrained"
        )
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        for module, _ in modes:
            module.training = False
        for parameter in trained:
            parameter.requires_grad_(False)
        with ExitStack() as stack:
            stack.enter_context(without_liger(model))
            if "torch._dynamo" in sys.modules:
                # A compiled model would be compiled anew for every hook.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for device_type in {parameter.device.type for parameter in model.parameters()}:
                stack.enter_context(torch.autocast(device_type, enabled=False))
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_(True)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def without_liger(model: nn.Module) -> Iterator[None]:
    """Inside, what Liger patched in `model` runs as transformers wrote it, and RoPE on copies.

    Liger's kernels (`use_liger_kernel`) write into tensors that hooks hold. Liger patches instances
    of norms and MLPs, and RoPE for the whole process; its RoPE rotates queries and keys in place,
    so that a hook on their projections sees them rotated.
    """
    forwards = {
        module: module.__dict__["forward"]
        for module in model.modules()
        # The model's own forward may be wrapped in autocast since; without labels it is harmless.
        if _is_liger(module.__dict__.get("forward")) and not hasattr(module, "generation_config")
    }
    homes = {sys.modules.get(type(module).__module__) for module in model.modules()}
    ropes = {home: getattr(home, _ROPE) for home in homes if _is_liger(getattr(home, _ROPE, None))}
    try:
        for module in forwards:
            del module.forward
        for home, rope in ropes.items():
            setattr(home, _ROPE, _on_copies(rope))
        yield
    finally:
        for module, forward in forwards.items():
            module.forward = forward
        for home, rope in ropes.items():
            setattr(home, _ROPE, rope)


def _is_liger(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("liger_kernel")


def _on_copies(rope: Callable[..., Any]) -> Callable[..., Any]:
    return lambda q, k, *args, **kwargs: rope(q.clone(), k.clone(), *args, **kwargs)
