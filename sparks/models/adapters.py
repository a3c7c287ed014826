"""The model under an adapter (PEFT), without a second copy of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of LoRA that move a part of the base weights into the adapter."""


def can_be_disabled(model: nn.Module) -> bool:
    """Whether disabling the adapter of `model` gives the model before any training.

    Not so without an adapter, where biases of the base are trained too, and where the adapter was
    initialised with a part of the base weights.
    """
    configs: dict[str, Any] = getattr(model, "peft_config", None) or {}
    if not configs or not callable(getattr(model, "disable_adapter", None)):
        return False
    for config in configs.values():
        start = getattr(config, "init_lora_weights", True)
        if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
            return False
        if getattr(config, "bias", "none") != "none":
            return False
    return True


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The base model inside; adapter and `requires_grad` flags as before afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
