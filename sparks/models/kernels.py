"""Liger kernels write into tensors that hooks hold: they rest while a model is measured.

Liger (`use_liger_kernel`) patches instances of norms and MLPs, and RoPE for the whole process. Its
RoPE rotates queries and keys in place, so that a hook on their projections sees them rotated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_ROPE = "apply_rotary_pos_emb"


@contextmanager
def without_liger(model: nn.Module) -> Iterator[None]:
    """Inside, what Liger patched in `model` runs as transformers wrote it, and RoPE on copies."""
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
