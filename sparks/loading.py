"""Models and tokenizers from a folder or the hub, in the type that their files have.

Whatever fails is told as one `SparksError` that names what was to be loaded. An adapter folder is
loaded on its base model, with its adapter openly around it (PEFT).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sparks.errors import SparksError

Autocast = Literal["no", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def split_revision(given: str) -> tuple[str, str | None]:
    """`owner/name@revision` as name and revision; a folder that exists keeps its `@`."""
    if Path(given).exists() or "@" not in given:
        return given, None
    name, _, revision = given.rpartition("@")
    return name, revision


def device_of(device: str) -> str:
    """`auto` as `cuda` where there is one, else `cpu`; another name as it is."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The model's own tokenizer.

    Raises:
        SparksError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    with _naming(name, revision):
        return AutoTokenizer.from_pretrained(name, revision=revision)


def load_model(
    name: str, revision: str | None = None, *, device: str = "auto", autocast: Autocast = "no"
) -> Any:
    """The causal language model, in evaluation mode.

    Args:
        name: a folder, or a hub id.
        revision: of a hub id.
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...
        autocast: run it as a trainer with `bf16=True` or `fp16=True` does.

    Raises:
        SparksError: it cannot be loaded, or weights are missing.
    """
    from transformers import AutoModelForCausalLM

    device = device_of(device)
    missing: set[str] = set()
    with _naming(name, revision):
        # transformers loads an adapter folder too, but hides the adapter; peft wraps it openly.
        if (Path(name) / "adapter_config.json").exists():
            from peft import AutoPeftModelForCausalLM

            model = AutoPeftModelForCausalLM.from_pretrained(name, dtype="auto")
        else:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name, revision=revision, dtype="auto", output_loading_info=True
            )
            model, info = loaded
            missing = set(info["missing_keys"])
        model = model.to(device)
    if missing:  # transformers fills them with random numbers
        raise SparksError(
            f"checkpoint {name} lacks {len(missing)} weights, such as {min(missing)}: its files "
            f"are incomplete, save or download it again"
        )
    if autocast != "no":
        _run_under_autocast(model, torch.device(device), _AUTOCAST[autocast])
    return model


@contextmanager
def _naming(name: str, revision: str | None) -> Iterator[None]:
    """Whatever fails inside is told as one `SparksError` that names the checkpoint."""
    try:
        yield
    except Exception as error:  # files, the hub and devices fail in many classes
        whole = name + (f"@{revision}" if revision else "")
        reason = " ".join(str(error).split())[:300]
        raise SparksError(
            f"cannot load checkpoint {whole} ({type(error).__name__}: {reason}): give a folder "
            f"with a model and its tokenizer, or a hub id that can be reached"
        ) from error


def _run_under_autocast(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Wrap `forward` as accelerate does in mixed precision: float32 weights, narrow blocks."""
    from accelerate.utils import convert_outputs_to_fp32

    forward = torch.autocast(device_type=device.type, dtype=dtype)(model.forward)
    model.forward = convert_outputs_to_fp32(forward)
