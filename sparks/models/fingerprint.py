"""A fingerprint of a model's weights, by which snapshots of different models are told apart."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_FINGERPRINT_VALUES = 1024  # values of each weight that the fingerprint reads


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """sha256 (hex) over names, shapes, types and evenly spaced values of all weights.

    Equal weights give equal fingerprints; it reads 1024 values a tensor, so that it costs
    milliseconds at any size.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        flat = parameter.detach().reshape(-1)
        stride = max(1, flat.numel() // _FINGERPRINT_VALUES)
        digest.update(_raw(flat[::stride]))
    return digest.hexdigest()


def _raw(values: Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).cpu().numpy().tobytes()
